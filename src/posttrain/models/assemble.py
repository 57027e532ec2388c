"""From a configuration to dressed roles: which backbone is loaded, what each role wears, what a run saves."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.config import MethodConfig, RunConfig
from posttrain.config.loader import STAGE_DEFAULT
from posttrain.errors import UserError
from posttrain.models.adapter_files import write_adapter
from posttrain.models.adapters import adapter_state, add_adapter, fold, linear_names, lora_config
from posttrain.models.backbone import device, load_backbone, model_folder, precision
from posttrain.models.chains import Link, base_of, chain, check_links, common_prefix, names_model
from posttrain.models.fetch import resolve_model
from posttrain.models.forward import prepare_trunk
from posttrain.models.heads import ScalarHead
from posttrain.models.lineage import (
    Backbone,
    Lineage,
    check_template,
    fingerprint,
    read_lineage,
    write_lineage,
)
from posttrain.models.load import disable_dropout
from posttrain.models.roles import Costume, SharedRoles
from posttrain.models.saving import share
from posttrain.types import Role


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """Roles ready to run, and how their result is written.

    Attributes:
        roles: the role table over the backbone.
        own: name of the adapter the run saves; None saves the whole model.
        own_config: its LoRA configuration.
        base_name: ``model_name_or_path`` as the result should name it.
        lineage: recorded beside the result.
        stands_on: (configuration key, adapter folder, its lineage) of everything that was loaded beneath.
        notes: sentences for the user about what was assembled.
    """

    roles: SharedRoles
    own: str | None
    own_config: LoraConfig | None
    base_name: str
    lineage: Lineage
    stands_on: tuple[tuple[str, Path, Lineage | None], ...] = ()
    notes: tuple[str, ...] = ()

    def under_template(self, fingerprint: str, *, allow_mismatch: bool) -> Assembly:
        """The same assembly, to be saved with this chat template.

        Raises:
            UserError: if something it stands on was trained with another one.
        """
        found = [
            check_template(lineage, fingerprint, folder=folder, key=key, allow_mismatch=allow_mismatch)
            for key, folder, lineage in self.stands_on
        ]
        notes = (*self.notes, *(note for note in found if note))
        return dataclasses.replace(self, lineage=dataclasses.replace(self.lineage, template=fingerprint), notes=notes)

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write what was trained as a folder that peft or transformers load: weights, head, tokenizer, lineage."""
        folder.mkdir(parents=True, exist_ok=True)
        backbone = self.roles.backbone
        if self.own is None:
            backbone.save_pretrained(folder)
            for weights in folder.glob("*.safetensors"):
                share(weights)
        elif self.own_config is not None:
            state = adapter_state(backbone, self.own)
            write_adapter(folder, self.own_config, state, base_model_name_or_path=self.base_name)
        if Role.ACTOR not in self.roles.costumes:
            self.roles.head("score").save(folder)
        tokenizer.save_pretrained(folder)
        write_lineage(folder, self.lineage)


def offline_assembly(config: RunConfig) -> Assembly:
    """One trained role: the actor (pt, sft) or the reward (rm), on the adapters given as parents.

    LoRA continues the last adapter of ``adapter_name_or_path`` unless ``create_new_adapter``.
    """
    method, role = config.method, Role.REWARD if config.method.stage == "rm" else Role.ACTOR
    links = chain(config.model.adapter_name_or_path)
    if links and method.finetuning_type != "lora":
        raise UserError(
            f"adapter_name_or_path is set, but finetuning_type is {method.finetuning_type}: adapters are trained with "
            "lora only. Export them into a model first (posttrain export), then train that."
        )
    trains_base = method.finetuning_type != "lora"
    backbone = load_backbone(config, trains_base=trains_base)
    mark = fingerprint(backbone)
    notes = precision(config, device(), trains_base=trains_base)[1] + check_links(
        links,
        mark,
        key="adapter_name_or_path",
        model=config.model.model_name_or_path,
        folder=model_folder(config),
        allow_mismatch=config.ppo.allow_mismatch,
    )
    stands_on = _named("adapter_name_or_path", links)
    head = "score" if role is Role.REWARD else "lm_head"
    heads = {"score": _score_head(config, backbone, links)} if role is Role.REWARD else {}
    if trains_base:
        roles = SharedRoles(
            backbone,
            {role: Costume(wears=(), head=head, trains="base")},
            heads,
            base_trains=base_parameters(backbone, method),
        )
        own_config = None
    else:
        continues = bool(links) and not method.create_new_adapter
        parents = links[:-1] if continues else links
        own_config = links[-1].files.config if continues else _own_config(config, backbone)
        notes += _without_effect(config, backbone, links[-1]) if continues else ()
        _wear_for_good(backbone, parents)
        add_adapter(backbone, role, own_config, links[-1].files.state if continues else None, seed=config.train.seed)
        roles = SharedRoles(backbone, {role: Costume(wears=(role,), head=head, trains=role)}, heads)
        links = parents
    _finish(config, backbone)
    return Assembly(
        roles=roles,
        own=role if own_config else None,
        own_config=own_config,
        base_name=config.model.model_name_or_path,
        lineage=_lineage(config, mark, links),
        stands_on=stands_on,
        notes=notes,
    )


def online_assembly(config: RunConfig) -> Assembly:
    """The four roles of PPO over one backbone; see the role table in the design page.

    Without ``reward_model`` there is no reward role, and a critic of its own starts from the actor's parents.
    Where the reward adapter stands on the base and ``model_name_or_path`` is that base merged with an SFT adapter by
    us, the base is what is loaded: actor and reference wear the SFT adapter, the reward what it was trained on.

    Raises:
        UserError: if reward and actor stand on different backbones.
    """
    method, ppo = config.method, config.ppo
    if method.finetuning_type != "lora":
        raise UserError(
            f"stage {method.stage} with finetuning_type: {method.finetuning_type} needs separate models for each "
            "role; train it with finetuning_type: lora, where four roles share one backbone."
        )
    reward_links = _reward_links(config)
    common = _common_backbone(config, reward_links)
    backbone, mark, actor_links = common.backbone, common.mark, common.actor_links
    notes = precision(config, device())[1] + common.notes
    notes += common.check(reward_links, key="reward_model", allow_mismatch=ppo.allow_mismatch)
    shared = common_prefix((actor_links, reward_links[:-1])) if reward_links else len(actor_links)
    _wear_for_good(backbone, actor_links[:shared])
    actor_parents = _put_on(backbone, actor_links[shared:], "parent")
    critic_parents = actor_parents
    if reward_links:
        critic_parents = (*_put_on(backbone, reward_links[shared:-1], "reward_parent"), "reward")
        add_adapter(backbone, "reward", reward_links[-1].files.config, reward_links[-1].files.state)
    own_config = _own_config(config, backbone)
    add_adapter(backbone, "actor", own_config, seed=config.train.seed)
    costumes = {
        Role.REFERENCE: Costume(wears=actor_parents, head="lm_head"),
        Role.ACTOR: Costume(wears=(*actor_parents, "actor"), head="lm_head", trains="actor"),
    }
    width = int(backbone.config.get_text_config().hidden_size)
    heads = {"value": ScalarHead(width, "value")}
    if reward_links:
        costumes[Role.REWARD] = Costume(wears=critic_parents, head="score")
        heads["score"] = ScalarHead.load(reward_links[-1].folder, width)
    if ppo.critic == "adapter":
        add_adapter(backbone, "critic", own_config, seed=config.train.seed)
        costumes[Role.CRITIC] = Costume(wears=(*critic_parents, "critic"), head="value", trains="critic")
        heads["value"] = heads["score"].rescaled(1.0, 0.0) if reward_links else heads["value"]
    else:
        costumes[Role.CRITIC] = Costume(wears=(*actor_parents, "actor"), head="value", trains="actor")
    heads = {name: head.to(device()) for name, head in heads.items()}
    roles = SharedRoles(backbone, costumes, heads)
    _finish(config, backbone)
    return Assembly(
        roles=roles,
        own="actor",
        own_config=own_config,
        base_name=config.model.model_name_or_path,
        lineage=_online_lineage(config, mark, actor_links),
        stands_on=_named("adapter_name_or_path", actor_links) + _named("reward_model", reward_links),
        notes=notes,
    )


def base_parameters(model: PreTrainedModel, method: MethodConfig) -> frozenset[str]:
    """Names of the backbone parameters that full or freeze fine-tuning trains.

    Raises:
        UserError: if freeze names layers or modules that the model does not have.
    """
    names = [name for name, _ in model.named_parameters()]
    if method.finetuning_type == "full":
        return frozenset(names)
    count = int(model.config.get_text_config().num_hidden_layers)
    layers = next(n for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count)
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


@dataclass(frozen=True, kw_only=True)
class _Common:
    """The backbone that actor and reward both stand on, and what the actor wears on it."""

    backbone: PreTrainedModel
    mark: str
    name: str
    folder: Path
    actor_links: tuple[Link, ...]
    notes: tuple[str, ...]

    def check(self, links: Sequence[Link], *, key: str, allow_mismatch: bool) -> tuple[str, ...]:
        return check_links(
            links, self.mark, key=key, model=self.name, folder=self.folder, allow_mismatch=allow_mismatch
        )


def _common_backbone(config: RunConfig, reward_links: Sequence[Link]) -> _Common:
    actor_links = chain(config.model.adapter_name_or_path)
    backbone = load_backbone(config)
    mark, name, folder = fingerprint(backbone), config.model.model_name_or_path, model_folder(config)
    allowed = config.ppo.allow_mismatch
    notes = check_links(
        actor_links, mark, key="adapter_name_or_path", model=name, folder=folder, allow_mismatch=allowed
    )
    merged = read_lineage(folder)
    if merged is None or not merged.merged or not _stands_on_base(reward_links, merged.base, mark, name, folder):
        # the check of the reward chain says what differs
        return _Common(backbone=backbone, mark=mark, name=name, folder=folder, actor_links=actor_links, notes=notes)
    del backbone
    base = load_backbone(config, merged.base.name_or_path)
    if fingerprint(base) != merged.base.fingerprint:
        raise UserError(
            f"{folder} was merged from {merged.base.name_or_path}, whose weights have changed since. reward_model was "
            "trained on the old ones; put them back, or train the reward model on the merged model."
        )
    parents = chain([folder / parent.path for parent in merged.parents])
    note = (
        f"{name} is {merged.base.name_or_path} with {len(parents)} adapter(s) merged in, and the reward model was "
        "trained on that base: one backbone in memory serves all four roles."
    )
    return _Common(
        backbone=base,
        mark=merged.base.fingerprint,
        name=merged.base.name_or_path,
        folder=Path(resolve_model(merged.base.name_or_path, cache_dir=config.model.cache_dir)),
        actor_links=(*parents, *actor_links),
        notes=(*notes, note),
    )


def _stands_on_base(links: Sequence[Link], base: Backbone, mark: str, name: str, folder: Path) -> bool:
    """Whether a reward chain was trained on ``base``, from which the model ``name`` (``mark``) was merged."""
    if not links:
        return False
    recorded = base_of(links)
    if recorded is not None:
        return recorded.base.fingerprint == base.fingerprint != mark
    named = links[-1].files.base_model_name_or_path
    if not named or names_model(named, name, folder):
        return False
    return names_model(named, base.name_or_path, base.name_or_path)


def _reward_links(config: RunConfig) -> tuple[Link, ...]:
    """The reward adapter on its parents; () where the reward is no model."""
    if config.ppo.reward_model is None:
        return ()
    links = chain([config.ppo.reward_model])
    if links[-1].files.head is None:
        raise UserError(
            f"reward_model: {links[-1].folder} has no reward head (value_head.safetensors). Give the folder "
            "that stage rm wrote; an adapter alone cannot score."
        )
    return links


def _named(key: str, links: Sequence[Link]) -> tuple[tuple[str, Path, Lineage | None], ...]:
    return tuple((key, link.folder, link.files.lineage) for link in links)


def _own_config(config: RunConfig, backbone: PreTrainedModel) -> LoraConfig:
    method = config.method
    return lora_config(
        backbone,
        rank=method.lora_rank,
        alpha=method.lora_alpha or 2 * method.lora_rank,
        dropout=0.0 if method.stage == "ppo" else method.lora_dropout,
        targets=method.lora_target,
        use_rslora=method.use_rslora,
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
        "lora_target": (",".join(sorted({t.rsplit(".", 1)[-1] for t in targets})), ",".join(sorted(covered))),
    }
    return tuple(
        f"{key}: {given} changes nothing, since the adapter {link.folder} is continued, which has {has}. Set "
        "create_new_adapter: true to train a new one on top of it."
        for key, (given, has) in pairs.items()
        if given != has and config.sources.get(key, STAGE_DEFAULT) != STAGE_DEFAULT
    )


def _put_on(backbone: PreTrainedModel, links: Sequence[Link], prefix: str) -> tuple[str, ...]:
    names = tuple(f"{prefix}{number}" for number in range(len(links)))
    for name, link in zip(names, links, strict=True):
        add_adapter(backbone, name, link.files.config, link.files.state)
    return names


def _wear_for_good(backbone: PreTrainedModel, links: Sequence[Link]) -> None:
    """Adapters that every role wears and nobody trains are added to the base weights once."""
    fold(backbone, _put_on(backbone, links, "parent"))


def _score_head(config: RunConfig, backbone: PreTrainedModel, links: Sequence[Link]) -> ScalarHead:
    width = int(backbone.config.get_text_config().hidden_size)
    if links and not config.method.create_new_adapter and links[-1].files.head is not None:
        head = ScalarHead.load(links[-1].folder, width)
    else:
        head = ScalarHead(width, "score", generator=torch.Generator().manual_seed(config.train.seed))
    return head.to(device())


def _finish(config: RunConfig, backbone: PreTrainedModel) -> None:
    """Packed attention, activation checkpointing, and no dropout where log-probabilities must repeat."""
    if config.method.stage == "ppo":
        disable_dropout(backbone)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        prepare_trunk(backbone)
    if config.train.gradient_checkpointing:
        # transformers renamed it in 5.20 and warns about the old name
        enable = getattr(backbone, "activation_checkpointing_enable", backbone.gradient_checkpointing_enable)
        enable({"use_reentrant": False})


def _lineage(config: RunConfig, mark: str, links: Sequence[Link]) -> Lineage:
    return Lineage(
        stage=config.method.stage,
        base=Backbone(name_or_path=config.model.model_name_or_path, fingerprint=mark),
        parents=tuple(link.parent for link in links),
    )


def _online_lineage(config: RunConfig, mark: str, actor_links: Sequence[Link]) -> Lineage:
    """What the actor stands on as users see it: the model they named, and the adapters they named."""
    merged = read_lineage(model_folder(config))
    if merged is not None and merged.weights is not None and merged.weights != mark:
        count = len(merged.parents)
        return _lineage(config, merged.weights, actor_links[count:])
    return _lineage(config, mark, actor_links)
