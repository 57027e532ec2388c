"""posttrain's stage sft, rm or dpo: a run as ``run_exp`` makes it, of which the loop is measured.

In dpo the pass that asks the reference is measured too; ``ours_cached`` is a run that finds what an earlier one asked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from start import set_start
from window import Window, read_rows, read_spec, write_result

from posttrain.config import load_config
from posttrain.data.encode import EncodedPair
from posttrain.engine import Processes
from posttrain.train import offline, reference, run
from posttrain.train.parts import Parts


def keys(spec: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the run; what is not said here is at its default."""
    return {
        "stage": spec["stage"],
        "model_name_or_path": spec["model"],
        "dataset": spec["dataset"],
        "dataset_dir": spec["data"],
        "output_dir": str(Path(spec["work"]) / "run"),
        "cutoff_len": spec["cutoff_len"],
        "per_device_train_batch_size": spec["batch"],
        "gradient_accumulation_steps": spec["accumulation"],
        "max_steps": spec["steps"],
        "learning_rate": spec["learning_rate"],
        "lr_scheduler_type": "constant",
        "lora_rank": spec["lora_rank"],
        "lora_alpha": spec["lora_alpha"],
        "pref_beta": spec["beta"],
        "seed": spec["seed"],
        "disable_shuffling": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def begun(config: dict[str, Any]) -> Parts:
    """A run right before its loop."""
    parts = run.prepared(load_config(config, command="train"), Processes(), print)
    assert isinstance(parts, Parts)
    set_start((name, p) for name, p in parts.engine.roles.named_parameters() if p.requires_grad)
    return parts


def log(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of the run's own log."""
    text = (Path(spec["work"]) / "run" / "trainer_log.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def ids(row: Any) -> list[int]:
    """All tokens of a row, of both rows of a pair."""
    if isinstance(row, EncodedPair):
        return [*row.chosen.input_ids, *row.rejected.input_ids]
    return list(row.input_ids)


def given(row: dict[str, Any]) -> list[int]:
    """The same of a row that the other side gets."""
    if "input_ids" in row:
        return row["input_ids"]
    return [*row["prompt_ids"], *row["chosen_ids"], *row["prompt_ids"], *row["rejected_ids"]]


def main() -> None:
    spec = read_spec()
    torch.set_num_threads(spec["threads"])
    parts = begun(keys(spec))
    rows = [ids(row) for row in parts.splits.train]
    if rows != [given(row) for row in read_rows(spec)]:
        raise RuntimeError("the run trains on other tokens than those that the other side is given")
    window, asked, measured = Window(), [], reference._measured
    reference._measured = lambda *args: asked.append(1) or measured(*args)  # type: ignore[assignment,func-returns-value]
    run.with_reference = window.around(run.with_reference)  # type: ignore[attr-defined]
    offline.fit = window.around(offline.fit)  # type: ignore[assignment]
    run.fit(parts, print)
    first = log(spec)[0]
    used = rows[: spec["batch"] * spec["accumulation"] * spec["steps"]]
    trained = sum(p.numel() for p in parts.engine.roles.parameters() if p.requires_grad)
    write_result(
        window,
        live_tokens=sum(map(len, used)),
        samples=len(used),
        first_loss=first["loss"],
        first_grad_norm=first["grad_norm"],
        notes=[f"{trained} numbers train", f"the reference was asked {len(asked)} times"],
    )


if __name__ == "__main__":
    main()
