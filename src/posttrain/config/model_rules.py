"""Rules about how the base is loaded: in how many bits, and where."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.config.run import RunConfig

_BITS = (4, 8)


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
    if model.ref_model_quantization_bit and model.ref_model_quantization_bit != model.quantization_bit:
        yield (
            "ref_model_quantization_bit",
            "`ref_model_quantization_bit` must be what quantization_bit is: the reference is the model that trains as "
            "it started, on the same base in memory; remove it, or set quantization_bit: "
            f"{model.ref_model_quantization_bit}",
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
