"""Our own sides, on a tiny model, from rows of text to what the orchestrator reads."""

from __future__ import annotations

import json
import runpy
import sys
from functools import partial
from pathlib import Path

import pytest
from benchmarks.compare import venvs
from benchmarks.compare.blocks import SIDES, Blocks
from benchmarks.compare.inputs import prepared
from benchmarks.compare.reward_adapter import KNOWN
from benchmarks.compare.rows import Row, chosen
from safetensors.torch import load_file

FRUITS = ["apple", "pear", "plum", "fig", "lime", "kiwi", "date", "peach"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Rows in the layouts of LLaMA-Factory's demo data; the second of each is too long."""
    folder = tmp_path_factory.mktemp("demo")
    info = {
        "alpaca_en_demo": {"file_name": "alpaca_en_demo.json"},
        "dpo_en_demo": {
            **{"file_name": "dpo_en_demo.json", "ranking": True, "formatting": "sharegpt"},
            "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
        },
    }
    asked = [f"name a fruit like {fruit} " + "fig " * (200 if i == 1 else i) for i, fruit in enumerate(FRUITS)]
    alpaca = [{"instruction": q, "input": "", "output": f"{q} and lime"} for q in asked]
    pairs = [
        {
            "conversations": [{"from": "human", "value": q}],
            "chosen": {"from": "gpt", "value": f"{f}!"},
            "rejected": {"from": "gpt", "value": f"no {f} and no plum"},
        }
        for q, f in zip(asked, FRUITS, strict=True)
    ]
    for name, rows in (("dataset_info", info), ("alpaca_en_demo", alpaca), ("dpo_en_demo", pairs)):
        (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


@pytest.fixture
def block(tiny_llama, demo, tmp_path):
    """(result of our side, the rows that both sides get) of a row of the table, small."""

    def run(row: Row, **more):
        small = {"batch": 2, "num_rows": 4, "steps": 2, "cutoff_len": 64, "threads": 1, "max_new_tokens": 8}
        spec = {**row.settings({**small, **more}), "model": str(tiny_llama)}
        inputs = prepared(spec, demo, tmp_path / "inputs")
        blocks = Blocks({**spec, **inputs}, partial(venvs.interpreter, folder=tmp_path), tmp_path)
        return blocks(row.ours), json.loads(Path(inputs["rows"]).read_text("utf-8"))

    return run


@pytest.mark.slow
def test_supervised_rows_are_cut_and_the_first_step_is_reported(block) -> None:
    found, rows = block(chosen("sft", "trl")[0])
    assert [len(row["input_ids"]) == 64 for row in rows] == [False, True, False, False]
    assert found["live_tokens"] == sum(len(row["input_ids"]) for row in rows)
    assert found["samples"] == 4
    assert found["first_loss"] > 1
    assert found["first_grad_norm"] > 0
    assert 0 < found["seconds"] < 60
    assert found["peak_rss_bytes"] > 1e8
    assert found["versions"]["torch"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uncached", "cached"])
def test_pairs_that_do_not_fit_are_left_out(block, name) -> None:
    found, rows = block(next(row for row in chosen("dpo", "trl") if row.name == name))
    assert len(rows) == 4
    lengths = [2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows]
    assert max(lengths) <= 2 * 64
    assert found["live_tokens"] == sum(lengths)
    assert found["first_loss"] == pytest.approx(0.693147, abs=1e-5)


@pytest.mark.slow
def test_sampled_answers_are_counted_with_their_prompts(block) -> None:
    row = chosen("grpo", "trl")[0]
    found, rows = block(row, steps=1, batch=4, accumulation=2, group_size=4, num_rows=2)
    assert found["samples"] == 8
    assert 8 <= found["generated_tokens"] <= 8 * 8
    prompts = 4 * sum(len(row["prompt_ids"]) for row in rows)
    assert found["live_tokens"] == prompts + found["generated_tokens"]
    assert found["first_loss"] < -1  # the mean log-probability of given answers


@pytest.mark.slow
def test_answers_of_ppo_are_scored_by_an_adapter_in_the_peers_layout(block, tmp_path) -> None:
    row = next(row for row in chosen("ppo", "llamafactory") if row.name == "4x2")
    found, rows = block(row, steps=1, batch=2, accumulation=2, epochs=2, num_rows=4)
    assert found["samples"] == 4 == len(found["lengths"])
    assert found["generated_tokens"] == sum(found["lengths"])
    assert found["live_tokens"] == sum(len(row["prompt_ids"]) for row in rows) + found["generated_tokens"]
    assert found["first_loss"] < -1  # the mean log-probability of given answers
    assert found["first_grad_norm"] != 0  # their mean score
    (adapter,) = (tmp_path / "inputs").glob("reward-*")
    assert set(json.loads((adapter / "adapter_config.json").read_text("utf-8"))) <= set(KNOWN)
    assert set(load_file(adapter / "value_head.safetensors")) == {"v_head.summary.weight", "v_head.summary.bias"}
    assert found["peak_rss_bytes"] > 1e8


@pytest.mark.slow
def test_decoded_tokens_are_counted(block) -> None:
    found, _ = block(chosen("decode", "transformers")[0], slots=2)
    assert found["live_tokens"] == found["generated_tokens"] <= 4 * 8
    assert found["samples"] == 4


def test_an_environment_is_the_running_one_for_ours(tmp_path) -> None:
    assert venvs.interpreter(venvs.OWN, tmp_path) == Path(sys.executable)


def test_too_few_rows_that_fit_are_an_error(tiny_llama, demo, tmp_path) -> None:
    spec = {"stage": "dpo", "model": str(tiny_llama), "cutoff_len": 64, "num_rows": 8}
    with pytest.raises(ValueError, match="7 rows fit into 64 tokens; 8 are needed"):
        prepared(spec, demo, tmp_path)


def test_a_folder_is_written_as_older_libraries_read_it(tmp_path) -> None:
    new = tmp_path / "new"
    new.mkdir()
    config = {"dtype": "float32", "hidden_size": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    tokenizer = {"model": {"type": "BPE", "merges": [["a", "b"], ["ab", "c"]]}}
    named = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<|a|>"], "eos_token": "<|a|>"}
    for name, value in (("config", config), ("tokenizer", tokenizer), ("tokenizer_config", named)):
        (new / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    (new / "model.safetensors").write_bytes(b"weights")
    old = runpy.run_path(str(SIDES / "older_folder.py"))["older_folder"](new, tmp_path / "old")
    read = {name: json.loads((old / f"{name}.json").read_text("utf-8")) for name in ("config", "tokenizer")}
    plain = {"torch_dtype": "float32", "hidden_size": 8, "rope_theta": 5e5, "rope_scaling": None}
    assert read["config"] == plain
    assert read["tokenizer"]["model"]["merges"] == ["a b", "ab c"]
    assert json.loads((old / "tokenizer_config.json").read_text("utf-8")) == {
        **{"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<|a|>"], "eos_token": "<|a|>"}
    }
    assert (old / "model.safetensors").read_bytes() == b"weights"
