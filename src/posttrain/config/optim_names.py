"""Names of optimizers as transformers has them: which are here, which are another's, which are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.config.documents import parse_scalar
from posttrain.errors import UserError

HONOURED = (
    *("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop", "adafactor"),
    *("adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"),
    *("lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit"),
    *("ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"),
    *("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
)
"""Names that build what they say."""

SAME: Mapping[str, str] = {
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "lion": "lion_32bit",
    "paged_lion": "paged_lion_32bit",
    "paged_ademamix": "paged_ademamix_32bit",
}
"""Second names of the same."""

READ_AS: Mapping[str, str] = dict.fromkeys(
    ("adamw", "adamw_hf", "adamw_torch_xla", "adamw_torch_npu_fused", "adamw_apex_fused"), "adamw_torch"
)
"""Other programs of the same update."""

_ELSEWHERE: Mapping[str, str] = {
    "galore": "projects gradients of all weights; with finetuning_type: lora the adapters are small already",
    "apollo": "projects gradients of all weights; with finetuning_type: lora the adapters are small already",
    "lomo": "updates weights inside the backward pass, before gradients of several processes are added up",
    "adalomo": "updates weights inside the backward pass, before gradients of several processes are added up",
    "schedule_free": "replaces the learning rate schedule and keeps second weights; use lr_scheduler_type: constant",
    "adamw_anyprecision": "keeps states in half precision; adamw_8bit saves more",
    "adamw_torch_4bit": "keeps states in 4 bits through torchao; adamw_8bit keeps them in 8 through bitsandbytes",
    "adamw_torch_8bit": "keeps states in 8 bits through torchao; adamw_8bit does through bitsandbytes",
}


def refusal(name: str) -> str:
    """Why an optimizer is not here, as the end of the sentence "`optim: name` ..."."""
    for part, why in _ELSEWHERE.items():
        if part in name:
            return f"is not supported: it {why}. Use adamw_torch, or one of {', '.join(HONOURED[2:])}"
    return f"is not supported; use one of {', '.join(HONOURED)}"


def optimizer_options(text: str | None) -> dict[str, Any]:
    """``optim_args`` as keyword arguments: ``momentum=0.9, nesterov=true``.

    Raises:
        UserError: a part of it is not name=value.
    """
    found: dict[str, Any] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, separator, value = (piece.strip() for piece in part.partition("="))
        if not separator or not name.isidentifier() or not value:
            raise UserError(f"optim_args: `{part.strip()}` is not name=value; write, for example, momentum=0.9")
        found[name] = parse_scalar(value)
    return found
