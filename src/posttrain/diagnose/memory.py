"""Whether a run fits into the memory of this machine, and which key would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from posttrain.config import RunConfig, is_online
from posttrain.diagnose.findings import Finding
from posttrain.diagnose.folder import megabytes
from posttrain.train.machine import free_memory_bytes
from posttrain.train.memory import MemoryPlan, memory_plan
from posttrain.train.preview import unit

# The interpreter with its libraries, which the plan leaves out.
_LIBRARIES = 700_000_000
_TIGHT = 0.85
Change = tuple[str, Callable[[RunConfig], RunConfig]]


def longest_row(rows: Sequence[Any]) -> int:
    """Tokens of the longest row; of a pair, those of both answers on one prompt."""
    return max(map(unit, rows), default=0)


def planned(config: RunConfig, rows: Sequence[Any]) -> MemoryPlan:
    """The plan of a run whose rows are these."""
    longest = longest_row(rows) or None
    if is_online(config.method.stage):
        return memory_plan(config, longest_prompt=longest)
    return memory_plan(config, longest=longest)


def memory(config: RunConfig, plan: MemoryPlan, rows: Sequence[Any]) -> Iterator[Finding]:
    """Planned memory against what is free.

    Args:
        config: of the run. plan: of it. rows: what it trains on.
    """
    free, need = free_memory_bytes(), plan.peak + (0 if plan.device.startswith("cuda") else _LIBRARIES)
    block = [
        f"{', '.join(model.roles)} on {model.name}: weights {megabytes(model.weights)}, adapters "
        f"{megabytes(model.adapters)}, gradients {megabytes(model.gradients)}, optimizer {megabytes(model.optimizer)}"
        for model in plan.models
    ]
    block.append(f"backward pass of {plan.num_tokens} tokens: {megabytes(plan.activations + plan.logits)}")
    if plan.kv_cache:
        block.append(f"sampling: merged layers {megabytes(plan.merged)}, keys and values {megabytes(plan.kv_cache)}")
    if plan.lower_states:
        block.append(f"states behind the layers beneath all training: {megabytes(plan.lower_states)}")
    message = f"about {megabytes(need)} at the fullest, {megabytes(free)} free on {plan.device}"
    details = {"planned_bytes": need, "free_bytes": free}
    finding = Finding(level="ok", check="memory", message=message, details=details, block=tuple(block))
    if need > free:
        yield replace(finding, level="error", message=f"{message}: it does not fit", fix=remedy(config, rows, free))
    elif need > _TIGHT * free:
        yield replace(
            finding, level="warning", message=f"{message}: tight", fix=remedy(config, rows, int(_TIGHT * free))
        )
    else:
        yield finding


def remedy(config: RunConfig, rows: Sequence[Any], limit: int) -> str:
    """The first change of keys with which the run fits, or the best of them."""
    best, saved = "", planned(config, rows).peak
    for name, change in _changes(config):
        changed = planned(change(config), rows)
        need = changed.peak + (0 if changed.device.startswith("cuda") else _LIBRARIES)
        if need <= limit:
            return f"Set {name}: {megabytes(need)}"
        if changed.peak < saved:
            best, saved = name, changed.peak
    if best:
        return f"Set {best} ({megabytes(saved)} then), and take a smaller model or cutoff_len"
    return "Take a smaller model, a smaller cutoff_len, or a machine with more memory"


def _changes(config: RunConfig) -> Iterator[Change]:
    """Changes from harmless to weighty; each adds to nothing."""

    def train(**keys: Any) -> Callable[[RunConfig], RunConfig]:
        return lambda given: replace(given, train=replace(given.train, **keys))

    limit = config.train.max_tokens_per_microbatch or 512
    if limit > 128:
        yield (
            f"max_tokens_per_microbatch: {limit // 2} (changes no result)",
            train(max_tokens_per_microbatch=limit // 2),
        )
    if is_online(config.method.stage) and config.online.num_rollout_slots > 1:
        slots = max(1, config.online.num_rollout_slots // 2)
        yield (
            f"num_rollout_slots: {slots} (changes no result)",
            lambda given: replace(given, online=replace(given.online, num_rollout_slots=slots)),
        )
    if not config.train.gradient_checkpointing:
        yield "gradient_checkpointing: true (slower, the same result)", train(gradient_checkpointing=True)
        yield (
            f"gradient_checkpointing: true and max_tokens_per_microbatch: {limit // 2}",
            train(gradient_checkpointing=True, max_tokens_per_microbatch=limit // 2),
        )
    if config.method.finetuning_type != "lora":
        kind = config.ppo if config.ppo.critic != "model" else replace(config.ppo, critic="adapter")
        yield (
            "finetuning_type: lora" + (" and critic: adapter" if kind is not config.ppo else ""),
            lambda given: replace(given, method=replace(given.method, finetuning_type="lora"), ppo=kind),
        )
    elif config.model.quantization_bit is None:
        yield (
            "quantization_bit: 4 (the frozen base in 4 bits)",
            lambda given: replace(given, model=replace(given.model, quantization_bit=4)),
        )
