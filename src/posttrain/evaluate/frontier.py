"""What the checkpoints of an online run gained in reward, and how far they went from their reference for it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain.config import RunConfig
from posttrain.errors import UserError
from posttrain.evaluate.bench import Bench, Found, as_records
from posttrain.evaluate.bootstrap import mean_of
from posttrain.evaluate.frontier_plot import plot_frontier
from posttrain.evaluate.responses import Responses, read_responses
from posttrain.evaluate.worth import Worth

REFERENCE, FINAL = "reference", "final"
PLOT = "frontier.png"
_NAME = re.compile(r"checkpoint-(\d+)")
_ADAPTER = "adapter_config.json"

MEASURES = (
    mean_of("kl", title="KL to the reference", unit="nats", better=""),
    mean_of("reward", unit="reward"),
    mean_of("response_length", title="length in tokens", better=""),
    mean_of("ended", name="ended_share", title="ended by itself", unit="share", is_share=True),
)


def frontier(bench: Bench) -> Found:
    """Mean reward and mean KL of every checkpoint of ``checkpoints_of`` on held-out prompts, the reference's as 0.

    KL = mean over completions y of Σ_t log π(y_t) − log π_ref(y_t),  y drawn from π
    """
    checkpoints = checkpoint_folders(bench.config)
    if bench.config.reward.reward_ensemble:
        bench.notify("reward_ensemble is left out: evaluations score with reward_model alone")
    of_all = _with_variants(bench.config, checkpoints)
    inner = Bench(of_all, bench.notify, bench.progress)
    _check_references(inner, checkpoints)
    responses = read_responses(inner)
    if not bench.config.generation.do_sample:
        bench.notify(
            "completions are greedy (do_sample: false): the KL is that of the likeliest completions, which says less "
            "than that of drawn ones"
        )
    bench.began = inner.began
    found = _records(inner, responses)
    metrics = {
        name: {"step": _step(bench.config, name), **bench.figures(MEASURES, records)} for name, records in found.items()
    }
    if bench.folder is not None:
        plot_frontier(metrics, bench.folder / PLOT)
        bench.notify(f"drew {bench.folder / PLOT}")
    return Found(
        variants=metrics,
        num_rows=len(responses),
        records=as_records(responses.ids, found),
        differences=_against_reference(bench, found),
        decoding=responses.decoding,
    )


def checkpoint_folders(config: RunConfig) -> dict[str, Path]:
    """``checkpoint-N`` -> its folder, in the order of N, at most ``max_checkpoints`` of them, the last one included.

    What the run ended with is the last of them: ``final`` where no checkpoint was written then.

    Raises:
        UserError: the run has none, or none that is an adapter.
    """
    folder = Path(str(config.evaluate.checkpoints_of)).expanduser()
    if not folder.is_dir():
        raise UserError(f"checkpoints_of: there is no folder {folder}")
    found = sorted((int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)))
    total = _total_steps(folder)
    if total is not None and total not in (step for step, _ in found) and (folder / _ADAPTER).is_file():
        found.append((total, folder))
    if not found:
        raise UserError(
            f"checkpoints_of: {folder} holds no checkpoint-N folder; train with save_steps, and with a "
            "save_total_limit that keeps them (null keeps all)"
        )
    bare = [path for _, path in found if not (path / _ADAPTER).is_file()]
    if bare:
        raise UserError(
            f"checkpoints_of: {bare[0]} holds no adapter ({_ADAPTER}): task frontier measures runs with "
            "finetuning_type: lora, whose checkpoints and reference stand on one backbone"
        )
    limit = config.evaluate.max_checkpoints
    if limit is not None and len(found) > limit:
        # evenly spaced, from the end
        places = {len(found) - 1 - round(i * (len(found) - 1) / max(limit - 1, 1)) for i in range(limit)}
        found = [each for place, each in enumerate(found) if place in places]
    return {FINAL if path == folder else path.name: path for _, path in found}


def _total_steps(folder: Path) -> int | None:
    """How many steps a finished run made; None where it does not say."""
    try:
        steps = json.loads((folder / "all_results.json").read_text(encoding="utf-8")).get("total_steps")
    except (OSError, ValueError, AttributeError):
        return None
    return steps if isinstance(steps, int) else None


def _with_variants(config: RunConfig, checkpoints: Mapping[str, Path]) -> RunConfig:
    """The configuration with a variant for every checkpoint; the adapters of a run know what they stand on."""
    variants = tuple(f"{name}={path}" for name, path in checkpoints.items())
    return replace(
        config,
        model=replace(config.model, adapter_name_or_path=()),
        evaluate=replace(config.evaluate, variants=variants),
    )


def _check_references(bench: Bench, checkpoints: Mapping[str, Path]) -> None:
    """Add the reference as a variant of its own.

    Raises:
        UserError: the run was no online one, so that nothing was kept close to a reference.
    """
    wardrobe = bench.wardrobe
    for name, path in checkpoints.items():
        outfit = wardrobe.variants[name]
        if outfit.reference is None:
            raise UserError(
                f"checkpoints_of: {path} was not written by a stage that samples (ppo, grpo ...), so it has no "
                "reference to be measured against"
            )
    first = next(iter(wardrobe.variants.values()))
    assert first.reference is not None
    reference = replace(first, wears=first.reference, head=None, links=first.links[:-1])
    wardrobe.variants = {REFERENCE: reference, **wardrobe.variants}


def _records(bench: Bench, responses: Responses) -> dict[str, list[dict[str, Any]]]:
    """Variant -> a record for each item, with the reward that the configuration describes."""
    found = {name: [responses.record(name, place) for place in range(len(responses))] for name in responses.texts}
    reward = bench.config.reward
    if reward.reward_funcs or reward.reward_classifier or reward.model_url:
        assert responses.prompts is not None
        assert responses.template is not None
        worth = Worth(bench, responses.prompts, responses.template)
        for name, texts in responses.texts.items():
            for record, value in zip(found[name], worth.of(texts, f"of {name}"), strict=True):
                record["reward"] = value
    return found


def _against_reference(bench: Bench, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """How the reward of each checkpoint differs from the reference's, prompt by prompt."""
    rewards = [measure for measure in MEASURES if measure.name == "reward"]
    differences = []
    for name in found:
        if name != REFERENCE:
            differences += bench.differences(rewards, {REFERENCE: found[REFERENCE], name: found[name]})
    return differences


def _step(config: RunConfig, name: str) -> int:
    match = _NAME.fullmatch(name)
    if match:
        return int(match[1])
    return (_total_steps(Path(str(config.evaluate.checkpoints_of)).expanduser()) or 0) if name == FINAL else 0
