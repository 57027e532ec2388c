"""An assembly: dressed roles, how their result is written, and the steps that every assembly goes through."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.config import MethodConfig, RunConfig
from posttrain.data.template import Template
from posttrain.errors import UserError
from posttrain.models.adapter_files import write_adapter
from posttrain.models.adapters import adapter_state, add_adapter, fold, lora_config
from posttrain.models.chains import Link
from posttrain.models.forward import is_packed, prepare_trunk
from posttrain.models.lineage import Backbone, Lineage, check_template, read_lineage, write_lineage
from posttrain.models.linears import quicken
from posttrain.models.load import disable_dropout, quiet
from posttrain.models.neftune import add_noise
from posttrain.models.offload import Offload
from posttrain.models.pissa import on_the_original
from posttrain.models.quantize import is_quantized
from posttrain.models.roles import Roles
from posttrain.models.saving import share
from posttrain.models.split import decoder_layers
from posttrain.types import Role

WITH_DROPOUT = ("pt", "sft", "rm")
"""Stages that compare no log-probabilities of the same tokens, where dropout therefore does no harm."""


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """Roles ready to run, and how their result is written.

    Attributes:
        roles: over one backbone or several.
        own: name of the adapter the run saves; None saves the whole model.
        own_config: its LoRA configuration.
        base_name: ``model_name_or_path`` as the result should name it.
        lineage: recorded beside the result.
        stands_on: (configuration key, folder, its lineage) of everything that was loaded beneath.
        notes: sentences for the user about what was assembled.
        initial: the adapter as PiSSA started it, taken out of the base weights in memory; {} where it started at zero.
        critic_from_reward: the critic's head began as the reward's, on the scale of raw scores.
    """

    roles: Roles
    own: str | None
    own_config: LoraConfig | None
    base_name: str
    lineage: Lineage
    stands_on: tuple[tuple[str, Path, Lineage | None], ...] = ()
    notes: tuple[str, ...] = ()
    initial: Mapping[str, Tensor] = field(default_factory=dict)
    critic_from_reward: bool = False

    def under_template(self, template: Template, *, allow_mismatch: bool, base: Path | None = None) -> Assembly:
        """The same assembly, to be saved with this chat template; ``base`` is the folder of the model underneath.

        Raises:
            UserError: if something it stands on was trained with another one.
        """
        below = () if base is None else (("model_name_or_path", base, read_lineage(base)),)
        found = [
            check_template(
                lineage,
                template.fingerprint,
                folder=folder,
                key=key,
                example=template.example,
                allow_mismatch=allow_mismatch,
            )
            for key, folder, lineage in self.stands_on + below
        ]
        notes = (*self.notes, *(note for note in found if note))
        lineage = dataclasses.replace(self.lineage, template=template.fingerprint, template_example=template.example)
        return dataclasses.replace(self, lineage=lineage, notes=notes)

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write what was trained as a folder that peft or transformers load: weights, head, tokenizer, lineage."""
        folder.mkdir(parents=True, exist_ok=True)
        role = Role.ACTOR if Role.ACTOR in self.roles else Role.REWARD
        backbone = self.roles.backbone_of(role)
        if self.own is None:
            with quiet():
                backbone.save_pretrained(folder)
            for weights in folder.glob("*.safetensors"):
                share(weights)
        elif self.own_config is not None:
            config, state = self.own_config, adapter_state(backbone, self.own)
            if self.initial:
                config, state = on_the_original(config, state, self.initial)
            write_adapter(folder, config, state, base_model_name_or_path=self.base_name)
        if role is Role.REWARD:
            self.roles.head("score").save(folder)
        tokenizer.save_pretrained(folder)
        write_lineage(folder, self.lineage)


def base_parameters(model: PreTrainedModel, method: MethodConfig) -> frozenset[str]:
    """Names of the backbone parameters that full or freeze fine-tuning trains.

    Raises:
        UserError: if freeze names layers or modules that the model does not have.
    """
    names = [name for name, _ in model.named_parameters()]
    if method.finetuning_type == "full":
        return frozenset(names)
    layers, found = decoder_layers(model)
    count = len(found)
    wanted = method.freeze_trainable_layers
    if wanted == 0 or abs(wanted) > count:
        raise UserError(
            f"freeze_trainable_layers is {wanted}; the model has {count} layers: use 1 to {count} or negatives"
        )
    chosen = range(count - wanted, count) if wanted > 0 else range(-wanted)
    prefixes = tuple(f"{layers}.{i}." for i in chosen)
    modules = method.freeze_trainable_modules
    inside = [n for n in names if n.startswith(prefixes) and (modules == ("all",) or any(m in n for m in modules))]
    outside = [n for n in names if any(m in n for m in method.freeze_extra_modules) and not n.startswith(f"{layers}.")]
    if not inside:
        raise UserError(f"freeze_trainable_modules: no parameter of the chosen layers is called {', '.join(modules)}")
    return frozenset(inside + outside)


def named(key: str, links: Sequence[Link]) -> tuple[tuple[str, Path, Lineage | None], ...]:
    """The links of a chain as ``Assembly.stands_on`` lists them."""
    return tuple((key, link.folder, link.files.lineage) for link in links)


def new_adapter(config: RunConfig, backbone: PreTrainedModel) -> LoraConfig:
    """The LoRA configuration that the keys ask for, on this backbone."""
    method = config.method
    return lora_config(
        backbone,
        rank=method.lora_rank,
        alpha=method.lora_alpha or 2 * method.lora_rank,
        dropout=method.lora_dropout if method.stage in WITH_DROPOUT else 0.0,
        targets=method.lora_target,
        use_rslora=method.use_rslora,
        use_dora=method.use_dora,
        top_layers=method.trainable_layers,
    )


def put_on(backbone: PreTrainedModel, links: Sequence[Link], prefix: str) -> tuple[str, ...]:
    """Load adapters into a backbone; returns their names in it."""
    names = tuple(f"{prefix}{number}" for number in range(len(links)))
    for name, link in zip(names, links, strict=True):
        add_adapter(backbone, name, link.files.config, link.files.state)
    return names


def wear_for_good(backbone: PreTrainedModel, links: Sequence[Link]) -> tuple[str, ...]:
    """Adapters that every role wears and nobody trains are added to the base weights once.

    Returns:
        The names of those that every role has to wear all the same: all of them on a quantised backbone.
    """
    names = put_on(backbone, links, "shared")
    if is_quantized(backbone):
        return names
    fold(backbone, names)
    return ()


def finish(config: RunConfig, backbone: PreTrainedModel) -> None:
    """Packed attention, activation checkpointing, and no dropout where log-probabilities must repeat."""
    if config.method.stage not in WITH_DROPOUT:
        disable_dropout(backbone)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        if not is_packed(backbone):
            prepare_trunk(backbone)
    quicken(backbone)  # what adapters put in since the trunk was prepared, too
    if config.method.stage == "sft" and config.sft.neftune_noise_alpha:
        add_noise(backbone, config.sft.neftune_noise_alpha)
    if config.train.gradient_checkpointing:
        # transformers renamed it in 5.20 and warns about the old name
        enable = getattr(backbone, "activation_checkpointing_enable", backbone.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    if config.train.activation_offloading:
        if backbone.device.type == "cuda":
            Offload(backbone.get_decoder(), pinned=True)
        else:
            warnings.warn("activation_offloading: true changes nothing without a GPU.", stacklevel=2)


def lineage_on(config: RunConfig, mark: str, links: Sequence[Link]) -> Lineage:
    """The lineage of what is trained on ``model_name_or_path`` (fingerprint ``mark``) and these adapters."""
    return Lineage(
        stage=config.method.stage,
        base=Backbone(name_or_path=config.model.model_name_or_path, fingerprint=mark),
        parents=tuple(link.parent for link in links),
    )
