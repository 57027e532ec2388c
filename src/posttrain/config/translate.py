"""Values that are written differently elsewhere: read as what they mean here, with a note."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from posttrain.config.foreign import REFUSED_VALUES
from posttrain.config.optim_names import HONOURED, READ_AS, SAME, refusal

TRACKERS = ("tensorboard", "wandb", "swanlab", "mlflow", "all")
"""Where the numbers of a run can be sent; all is what is installed."""

Translation = tuple[dict[str, Any], str | None]
"""The keys and values that a line stands for here, and a sentence about the change."""


class RefusalError(ValueError):
    """A value that is known and not supported; the text completes the sentence "`key: value` ..."."""


def translate(key: str, value: object) -> Translation:
    """What one line of a configuration stands for.

    Raises:
        RefusalError: the value is known and not supported.
    """
    sentence = REFUSED_VALUES.get((key, str(value).strip().lower()))
    if sentence:
        raise RefusalError(sentence)
    reader = _READERS.get(key)
    return reader(value) if reader else ({key: value}, None)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _names(value: object) -> list[str]:
    if isinstance(value, list | tuple):
        return [str(item).strip() for item in value]
    # `report_to: no` is YAML for false.
    return [] if value is None or value is False else [name.strip() for name in str(value).split(",") if name.strip()]


def _warmup_steps(value: object) -> Translation:
    number = _number(value)
    if number is None or not 0 < number < 1:
        return {"warmup_steps": value}, None
    return {"warmup_ratio": number}, (
        f"`warmup_steps: {value}` is less than one step; taken as a share of the run (warmup_ratio: {value})"
    )


def _pure_bf16(value: object) -> Translation:
    if str(value).lower() not in ("true", "1"):
        return {}, None
    return {"bf16": True}, "`pure_bf16` is read as `bf16: true`; the optimizer keeps float32 weights"


def _max_length(value: object) -> Translation:
    return {"max_new_tokens": value}, (
        f"`max_length: {value}` is read as `max_new_tokens: {value}`: the limit counts the completion alone"
    )


def _optim(value: object) -> Translation:
    name = str(value).strip().lower()
    if name in HONOURED or name in SAME:
        return {"optim": SAME.get(name, name)}, None
    if name in READ_AS:
        return {"optim": READ_AS[name]}, f"`optim: {value}` is read as `{READ_AS[name]}`: same update"
    raise RefusalError(refusal(name))


def _adafactor(value: object) -> Translation:
    if str(value).strip().lower() not in ("true", "1"):
        return {}, None
    return {"optim": "adafactor"}, "`adafactor: true` is read as `optim: adafactor`"


def _report_to(value: object) -> Translation:
    names = _names(value)
    if names in ([], ["none"]):
        return {"report_to": []}, None
    unknown = [name for name in names if name not in TRACKERS]
    known = [name for name in names if name in TRACKERS] or ["tensorboard"]
    if not unknown:
        return {"report_to": known}, None
    return {"report_to": known}, (
        f"`report_to: {', '.join(unknown)}` is read as {', '.join(known)}; the same figures are in trainer_log.jsonl"
    )


def _sampling_strategy(value: object) -> Translation:
    name = str(value).strip().lower()
    meaning: dict[str, dict[str, Any]] = {
        "random": {},
        "sequential": {"disable_shuffling": True},
        "group_by_length": {"group_by_length": True},
    }
    if name not in meaning:
        raise RefusalError("is not one of random, sequential, group_by_length")
    written = ", ".join(f"{key}: true" for key in meaning[name]) or "the order that is shuffled anyway"
    return meaning[name], f"`train_sampling_strategy: {value}` is read as {written}"


def _beams(value: object) -> Translation:
    if value is None or _number(value) == 1:
        return {"num_beams": 1}, None
    raise RefusalError("is not supported; completions are sampled, or greedy with do_sample: false, so set it to 1")


def _eval_beams(key: str) -> Callable[[object], Translation]:
    def read(value: object) -> Translation:
        _beams(value)
        return {}, f"`{key}` is ignored: completions are sampled, not searched"

    return read


def _generation_max_length(value: object) -> Translation:
    if value is None:
        return {}, None
    return {"max_new_tokens": value}, f"`generation_max_length: {value}` is read as `max_new_tokens: {value}`"


def _additional_target(value: object) -> Translation:
    if _names(value) and _names(value) != ["none"]:
        raise RefusalError(
            "is not supported: only the adapters train; to train other modules use finetuning_type: freeze"
        )
    return {"additional_target": []}, None


def _load_in(bits: int) -> Callable[[object], Translation]:
    def read(value: object) -> Translation:
        if str(value).strip().lower() not in ("true", "1"):
            return {}, None
        return {"quantization_bit": bits}, f"`load_in_{bits}bit: true` is read as `quantization_bit: {bits}`"

    return read


def _quantization_method(value: object) -> Translation:
    name = str(value).strip().lower()
    return {"quantization_method": "bnb" if name == "bitsandbytes" else value}, None


def _reward_adapters(value: object) -> Translation:
    names = [name for name in _names(value) if name != "none"]
    if not names:
        return {}, None
    if len(names) > 1:
        raise RefusalError(
            "is not supported: a reward adapter brings the parents that it records; give its own folder, the last"
        )
    return {"reward_model": names[0]}, (
        f"`reward_model_adapters: {names[0]}` is read as `reward_model: {names[0]}`: the folder says what it stands on"
    )


def _scheduler_kwargs(value: object) -> Translation:
    read = value
    if isinstance(value, str) and value.strip():
        try:
            read = json.loads(value)
        except json.JSONDecodeError as error:
            raise RefusalError(f'is not JSON ({error.msg}); write a block or {{"min_lr": 1e-6}}') from None
    if not read:
        return {"lr_scheduler_kwargs": None}, None
    if not isinstance(read, Mapping):
        raise RefusalError('must be a block of names and numbers, such as {"min_lr": 1e-6}')
    plain = {str(name): _plain_number(number) for name, number in read.items()}
    return {"lr_scheduler_kwargs": json.dumps(plain, sort_keys=True)}, None


def _plain_number(value: object) -> object:
    """YAML reads 1e-6, without a point, as text."""
    number = _number(value) if isinstance(value, str) else None
    return value if number is None else number


def _task(value: object) -> Translation:
    name = str(value).strip().lower()
    if any(exam in name for exam in ("mmlu", "ceval", "cmmlu")):
        raise RefusalError(
            "is a question set of lm-eval; write `task: lm_eval` and its name in `lm_eval_tasks` "
            '(pip install "posttrain[lm-eval]")'
        )
    return {"task": value}, None


_READERS: Mapping[str, Callable[[object], Translation]] = {
    "warmup_steps": _warmup_steps,
    "pure_bf16": _pure_bf16,
    "max_length": _max_length,
    "optim": _optim,
    "adafactor": _adafactor,
    "report_to": _report_to,
    "train_sampling_strategy": _sampling_strategy,
    "num_beams": _beams,
    "eval_num_beams": _eval_beams("eval_num_beams"),
    "generation_num_beams": _eval_beams("generation_num_beams"),
    "generation_max_length": _generation_max_length,
    "additional_target": _additional_target,
    "task": _task,
    "load_in_4bit": _load_in(4),
    "load_in_8bit": _load_in(8),
    "quantization_method": _quantization_method,
    "lr_scheduler_kwargs": _scheduler_kwargs,
    "reward_model_adapters": _reward_adapters,
}

TRANSLATED = frozenset(_READERS)
"""Keys whose values are read by this module; some of them have no field of their own."""
