"""Whatever is wrong with the input: exit status 2, one message, nothing half-written."""

import json
import os
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain.cli import main


@pytest.fixture
def refused(capsys, tmp_path):
    """Run a command that must fail; returns its message after checking what every failure has in common."""

    def refused(*arguments, output="run", status=2):
        assert main(list(arguments)) == status
        captured = capsys.readouterr()
        marks = [line for line in captured.err.splitlines() if line.startswith("posttrain: error: ")]
        assert len(marks) == 1
        assert "Traceback" not in captured.err
        assert "Error:" not in captured.err
        assert captured.out == ""
        assert not (tmp_path / output).exists()
        return captured.err[captured.err.index("posttrain: error: ") :]

    return refused


@pytest.fixture
def trained(work, capsys, tmp_path):
    """Train one adapter for a single step; its folder."""

    def trained(stage):
        keys = {"dataset": "data/pairs.json"} if stage == "rm" else {}
        assert main(["train", work(f"make_{stage}.yaml", stage=stage, output_dir=stage, **keys)]) == 0
        capsys.readouterr()
        return str(tmp_path / stage)

    return trained


def test_a_missing_configuration_file(refused, work):
    assert "nowhere.yaml: no such file" in refused("train", "nowhere.yaml")


def test_an_unknown_key_with_a_suggestion_and_its_line(refused, work):
    message = refused("train", work(learning_rte=1e-4))
    assert "did you mean `learning_rate`?" in message
    assert "sft.yaml, line" in message


def test_an_unknown_key_on_the_command_line(refused, work):
    message = refused("train", work(), "max_stps=3")
    assert "command line" in message
    assert "`max_steps`" in message


def test_a_word_that_is_no_override(refused, work):
    assert "key=value" in refused("train", work(), "fast")


def test_an_unknown_stage(refused, work):
    assert "pt, sft, rm, dpo, kto, ppo" in refused("train", work(stage="rlhf"))


def test_malformed_json_with_its_line(refused, work, tmp_path):
    (tmp_path / "data" / "broken.json").write_text('[\n{"instruction": "a", "output": "b"},\n{"instruction" "c"}\n]')
    message = refused("train", work(dataset="data/broken.json"))
    assert "broken.json" in message
    assert "line 3" in message


def test_a_missing_column_with_its_row(refused, work, tmp_path):
    rows = [{"instruction": "a", "output": "b"}, {"instruction": "c"}]
    (tmp_path / "data" / "short.json").write_text(json.dumps(rows), encoding="utf-8")
    message = refused("train", work(dataset="data/short.json"))
    assert "short.json" in message
    assert "row 2" in message
    assert "output" in message


@pytest.mark.parametrize("stage", ["dpo", "rm", "kto"])
def test_pairs_whose_sides_are_all_equal(refused, work, tmp_path, stage):
    rows = [{"prompt": f"Count table {i}.", "chosen": "SELECT 1;", "rejected": "SELECT 1;"} for i in range(3)]
    (tmp_path / "data" / "equal.json").write_text(json.dumps(rows), encoding="utf-8")
    message = refused("train", work(stage=stage, dataset="data/equal.json"))
    assert "no row is left to use: 3 dropped: chosen equals rejected (first: " in message
    assert "equal.json, row 1" in message


def test_pairs_of_which_some_sides_are_equal_train_without_them(work, tmp_path, capsys):
    """Dropped, counted and named; what is left trains."""
    rows = [{"prompt": f"Count table {i}.", "chosen": "SELECT 1;", "rejected": f"SELECT {i};"} for i in range(4)]
    (tmp_path / "data" / "some.json").write_text(json.dumps(rows), encoding="utf-8")
    assert main(["train", work(stage="dpo", dataset="data/some.json")]) == 0
    said = capsys.readouterr().err
    assert "read 4 rows, kept 3" in said
    assert "dropped 1: chosen equals rejected (first: " in said
    assert "some.json, row 2)" in said


@pytest.mark.parametrize(("label", "words"), [(True, "good (true)"), (False, "bad (false)")])
def test_judged_answers_of_one_kind_only(refused, work, tmp_path, label, words):
    rows = [{"instruction": f"Count table {i}.", "output": f"SELECT {i};", "kto_tag": label} for i in range(3)]
    (tmp_path / "data" / "judged.json").write_text(json.dumps(rows), encoding="utf-8")
    message = refused("train", work(stage="kto", dataset="data/judged.json"))
    assert f"all 3 answers are {words}: stage kto learns from good and bad ones." in message
    assert "Add rows of the other kind" in message


def test_a_judgement_that_is_neither_with_its_row(refused, work, tmp_path):
    rows = [{"instruction": "Count.", "output": f"SELECT {i};", "kto_tag": tag} for i, tag in enumerate((True, "bad"))]
    (tmp_path / "data" / "judged.json").write_text(json.dumps(rows), encoding="utf-8")
    message = refused("train", work(stage="kto", dataset="data/judged.json"))
    assert "judged.json, row 2: 'kto_tag' must be true or false, found 'bad'" in message


def test_answers_without_a_judgement(refused, work):
    message = refused("train", work(stage="kto"))
    assert "sft.json, row 1: no column 'kto_tag' (found: instruction, input, output)" in message


def test_answers_where_pairs_are_needed(refused, work):
    assert "sft.json, row 1" in refused("train", work(stage="dpo"))


def test_a_group_of_one_has_nothing_to_be_compared_with(refused, work, trained):
    reward = trained("rm")
    for stage in ("rloo", "grpo", "online_dpo"):
        keys = {"reward_model": reward, "num_return_sequences": 1}
        message = refused("train", work("group.yaml", stage=stage, **keys))
        assert f"`num_return_sequences: 1` leaves stage {stage} nothing to compare" in message


def test_an_empty_dataset(refused, work, tmp_path):
    (tmp_path / "data" / "empty.json").write_text("[]", encoding="utf-8")
    assert "empty.json" in refused("train", work(dataset="data/empty.json"))


def test_a_dataset_that_is_not_there(refused, work):
    assert "data/gone.json" in refused("train", work(dataset="data/gone.json"))


def test_an_unknown_template_with_a_suggestion(refused, work):
    assert "qwen" in refused("train", work(template="qwem"))


def test_a_prompt_longer_than_the_cut_off(refused, work, trained):
    reward = trained("rm")
    message = refused("train", work("ppo.yaml", stage="ppo", reward_model=reward, cutoff_len=8))
    assert "cutoff_len" in message


def test_a_model_folder_that_is_none(refused, work, tmp_path):
    assert "config.json" in refused("chat", work(model_name_or_path=str(tmp_path / "data")))


def test_an_adapter_for_another_backbone(refused, work, base, trained, tmp_path):
    adapter = trained("sft")
    other = tmp_path / "other"
    shutil.copytree(base, other)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1.0)
    model.save_pretrained(other)
    keys = {"model_name_or_path": str(other), "adapter_name_or_path": adapter}
    config = work(**keys, export_dir="merged")
    for command, output in (("train", "run"), ("export", "merged"), ("chat", "run")):
        assert "allow_mismatch: true" in refused(command, config, output=output)


def test_a_reward_folder_without_its_head(refused, work, trained, tmp_path):
    reward = trained("rm")
    (tmp_path / "rm" / "value_head.safetensors").unlink()
    assert "head" in refused("train", work("ppo.yaml", stage="ppo", reward_model=reward))
    assert "head" in refused("export", work(adapter_name_or_path=reward, export_dir="merged"), output="merged")


def test_nothing_to_export(refused, work):
    assert "nothing to export" in refused("export", work(export_dir="merged"), output="merged")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(refused, work, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert "cannot be written" in refused("train", work(output_dir="locked/run"), output="locked/run")


def test_a_file_where_the_folder_should_be(refused, work, tmp_path):
    (tmp_path / "taken").write_text("", encoding="utf-8")
    assert "taken" in refused("train", work(output_dir="taken/run"), output="run")


def test_a_pipeline_file_that_is_none(refused, work):
    assert "stages" in refused("run", work())


def test_an_unknown_model_name(refused, work):
    assert "smollm2-135m-instruct" in refused("model", "fetch", "smolm2-135m-instruct")
