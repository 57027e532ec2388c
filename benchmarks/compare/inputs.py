"""The rows of a comparison, encoded once by posttrain: both sides work on the same token ids in the same order."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.compare.reward_adapter import reward_adapter

from posttrain.config import load_config
from posttrain.data.datasets import load_dataset
from posttrain.data.encode import EncodedPair, EncodedPrompt
from posttrain.data.template import EncodedRow, Template
from posttrain.models.load import load_tokenizer

DATASETS = {"sft": "alpaca_en_demo", "rm": "dpo_en_demo", "dpo": "dpo_en_demo"}
SAMPLED = "alpaca_en_demo"
ANSWER = 32
"""Tokens of a given answer whose log-probability both sides must agree on."""
_READ = 400


def prepared(spec: Mapping[str, Any], data: Path, folder: Path) -> dict[str, Any]:
    """Write the rows of a comparison and say where they are.

    Args:
        spec: stage, model, cutoff_len and ``num_rows``.
        data: folder of ``dataset_info.json`` and the files it names.
        folder: of all prepared inputs.

    Returns:
        ``rows``, ``data``, ``dataset`` and what else a side needs to know of them.

    Raises:
        ValueError: the data has fewer rows that fit.
    """
    stage, name = spec["stage"], DATASETS.get(spec["stage"], SAMPLED)
    info = json.loads((data / "dataset_info.json").read_text(encoding="utf-8"))[name]
    source = data / info["file_name"]
    asked = [stage, spec["model"], spec["cutoff_len"], spec["num_rows"], spec.get("max_new_tokens")]
    digest = hashlib.sha256(json.dumps(asked).encode() + source.read_bytes()).hexdigest()[:16]
    place = folder / f"{stage}-{digest}"
    found = {"rows": str(place / "rows.json"), "data": str(place), "dataset": name}
    if not (place / "about.json").is_file():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        texts = json.loads(source.read_text(encoding="utf-8"))[:_READ]
        _write(place / info["file_name"], texts)
        _write(place / "dataset_info.json", {name: info})
        encoded, about = _encoded(spec, place, name)
        chosen = _fitting(encoded, spec)
        _write(place / info["file_name"], [texts[number] for number in chosen])
        _write(place / "rows.json", [_plain(encoded[number], spec) for number in chosen])
        if stage not in DATASETS:
            answers, _ = _encoded({**spec, "stage": "sft"}, place, name)
            rows = [_plain(encoded[number], spec) for number in chosen]
            _write(place / "rows.json", [_answered(row, a) for row, a in zip(rows, answers, strict=True)])
        _write(place / "about.json", about)
    if stage == "ppo":
        of_reward = hashlib.sha256(json.dumps([spec["model"], spec["lora_rank"], str(data)]).encode()).hexdigest()[:16]
        reward = reward_adapter(Path(spec["model"]), data, folder / f"reward-{of_reward}", rank=spec["lora_rank"])
        found["reward_folder"] = str(reward)
    return found | json.loads((place / "about.json").read_text(encoding="utf-8"))


def _encoded(spec: Mapping[str, Any], place: Path, name: str) -> tuple[Sequence[Any], dict[str, Any]]:
    """Every row of the dataset at its full length (of sft: cut), and the tokens that end an answer."""
    stage = spec["stage"]
    cutoff = spec["cutoff_len"] if stage == "sft" else 1 << 15
    keys = {
        **{"model_name_or_path": spec["model"], "stage": "sft", "dataset": name, "dataset_dir": str(place)},
        **{"output_dir": str(place / "unused"), "cutoff_len": cutoff},
    }
    config = load_config(keys, command="train")
    tokenizer = load_tokenizer(Path(spec["model"]))
    splits = load_dataset(replace(config.data, overwrite_cache=True), tokenizer, stage)
    if splits.report.dropped:
        raise ValueError(f"rows of {name} cannot be used: {splits.report.sentence()}")
    template = splits.template or Template.configured(tokenizer, config.data, stage)
    return splits.train, {"stop_token_ids": list(template.stop_token_ids)}


def _fitting(encoded: Sequence[Any], spec: Mapping[str, Any]) -> list[int]:
    """The first rows that are no longer than the cut-off."""
    fits = [number for number, row in enumerate(encoded) if len(row) <= spec["cutoff_len"]]
    if len(fits) < spec["num_rows"]:
        raise ValueError(f"{len(fits)} rows fit into {spec['cutoff_len']} tokens; {spec['num_rows']} are needed")
    return fits[: spec["num_rows"]]


def _plain(row: Any, spec: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(row, EncodedRow):
        return {"input_ids": list(row.input_ids), "loss_mask": [int(counts) for counts in row.loss_mask]}
    if isinstance(row, EncodedPair):
        start = row.chosen.loss_mask.index(True)
        pair = {"prompt_ids": row.chosen.input_ids[:start]}
        for name, side in (("chosen_ids", row.chosen), ("rejected_ids", row.rejected)):
            if side.input_ids[:start] != pair["prompt_ids"] or not all(side.loss_mask[start:]):
                raise ValueError(f"a pair of stage {spec['stage']} is no prompt with two answers")
            pair[name] = list(side.input_ids[start:])
        return pair
    assert isinstance(row, EncodedPrompt)
    messages = [{"role": message.role, "content": message.content} for message in row.messages]
    return {"prompt_ids": list(row.input_ids), "text": row.text, "messages": messages}


def _answered(row: dict[str, Any], answered: EncodedRow) -> dict[str, Any]:
    """The prompt with the beginning of the answer that the data has."""
    start = len(row["prompt_ids"])
    if answered.input_ids[:start] != row["prompt_ids"]:
        raise ValueError("a prompt is no beginning of the row with its answer")
    return {**row, "answer_ids": list(answered.input_ids[start : start + ANSWER])}


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
