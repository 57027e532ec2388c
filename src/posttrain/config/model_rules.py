"""Rules about how the base is loaded: in how many bits, and where."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from posttrain.config.run import Command, RunConfig
from posttrain.config.stages import is_online

_BITS = (4, 8)

Rule = Callable[[RunConfig], Iterator[tuple[str, str]]]


def model_rules(command: Command) -> list[Rule]:
    """The rules of this module that concern a command."""
    rules: list[Rule] = [device_problems]
    if command not in ("export", "label"):
        rules += [quantization_problems]
    if command in ("train", "loop"):
        rules += [adapter_kind_problems]
    return rules


def quantization_problems(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Bits that there are not, and what cannot train or stand on a quantised base."""
    model, method = config.model, config.method
    for key in ("quantization_bit", "ref_model_quantization_bit", "reward_model_quantization_bit"):
        bits = config.value(key)
        if bits is not None and bits not in _BITS:
            yield key, f"`{key}: {bits}` is not supported: bitsandbytes has 4 and 8 bits"
            return
    if model.quantization_bit and method.finetuning_type != "lora":
        yield (
            "quantization_bit",
            f"`quantization_bit` does not go with finetuning_type: {method.finetuning_type}: quantised weights cannot "
            "train; use finetuning_type: lora, or remove quantization_bit",
        )
    own_reference = bool(config.preference.ref_model)
    if not own_reference and model.ref_model_quantization_bit not in (None, model.quantization_bit):
        yield (
            "ref_model_quantization_bit",
            "`ref_model_quantization_bit` must be what quantization_bit is: the reference is the model that trains as "
            "it started, on the same base in memory; remove it, set quantization_bit: "
            f"{model.ref_model_quantization_bit}, or name another model in ref_model",
        )


def adapter_kind_problems(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Kinds of LoRA that do not go together, or not with the stage or the base."""
    method, bits = config.method, config.model.quantization_bit
    for key in ("use_dora", "pissa_init", "loraplus_lr_ratio", "trainable_layers"):
        if config.value(key) and method.finetuning_type != "lora":
            instead = "; there it is freeze_trainable_layers" if key == "trainable_layers" else ""
            instead = instead if method.finetuning_type == "freeze" else ""
            yield key, f"`{key}` is about LoRA adapters; finetuning_type: {method.finetuning_type} has none{instead}"
            return
    layers = method.trainable_layers
    if layers is not None and layers > 1 and not layers.is_integer():
        yield (
            "trainable_layers",
            f"`trainable_layers: {layers:g}` is neither a number of layers nor a share of them; write {int(layers)}, "
            "or a share below 1",
        )
    if method.use_dora and method.pissa_init:
        yield (
            "pissa_init",
            "`pissa_init` and `use_dora` do not go together: what they learn could not be saved as an adapter on the "
            "base; keep one",
        )
    if method.use_dora and bits == 8:
        yield "use_dora", "`use_dora` needs the lengths of weights, which it reads of 4 bits alone: quantization_bit: 4"
    if method.pissa_init and bits:
        yield (
            "pissa_init",
            "`pissa_init` changes the base, and a quantised one cannot be changed exactly; keep one of it and "
            "quantization_bit",
        )
    if method.pissa_init and is_online(method.stage):
        yield (
            "pissa_init",
            f"`pissa_init` changes the base beneath the adapter, on which all roles of stage {method.stage} stand; "
            "remove it, or use it in sft",
        )


def device_problems(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Placements over several devices."""
    place = config.model.device_map
    if place is None or place in ("auto", "cpu") or place.partition(":")[0] in ("cuda", "mps"):
        return
    if place in ("balanced", "balanced_low_0", "sequential"):
        yield (
            "device_map",
            f"`device_map: {place}` spreads the layers of one model over several GPUs, which posttrain does not do; "
            "write device_map: auto, and save memory with quantization_bit: 4 or gradient_checkpointing: true",
        )
    else:
        yield "device_map", f"`device_map: {place}` is no device; write auto, cpu, cuda or cuda:0"


def quantization_cautions(config: RunConfig) -> Iterator[str]:
    """An export adds adapters to weights, which must not be quantised for that."""
    if config.model.quantization_bit:
        yield (
            f"`quantization_bit: {config.model.quantization_bit}` is ignored by export: the adapter is added to the "
            "unquantised base"
        )
