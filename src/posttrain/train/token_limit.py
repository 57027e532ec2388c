"""How many tokens a micro-batch holds where the user does not say: on a GPU what its memory is planned to take."""

from __future__ import annotations

from posttrain.config import RunConfig
from posttrain.engine import DEFAULT_MAX_TOKENS, Engine
from posttrain.errors import UserError
from posttrain.train.machine import free_memory_bytes
from posttrain.train.memory import MemoryPlan, memory_plan

LARGEST = 16_384
"""More would take memory and keep a GPU no busier."""
_USED = 0.8  # the rest is for fragments, and for what libraries set aside


def planned_max_tokens(plan: MemoryPlan, free: int) -> int:
    """Tokens of a micro-batch for which the rest of a GPU suffices, a multiple of the default and at most ``LARGEST``.

    Args:
        plan: of the run. free: bytes that are free once the weights are there.
    """
    grows = sum(model.gradients + model.optimizer for model in plan.models) + plan.logits
    per_token = max(1, plan.activations // max(1, plan.num_tokens))
    fits = int((_USED * free - grows) // per_token)
    return max(DEFAULT_MAX_TOKENS, min(LARGEST, fits // DEFAULT_MAX_TOKENS * DEFAULT_MAX_TOKENS))


def choose_max_tokens(config: RunConfig, engine: Engine) -> str:
    """Let an engine on a GPU make micro-batches as large as its memory allows, the same in all processes.

    Returns:
        A sentence for the user; "" where nothing was chosen: the user did, or there is no GPU.
    """
    if config.train.max_tokens_per_microbatch is not None or engine.device.type != "cuda":
        return ""
    try:
        chosen = planned_max_tokens(memory_plan(config), free_memory_bytes())
    except UserError:  # models that were handed in, of which no folder is known
        chosen = DEFAULT_MAX_TOKENS
    chosen = min(engine.processes.gather(chosen))
    engine.shares.reset(chosen)
    return f"micro-batches hold up to {chosen} tokens (max_tokens_per_microbatch), for which memory should suffice"
