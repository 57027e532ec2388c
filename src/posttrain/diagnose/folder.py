"""The folder that a run writes to: what lies there, and whether its checkpoints fit onto the disk."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from posttrain.config import KEYS, RunConfig
from posttrain.config.documents import read_document
from posttrain.diagnose.findings import Finding
from posttrain.errors import UserError
from posttrain.train.checkpoints import checkpoint_step
from posttrain.train.preview import checkpoints_written
from posttrain.train.run_directory import RunDirectory
from posttrain.train.schedule import StepsPlan

_SHOWN = 5
# They say where and how loudly a run works, not what it computes.
_HARMLESS = {
    *("overwrite_output_dir", "resume_from_checkpoint", "output_dir", "disable_tqdm", "report_to", "run_name"),
    *("logging_steps", "save_steps", "save_total_limit", "plot_loss", "overwrite_cache", "ddp_timeout"),
}
_MANY = 20
_OF_A_RUN = re.compile(
    r"checkpoint-\d+|\.(tmp|old)-.*|runs|training_.*\.png|.*\.safetensors|.*\.safetensors\.index\.json|"
    r"(adapter_|generation_)?config\.json|config\.yaml|lineage\.json|(all|train|eval)_results\.json|"
    r"(trainer_log|completions|predictions)\.jsonl|tokenizer.*|special_tokens_map\.json|added_tokens\.json|"
    r"trackers\.json|wandb|swanlab|inputs|vocab\..*|merges\.txt|chat_template\.jinja|.*\.model|README\.md"
)


def output_dir(config: RunConfig, reads: list[str]) -> Iterator[Finding]:
    """What the run would find in its folder.

    Args:
        config: of the run. reads: folders that it loads from.
    """
    settings = config.train
    folder = Path(settings.output_dir).expanduser()
    place = {"overwrite": settings.overwrite_output_dir, "resume": settings.resume_from_checkpoint, "reads": reads}
    try:
        RunDirectory.check(folder, **place)  # type: ignore[arg-type]
    except UserError as error:
        yield Finding(level="error", check="output_dir", message=str(error))
        return
    run = RunDirectory(folder)
    if not folder.exists():
        yield Finding(level="ok", check="output_dir", message=f"{folder} will be made")
        return
    yield _state(config, run)
    foreign = sorted(path.name for path in folder.iterdir() if not _OF_A_RUN.fullmatch(path.name))
    if foreign:
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        message = f"{folder} holds what no run wrote: {', '.join(foreign[:_SHOWN])}{more}"
        fix = "They are left alone; another output_dir keeps them apart"
        yield Finding(level="warning", check="output_dir", message=message, fix=fix, count=len(foreign))


def _state(config: RunConfig, run: RunDirectory) -> Finding:
    settings, checkpoints = config.train, run.checkpoints()
    latest = run.latest_checkpoint()
    if settings.overwrite_output_dir and not settings.resume_from_checkpoint and (run.finished or checkpoints):
        what = f"a finished run of {run.finished_steps} steps" if run.finished else f"{len(checkpoints)} checkpoints"
        message = f"{what} in {run.path} will be removed (overwrite_output_dir: true)"
        return Finding(level="warning", check="output_dir", message=message, fix="Give another output_dir to keep it")
    if run.finished:
        message = (
            f"{run.path} holds a finished run of {run.finished_steps} steps, which resume_from_checkpoint speaks of"
        )
        fix = "It trains only if the steps of this configuration are more"
        return Finding(level="warning", check="output_dir", message=message, fix=fix)
    if latest is None:
        return Finding(level="ok", check="output_dir", message=f"{run.path} holds no run")
    step = checkpoint_step(latest)
    changed = changed_keys(config, run.path)
    message = f"an interrupted run; this one would go on from {latest.name}"
    if changed:
        fix = "overwrite_output_dir: true starts afresh; with the old values the run is the one it was"
        message += f", with other values than it began with: {', '.join(changed[:_SHOWN])}"
        return Finding(level="warning", check="output_dir", message=message, fix=fix, details={"step": step})
    return Finding(level="ok", check="output_dir", message=message, details={"step": step})


def changed_keys(config: RunConfig, folder: Path) -> list[str]:
    """``key: old -> new`` for what the run in ``folder`` was started with otherwise."""
    try:
        before = read_document(folder / "config.yaml").data
    except UserError:  # a run that never came to its first step
        return []
    now = config.to_flat()
    return [
        f"{key}: {before[key]} -> {now[key]}"
        for key in KEYS
        if key in before and key not in _HARMLESS and before[key] != now[key]
    ]


def disk(config: RunConfig, plan: StepsPlan, checkpoint: int, model: int) -> Finding:
    """Whether the checkpoints that will be there at once fit.

    Args:
        config: of the run. plan: its steps. checkpoint, model: bytes of one checkpoint, and of what the run ends with.
    """
    settings = config.train
    written = checkpoints_written(config, plan)
    kept = min(written, settings.save_total_limit or written)
    # a new one is whole before an old one goes; the best may be kept beside the latest
    at_once = min(written, kept + 1)
    need = at_once * checkpoint + model
    folder = Path(settings.output_dir).expanduser()
    existing = next((p for p in (folder, *folder.parents) if p.exists()), Path("."))
    free = shutil.disk_usage(existing).free
    message = (
        f"{written} checkpoints of {megabytes(checkpoint)}, {at_once} at once, and the model: {megabytes(need)}; "
        f"{megabytes(free)} free in {existing}"
    )
    details = {"needed_bytes": need, "free_bytes": free, "checkpoints": written}
    if need > free:
        fix = "Set save_total_limit: 2, a larger save_steps, or save_only_model: true; or write to another disk"
        return Finding(level="error", check="disk", message=message, fix=fix, details=details)
    if settings.save_total_limit is None and written > _MANY:
        fix = "save_total_limit: 3 keeps the last three"
        return Finding(level="warning", check="disk", message=message, fix=fix, details=details)
    return Finding(level="ok", check="disk", message=message, details=details)


def megabytes(count: int) -> str:
    """Bytes as a reader wants them."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
