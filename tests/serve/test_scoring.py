"""Reward models score text as evaluation measures it, whatever folder they come in."""

import json

import pytest

from posttrain.config import load_config
from posttrain.data.formats import Message
from posttrain.errors import UserError
from posttrain.evaluate.run import evaluate
from posttrain.models.export import export_model
from posttrain.serve.scoring import FolderScorer, reward_identity

CUTOFF = 64


@pytest.fixture(scope="module")
def rows(tiny_data):
    return json.loads((tiny_data / "pairs.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def answered(rows):
    return [((Message("user", row["prompt"]),), row[side]) for row in rows for side in ("chosen", "rejected")]


@pytest.fixture(scope="module")
def measured(trained, tiny_llama, tiny_data, tmp_path_factory):
    """The scores that ``posttrain eval`` writes down, chosen and rejected in turn."""

    def measured(adapter):
        folder = tmp_path_factory.mktemp("eval")
        values = {
            **{"model_name_or_path": str(tiny_llama), "adapter_name_or_path": str(trained / adapter)},
            **{"task": "reward", "dataset": str(tiny_data / "pairs.json")},
            **{"output_dir": str(folder), "cutoff_len": CUTOFF},
        }
        evaluate(load_config(values, command="eval"))
        lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        return [row[f"{side}_score"] for row in map(json.loads, lines) for side in ("chosen", "rejected")]

    return measured


def scorer(folder, model="", **keys):
    values = {
        "model_name_or_path": str(model),
        "judge": str(folder),
        "dataset": "d",
        "cutoff_len": CUTOFF,
        **keys,
    }
    said = []
    made = FolderScorer.configured(load_config(values, command="label"), str(folder), notify=said.append)
    return made, said


@pytest.mark.parametrize("adapter", ["rm", "rm_on_sft"])
def test_an_adapter_scores_as_evaluation_measures(trained, tiny_llama, answered, measured, adapter):
    made, _ = scorer(trained / adapter, tiny_llama)
    expected = measured(adapter)
    assert made.scores(answered) == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.1


def test_an_adapter_finds_the_base_that_it_records(trained, tiny_llama, answered):
    expected = scorer(trained / "rm", tiny_llama)[0].scores(answered[:2])
    assert scorer(trained / "rm")[0].scores(answered[:2]) == expected
    assert scorer(trained / "rm", trained / "merged")[0].scores(answered[:2]) == expected


def test_a_whole_reward_model_needs_no_other(trained, tiny_llama, answered, tmp_path):
    values = {
        **{"model_name_or_path": str(tiny_llama), "adapter_name_or_path": str(trained / "rm")},
        "export_dir": str(tmp_path / "whole"),
    }
    export_model(load_config(values, command="export"))
    expected = scorer(trained / "rm", tiny_llama)[0].scores(answered)
    assert scorer(tmp_path / "whole")[0].scores(answered) == pytest.approx(expected, abs=1e-4)


def test_how_rows_are_grouped_changes_nothing_but_rounding(trained, tiny_llama, answered):
    made, _ = scorer(trained / "rm", tiny_llama, max_tokens_per_microbatch=40)
    one_by_one = [made.scores([pair])[0] for pair in answered]
    assert made.scores(answered) == pytest.approx(one_by_one, abs=1e-5)


def test_a_prompt_that_nothing_can_be_cut_from_has_no_score(trained, tiny_llama, answered):
    long = ((Message("system", "word " * 200), Message("user", "q")), "a")
    made, _ = scorer(trained / "rm", tiny_llama)
    assert made.scores([answered[0], long, answered[1]])[1] is None
    assert made.scores([long]) == [None]
    assert made.scores([answered[0], long])[0] == pytest.approx(made.scores([answered[0]])[0], abs=1e-5)


def test_what_is_no_reward_model_is_refused(trained, tiny_llama, tmp_path):
    with pytest.raises(UserError, match="no reward head"):
        scorer(trained / "sft", tiny_llama)
    with pytest.raises(UserError, match="does not exist"):
        reward_identity(str(tmp_path / "gone"))


def test_identities_tell_reward_models_apart(trained):
    assert reward_identity(str(trained / "rm")) == reward_identity(str(trained / "rm"))
    assert reward_identity(str(trained / "rm")) != reward_identity(str(trained / "rm_on_sft"))
    assert set(reward_identity(str(trained / "rm_on_sft"))) == {"head", "adapter 1", "adapter 2"}
