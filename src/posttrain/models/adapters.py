"""LoRA adapters inside a plain transformers model: put in, load, switch, fold, merge. The one room that knows peft."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig
from peft.functional import delete_adapter, inject_adapter_in_model, set_adapter
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from posttrain.errors import UserError
from posttrain.functional.products import by_columns
from posttrain.models.adapter_files import MAGNITUDE, file_key
from posttrain.models.lora_linear import fuse
from posttrain.models.quantize import Int8Linear, is_quantized
from posttrain.models.split import decoder_layers
from posttrain.models.work import count_merge


def linear_names(model: PreTrainedModel) -> list[str]:
    """The short names of the trunk's linear layers, output head left out: what ``lora_target: all`` means."""
    head = model.get_output_embeddings()
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D | LoraLayer) and module is not head
        # what an earlier adapter put inside a layer is not a layer of the model
        if not name.endswith(".base_layer") and ".lora_" not in name
    }
    return sorted(names)


def lora_config(
    model: PreTrainedModel,
    *,
    rank: int,
    alpha: int,
    dropout: float,
    targets: Sequence[str],
    use_rslora: bool = False,
    use_dora: bool = False,
    top_layers: float | None = None,
) -> LoraConfig:
    """A LoRA configuration whose targets exist in the model.

    Args:
        model: the backbone. rank, alpha, dropout, use_rslora, use_dora: as peft has them.
        targets: names of linear layers, or "all".
        top_layers: how many of the last layers get adapters, below 1 as a share of them; None is all.

    Raises:
        UserError: if a target names no linear layer, or the model has not so many layers.
    """
    available = linear_names(model)
    wanted = available if tuple(targets) == ("all",) else list(targets)
    missing = [name for name in wanted if name.rsplit(".", 1)[-1] not in available]
    if missing:
        raise UserError(
            f"lora_target names {', '.join(missing)}, but {type(model).__name__} has no such linear layer. "
            f"It has: {', '.join(available)}. Use one of them, or lora_target: all."
        )
    layers = None if top_layers is None else last_layers(model, top_layers)
    if layers:
        _refuse_lower(model, wanted, layers)
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=wanted,
        use_rslora=use_rslora,
        use_dora=use_dora,
        layers_to_transform=layers,
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in model.modules()),
        task_type="CAUSAL_LM",
    )


def _refuse_lower(model: PreTrainedModel, targets: Sequence[str], layers: Sequence[int]) -> None:
    """A layer that is named in full gets its adapter wherever it is: refuse those beneath the chosen ones."""
    top = tuple(f"{decoder_layers(model)[0]}.{number}." for number in layers)
    full = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D | LoraLayer)}
    for name in targets:
        if name in full and not name.startswith(top):
            raise UserError(
                f"lora_target names {name}, which is not in the last {len(layers)} layers that trainable_layers "
                "chooses; remove one of the two"
            )


def last_layers(model: PreTrainedModel, wanted: float) -> list[int]:
    """The numbers of the last layers.

    Args:
        model: whose they are. wanted: how many, or below 1 a share of them, at least one.

    Raises:
        UserError: the model has fewer.
    """
    count = len(decoder_layers(model)[1])
    if wanted > count:
        raise UserError(
            f"trainable_layers is {wanted:g}, but {type(model).__name__} has {count} layers: use 1 to {count}, a share "
            "of them such as 0.33, or leave the key out to put adapters into all"
        )
    taken = int(wanted) if wanted >= 1 else max(1, round(wanted * count))
    return list(range(count - taken, count))


def add_adapter(
    model: PreTrainedModel,
    name: str,
    config: LoraConfig,
    state: Mapping[str, Tensor] | None = None,
    *,
    seed: int = 0,
    on_head: bool = False,
) -> None:
    """Put an adapter into the model: from ``state`` if given, else fresh (A random by seed and name, B zero).

    On a half-precision model its weights are float32: steps of training are smaller than half precision resolves.

    Args:
        state: peft's keys, ``base_model.model.<module>.lora_A.weight``.
        on_head: allow it to change the output head, for a caller that folds it in: our forward reads the head's own
            weight.

    Raises:
        UserError: if the state's layers are not those of this model, or it changes layers that cannot be used.
    """
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(int.from_bytes(digest, "big"))
        # a second adapter on a model is what we mean, not an accident
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(config, model, adapter_name=name)
    fuse(model)
    model.train(model.training)  # what is put in trains, its dropout too, whatever the model does
    _refuse_layers(model, name, on_head=on_head)
    _measure_magnitudes(model, name)
    for parameter in adapter_parameters(model, name).values():
        if parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
    if state is not None:
        _fill(model, name, state)


def _measure_magnitudes(model: PreTrainedModel, name: str) -> None:
    """DoRA starts from the length of each row of the weight, in the precision that it computes with.

    Raises:
        UserError: the weights are in 8 bits.
    """
    for layer in lora_layers(model):
        if name not in layer.lora_magnitude_vector:
            continue
        base = layer.get_base_layer()
        if isinstance(base, Int8Linear):
            raise UserError(f"adapter '{name}' is DoRA, which reads the base in 4 bits only: quantization_bit: 4")
        weight = dequantize_module_weight(base).detach().float()
        rows = weight.T if layer.fan_in_fan_out else weight
        layer.lora_magnitude_vector[name].weight.data = torch.linalg.norm(rows, dim=1)


def check_stack(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse to wear DoRA over other adapters: its magnitudes are those of the weights with these adapters in them.

    Raises:
        UserError: a DoRA adapter is not the innermost one.
    """
    dora = {name for layer in lora_layers(model) for name in layer.lora_magnitude_vector}
    for name in names[1:]:
        if name in dora:
            beneath = ", ".join(names[: names.index(name)])
            raise UserError(
                f"use_dora: the DoRA adapter '{name}' would be worn over {beneath}, which "
                "cannot be made part of the weights here, and its magnitudes would mean something else. Use "
                "use_dora: false for it, or export what is beneath into a model first (posttrain export)."
            )


def _refuse_layers(model: PreTrainedModel, name: str, *, on_head: bool) -> None:
    """What would be left out in silence: folding knows linear layers only, our forward not even the head's."""
    for place, module in model.named_modules():
        if not isinstance(module, LoraLayer) or name not in (*module.lora_A, *module.lora_embedding_A):
            continue
        if not isinstance(module, LoraLinear):
            raise UserError(
                f"adapter '{name}' changes {place}, which is no linear layer. Merge it into its base model with peft "
                "and write the result as model_name_or_path."
            )
        if module is model.get_output_embeddings() and not on_head:
            raise UserError(
                f"adapter '{name}' changes the output head {place}, which training and scoring use as it is. Export it "
                "into a model first (posttrain export) and write that as model_name_or_path."
            )


def _fill(model: PreTrainedModel, name: str, state: Mapping[str, Tensor]) -> None:
    own = {key: parameter for key, parameter in model.named_parameters() if f".{name}." in key}
    wanted = {_parameter_name(key, name): tensor for key, tensor in state.items()}
    if own.keys() != wanted.keys() or any(own[k].shape != t.shape for k, t in wanted.items()):
        odd = sorted(own.keys() ^ wanted.keys()) or [k for k, t in wanted.items() if own[k].shape != t.shape]
        raise UserError(
            f"adapter '{name}' does not fit this model: {len(odd)} layers differ, the first is {odd[0]}. "
            "Was it trained on another base model? Give the base it was trained on as model_name_or_path."
        )
    with torch.no_grad():
        for key, tensor in wanted.items():
            own[key].copy_(tensor)


def _parameter_name(key: str, name: str) -> str:
    if key.endswith(MAGNITUDE):
        key = f"{key}.weight"
    stem, weight = key.removeprefix("base_model.model.").rsplit(".", 1)
    return f"{stem}.{name}.{weight}"


def adapter_state(model: PreTrainedModel, name: str) -> dict[str, Tensor]:
    """An adapter's weights under peft's keys, detached, contiguous, on the CPU."""
    found = {}
    for key, parameter in model.named_parameters():
        if f".{name}." in key:
            found[file_key(key)] = parameter.detach().to("cpu").contiguous()
    return found


def adapter_parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Parameter name -> parameter of one adapter."""
    return {key: p for key, p in model.named_parameters() if f".{name}." in key}


def lora_layers(model: nn.Module) -> Iterator[LoraLinear]:
    """Every linear layer that carries adapters."""
    return (module for module in model.modules() if isinstance(module, LoraLinear))


def wear(model: nn.Module, names: Sequence[str]) -> None:
    """Make exactly these adapters active, none for an empty list; ``requires_grad`` is the caller's to restore."""
    set_adapter(model, list(names))


def fold(model: PreTrainedModel, names: Sequence[str]) -> None:
    """Add adapters to the base weights for good and drop them: one addition now instead of one in every forward.

    Raises:
        ValueError: the base weights are quantised.
    """
    if is_quantized(model):
        raise ValueError("nothing can be added to quantised weights: wear the adapters instead")
    with torch.no_grad():
        for layer in lora_layers(model):
            worn = [name for name in names if name in layer.lora_A]
            if worn:
                base_weight(layer).copy_(_with_adapters(layer, worn))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Adapter .* was active which is now deleted")
        for name in names:
            delete_adapter(model, name, prefix="lora_")


@contextmanager
def merged(model: PreTrainedModel, names: Sequence[str]) -> Iterator[None]:
    """Within the context the base weights hold base + adapters and no adapter is active.

    The frozen tensors are set aside and put back untouched afterwards, so that merging cannot drift them. Nothing can
    be added to quantised weights: their adapters are active within the context. So they are on a GPU that has no room
    for the copies.
    """
    if is_quantized(model) or not has_room_to_merge(model):
        wear(model, names)
        yield
        return
    pristine: list[tuple[nn.Parameter, Tensor]] = []
    try:
        with torch.no_grad():
            for layer in lora_layers(model):
                weight = base_weight(layer)
                worn = [name for name in names if name in layer.lora_A]
                if worn:
                    pristine.append((weight, weight.data))
                    together = _with_adapters(layer, worn)
                    weight.data = together if layer.fan_in_fan_out else by_columns(together)
                    count_merge(layer, [layer.r[name] for name in worn])
        wear(model, ())
        yield
    finally:
        for weight, data in pristine:
            weight.data = data


def has_room_to_merge(model: PreTrainedModel) -> bool:
    """Whether the device can hold a merged copy of every layer that wears adapters, and a quarter of that beside it."""
    weights = [base_weight(layer) for layer in lora_layers(model)]
    if not weights or weights[0].device.type != "cuda":
        return True
    where = weights[0].device
    allocated = torch.cuda.memory_allocated(where)
    allowed = torch.cuda.get_per_process_memory_fraction(where) * torch.cuda.get_device_properties(where).total_memory
    unused = torch.cuda.mem_get_info(where)[0] + torch.cuda.memory_reserved(where) - allocated
    return 1.25 * sum(weight.nbytes for weight in weights) <= min(unused, allowed - allocated)


def base_weight(layer: LoraLinear) -> nn.Parameter:
    """The weight that a layer's adapters are added to."""
    weight = layer.get_base_layer().weight
    assert isinstance(weight, nn.Parameter)
    return weight


def _with_adapters(layer: LoraLinear, names: Sequence[str]) -> Tensor:
    """A new tensor, the base weight with adapters in it, innermost first; the base weight stays as it is.

    Neighbours that are plain LoRA are one sum. DoRA scales all that is beneath it.
    """
    weight = base_weight(layer)
    pristine, deltas = weight.data, []
    try:
        for name in names:
            if name not in layer.lora_magnitude_vector:
                deltas.append(layer.get_delta_weight(name))
                continue
            if deltas:
                weight.data, deltas = _added(weight.data, deltas), []
            weight.data = layer.lora_variant[name].merge_safe(layer, name, weight.data)
        return _added(weight.data, deltas) if deltas else weight.data
    finally:
        weight.data = pristine


def _added(weight: Tensor, deltas: Sequence[Tensor]) -> Tensor:
    """A new tensor, weight + Σ deltas, rounded once to the dtype of the weight."""
    total = weight + deltas[0]
    for delta in deltas[1:]:
        total += delta
    return total.to(weight.dtype)
