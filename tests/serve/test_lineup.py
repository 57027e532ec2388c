"""The models of a chat: each says what it says alone, and the backbone is loaded once."""

import shutil

import pytest

from posttrain.config import load_config
from posttrain.errors import UserError
from posttrain.serve import lineup, model
from posttrain.serve.lineup import Lineup
from posttrain.serve.model import ChatModel

QUESTION = [{"role": "user", "content": "How many rows?"}]
GREEDY = {"do_sample": False, "max_new_tokens": 10}


@pytest.fixture
def line_up(base):
    def make(said=None, **keys):
        config = load_config({"model_name_or_path": str(base), **keys}, command="chat")
        return Lineup(config, notify=(said if said is not None else []).append)

    return make


@pytest.fixture
def alone(base):
    """What a model says that holds nothing else."""

    def say(adapter=None, at=base):
        keys = {"adapter_name_or_path": str(adapter)} if adapter else {}
        return ChatModel({"model_name_or_path": str(at), **keys}).chat(QUESTION, **GREEDY)[0].response_text

    return say


def answer(line, name):
    return "".join(line.stream_chat(name, QUESTION, None, GREEDY))


@pytest.fixture
def loads(monkeypatch):
    """How often a backbone was loaded."""
    seen = []
    load = model.load_backbone
    monkeypatch.setattr(model, "load_backbone", lambda *args: seen.append(1) or load(*args))
    return seen


def test_variants_answer_in_turns_on_one_backbone(line_up, alone, adapter, loads):
    line = line_up(variants=["bare", f"sft={adapter}"])
    assert line.names == ("bare", "sft")
    found = [answer(line, name) for name in ("bare", "sft", "bare", "sft")]
    assert len(loads) == 1
    assert found == [alone(), alone(adapter)] * 2
    assert found[0] != found[1]


def test_a_lone_adapter_can_be_compared_with_its_base(line_up, alone, adapter, loads):
    said = []
    line = line_up(said, adapter_name_or_path=str(adapter))
    assert line.names == ("sft", "base")
    assert answer(line, "sft") == alone(adapter)
    assert not said
    assert line.named("base") == "base"
    assert len(said) == 1
    assert [answer(line, "base"), answer(line, "sft")] == [alone(), alone(adapter)]
    assert ["loading" in sentence for sentence in said] == [True]


def test_adapters_and_models_are_added_by_their_folders(line_up, alone, adapter, base, tmp_path):
    other = shutil.copytree(adapter, tmp_path / "sft")
    whole = shutil.copytree(base, tmp_path / "whole model")
    line = line_up(variants=[f"sft={adapter}"])
    assert [line.named(str(other)), line.named(str(whole))] == ["sft-2", "whole-model"]
    assert line.names == ("sft", "sft-2", "whole-model")
    assert answer(line, "sft-2") == answer(line, "sft") == alone(adapter)
    assert answer(line, "whole-model") == alone(at=whole)


def test_what_cannot_be_added_leaves_all_as_it_was(line_up, alone, adapter, trained, tmp_path):
    line = line_up(adapter_name_or_path=str(adapter))
    for place, sentence in (
        ("stf", r"did you mean sft\?"),
        (str(tmp_path / "none"), "no model and no folder is called"),
        (str(tmp_path), "config.json"),
        (str(trained / "sft"), "was trained on .* other weights"),
    ):
        with pytest.raises(UserError, match=sentence):
            line.named(place)
    assert line.names == ("sft", "base")
    assert answer(line, "sft") == alone(adapter)


def test_a_load_that_was_interrupted_is_made_up_for(line_up, alone, adapter, monkeypatch):
    line = line_up(adapter_name_or_path=str(adapter))
    make = lineup.ChatModel

    def stopped(*args, **keys):
        monkeypatch.setattr(lineup, "ChatModel", make)
        raise KeyboardInterrupt

    monkeypatch.setattr(lineup, "ChatModel", stopped)
    with pytest.raises(KeyboardInterrupt):
        answer(line, "base")
    assert answer(line, "sft") == alone(adapter)


def test_settings_are_checked_as_in_a_file(line_up):
    line = line_up(temperature=0.3)
    assert line.settings({"top_k": 4}).temperature == 0.3
    with pytest.raises(UserError, match="did you mean temperature"):
        line.settings({"temprature": 1})
