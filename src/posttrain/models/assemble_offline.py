"""From a configuration to the one role that pt, sft and rm train."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.config import RunConfig
from posttrain.config.loader import STAGE_DEFAULT
from posttrain.errors import UserError
from posttrain.models.adapter_files import PREFIX
from posttrain.models.adapters import add_adapter, last_layers, linear_names
from posttrain.models.assembly import (
    Assembly,
    base_parameters,
    finish,
    lineage_on,
    named,
    new_adapter,
    wear_for_good,
)
from posttrain.models.backbone import device, model_folder, precision
from posttrain.models.chains import Link, chain, check_links
from posttrain.models.given import NOTHING_GIVEN, Given
from posttrain.models.heads import ScalarHead, trunk_width
from posttrain.models.pissa import saved_form, start_from_singular_vectors
from posttrain.models.roles import Costume, SharedRoles
from posttrain.models.split import decoder_layers
from posttrain.types import Role


def offline_assembly(config: RunConfig, given: Given = NOTHING_GIVEN) -> Assembly:
    """One trained role: the actor (pt, sft) or the reward (rm), on the adapters given as parents.

    LoRA continues the last adapter of ``adapter_name_or_path`` unless ``create_new_adapter``.

    Args:
        config: of stage pt, sft, rm, dpo or kto.
        given: a model in memory to use instead of loading ``model_name_or_path``.
    """
    method, role = config.method, Role.REWARD if config.method.stage == "rm" else Role.ACTOR
    links, trains_base = chain(config.model.adapter_name_or_path), method.finetuning_type != "lora"
    if links and trains_base:
        raise UserError(
            f"adapter_name_or_path is set, but finetuning_type is {method.finetuning_type}: adapters are trained with "
            "lora only. Export them into a model first (posttrain export), then train that."
        )
    backbone = given.backbone(config, trains_base=trains_base)
    mark = given.mark(backbone)
    notes = precision(config, device(), trains_base=trains_base)[1] + check_links(
        links,
        mark,
        key="adapter_name_or_path",
        model=config.model.model_name_or_path,
        folder=model_folder(config),
        allow_mismatch=config.model.allow_mismatch,
    )
    stands_on = named("adapter_name_or_path", links)
    head = "score" if role is Role.REWARD else "lm_head"
    heads = {"score": _score_head(config, backbone, links, given)} if role is Role.REWARD else {}
    initial: dict[str, Tensor] = {}
    if trains_base:
        costumes = {role: Costume(wears=(), head=head, trains="base")}
        roles = SharedRoles(backbone, costumes, heads, base_trains=base_parameters(backbone, method))
        own_config = None
    else:
        continues = bool(links) and not method.create_new_adapter
        parents = links[:-1] if continues else links
        own_config = links[-1].files.config if continues else new_adapter(config, backbone)
        notes += _without_effect(config, backbone, links[-1]) if continues else ()
        beneath = wear_for_good(backbone, parents)
        add_adapter(backbone, role, own_config, links[-1].files.state if continues else None, seed=config.train.seed)
        if method.pissa_init and not continues:
            initial = start_from_singular_vectors(backbone, role, method.pissa_iter)
            notes += saved_form(own_config, backbone.dtype)
        roles = SharedRoles(backbone, {role: Costume(wears=(*beneath, role), head=head, trains=role)}, heads)
        links = parents
    finish(config, backbone)
    return Assembly(
        roles=roles,
        own=role if own_config else None,
        own_config=own_config,
        base_name=config.model.model_name_or_path,
        lineage=lineage_on(config, mark, links),
        stands_on=stands_on,
        notes=notes,
        initial=initial,
    )


def _without_effect(config: RunConfig, backbone: PreTrainedModel, link: Link) -> tuple[str, ...]:
    """Keys that shape a new adapter, given with other values than those of the adapter that is continued."""
    method, own = config.method, link.files.config
    covered = {key.split(".lora_")[0].rsplit(".", 1)[-1] for key in link.files.state}
    targets = linear_names(backbone) if method.lora_target == ("all",) else method.lora_target
    pairs = {
        "lora_rank": (method.lora_rank, own.r),
        "lora_alpha": (method.lora_alpha, own.lora_alpha),
        "lora_dropout": (method.lora_dropout, own.lora_dropout),
        "use_rslora": (method.use_rslora, own.use_rslora),
        "use_dora": (method.use_dora, own.use_dora),
        "pissa_init": (method.pissa_init, False),
        "trainable_layers": _numbers_of_layers(backbone, method.trainable_layers, link),
        "lora_target": (",".join(sorted({t.rsplit(".", 1)[-1] for t in targets})), ",".join(sorted(covered))),
    }
    return tuple(
        f"{key}: {given} changes nothing, since the adapter {link.folder} is continued, which has {has}. Set "
        "create_new_adapter: true to train a new one on top of it."
        for key, (given, has) in pairs.items()
        if given != has and config.sources.get(key, STAGE_DEFAULT) != STAGE_DEFAULT
    )


def _numbers_of_layers(backbone: PreTrainedModel, wanted: float | None, link: Link) -> tuple[int, int]:
    """How many layers are to have adapters, and how many have those of a link."""
    layers, found = decoder_layers(backbone)
    prefix = f"{PREFIX}{layers}."
    covered = {key.removeprefix(prefix).split(".")[0] for key in link.files.state if key.startswith(prefix)}
    return len(found) if wanted is None else len(last_layers(backbone, wanted)), len(covered)


def _score_head(config: RunConfig, backbone: PreTrainedModel, links: Sequence[Link], given: Given) -> ScalarHead:
    width, begun = trunk_width(backbone.config), None if given.model is None else given.model.head
    if links and not config.method.create_new_adapter and links[-1].files.head is not None:
        head = ScalarHead.load(links[-1].folder, width)
    elif begun is not None:
        head = begun
    else:
        head = ScalarHead(width, "score", generator=torch.Generator().manual_seed(config.train.seed))
    return head.to(device())
