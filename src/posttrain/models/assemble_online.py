"""From a configuration to the roles of an online stage: on one backbone where that is exact, else on several."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from peft import LoraConfig
from transformers import PreTrainedModel

from posttrain.algorithms import algorithm_class
from posttrain.config import RunConfig
from posttrain.errors import UserError
from posttrain.models.adapters import add_adapter
from posttrain.models.assembly import (
    Assembly,
    base_parameters,
    finish,
    lineage_on,
    named,
    new_adapter,
    put_on,
    wear_for_good,
)
from posttrain.models.backbone import device, load_backbone, model_folder, precision
from posttrain.models.chains import Link, common_prefix
from posttrain.models.given import NOTHING_GIVEN, Given
from posttrain.models.heads import ScalarHead, trunk_width
from posttrain.models.lineage import Lineage, read_lineage
from posttrain.models.merging import merge
from posttrain.models.reward_folder import RewardFolder
from posttrain.models.roles import Costume, Roles, SharedRoles
from posttrain.models.separate import SeparateRoles
from posttrain.models.trunks import (
    Common,
    RewardTrunk,
    common_backbone,
    ensemble_folders,
    gigabytes,
    reward_folder,
    reward_trunk,
)
from posttrain.types import Role


class _Member:
    """A backbone while it is being dressed."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        self.backbone = backbone
        self.width = trunk_width(backbone.config)
        self.costumes: dict[Role, Costume] = {}
        self.heads: dict[str, ScalarHead] = {}
        self.base_trains: frozenset[str] = frozenset()
        self.ensemble: list[Costume] = []

    def dressed(self, config: RunConfig) -> SharedRoles:
        heads = {name: head.to(device()) for name, head in self.heads.items()}
        roles = SharedRoles(self.backbone, self.costumes, heads, base_trains=self.base_trains, ensemble=self.ensemble)
        finish(config, self.backbone)
        return roles


class _Parts:
    """What both kinds of assembly begin with: actor's and reward's models, the reference and the reward dressed.

    Without ``reward_model`` there is no reward role. Where the reward stands on the actor's backbone, both share it.
    """

    def __init__(self, config: RunConfig, given: Given, *, trains_base: bool) -> None:
        self.config = config
        self.reward = reward_folder(config)
        self.links = self.reward.links if self.reward else ()
        self.common = common_backbone(config, self.links, given, trains_base=trains_base)
        self.beside: RewardTrunk | None = None
        self.notes = precision(config, device(), trains_base=trains_base)[1] + self.common.notes
        if self.reward is not None:
            self.beside, said = reward_trunk(config, self.reward, self.common)
            self.notes += said
        self.policy = _Member(self.common.backbone)
        self.host = self.policy if self.beside is None else _Member(self.beside.load())
        actor_links = self.common.actor_links
        shared = len(actor_links)
        self.members = self._ensemble()
        if self.reward is not None and self.beside is None:
            chains = [reward.links[:-1] for reward in (self.reward, *self.members)]
            shared = common_prefix((actor_links, *chains))
        everybody = wear_for_good(self.policy.backbone, actor_links[:shared])
        self.parents = (*everybody, *put_on(self.policy.backbone, actor_links[shared:], "parent"))
        self.policy.costumes[Role.REFERENCE] = Costume(wears=self.parents, head="lm_head")
        self.reward_wears = self.parents
        if self.reward is not None:
            own = self.links[shared:] if self.beside is None else self.links
            beneath = everybody if self.beside is None else ()
            self.reward_wears = _dress_reward(self.host, self.reward, own, beneath)
        for number, member in enumerate(self.members, start=2):
            _dress_member(self.host, member, member.links[shared:], str(number), everybody)

    def _ensemble(self) -> list[RewardFolder]:
        """The further reward models, which stand where the first one stands.

        Raises:
            UserError: they do not.
        """
        members = ensemble_folders(self.config)
        if members and (self.reward is None or self.beside is not None):
            raise UserError(
                "reward_ensemble needs a reward_model that is an adapter on the actor's own base; here it stands on "
                "another model"
            )
        for member in members:
            allowed = self.config.model.allow_mismatch
            self.notes += self.common.check(member.links, key="reward_ensemble", allow_mismatch=allowed)
        return members

    def critic_head(self, width: int) -> ScalarHead:
        """The head of a critic that has a trunk of its own: the reward's, else a fresh one."""
        return ScalarHead(width, "value") if self.reward is None else self.reward.head(width, kind="value")

    def assembly(self, roles: Roles, own_config: LoraConfig | None, notes: Sequence[str]) -> Assembly:
        config, actor_links = self.config, self.common.actor_links
        stands_on = named("adapter_name_or_path", actor_links) + named("reward_model", self.links)
        for member in self.members:
            stands_on += named("reward_ensemble", member.links)
        if self.reward is not None and not self.links:
            stands_on += (("reward_model", self.reward.folder, self.reward.lineage),)
        return Assembly(
            roles=roles,
            own="actor" if own_config else None,
            own_config=own_config,
            base_name=config.model.model_name_or_path,
            lineage=_lineage(config, self.common.mark, actor_links),
            stands_on=stands_on,
            notes=(*self.notes, *notes),
            critic_from_reward=has_critic(config) and self.reward is not None and config.ppo.critic != "value_head",
        )


def has_critic(config: RunConfig) -> bool:
    """Whether the algorithm of the stage trains a critic."""
    return Role.CRITIC in algorithm_class(config).trains


def online_assembly(config: RunConfig, given: Given = NOTHING_GIVEN) -> Assembly:
    """The roles of an online stage; see the role table in the design page.

    Adapters (lora) share one backbone, with the reward's beside it where that is another one; weights that train
    themselves (full, freeze) need a model for each role that trains, and one for those that do not.

    Args:
        config: of a stage that samples.
        given: a model in memory for the actor to use instead of loading ``model_name_or_path``.

    Raises:
        UserError: the reward model cannot score what this actor writes.
    """
    return (_with_adapters if config.method.finetuning_type == "lora" else _with_models)(config, given)


def _with_adapters(config: RunConfig, given: Given) -> Assembly:
    """Actor and critic are adapters; a critic of its own starts from the reward's list, else the actor's parents."""
    parts = _Parts(config, given, trains_base=False)
    policy, host, seed = parts.policy, parts.host, config.train.seed
    own_config = new_adapter(config, policy.backbone)
    add_adapter(policy.backbone, "actor", own_config, seed=seed)
    actor = Costume(wears=(*parts.parents, "actor"), head="lm_head", trains="actor")
    policy.costumes[Role.ACTOR] = actor
    if has_critic(config) and config.ppo.critic == "adapter":
        critic_config = own_config if host is policy else new_adapter(config, host.backbone)
        critic_config = dataclasses.replace(critic_config, use_dora=False)
        if own_config.use_dora:
            parts.notes += ("use_dora: the actor's adapter is DoRA, the critic's is LoRA on top of the reward's.",)
        add_adapter(host.backbone, "critic", critic_config, seed=seed)
        wears = (*parts.reward_wears, "critic")
        host.costumes[Role.CRITIC] = Costume(wears=wears, head="value", trains="critic")
        host.heads["value"] = parts.critic_head(host.width)
    elif has_critic(config):
        policy.costumes[Role.CRITIC] = Costume(wears=actor.wears, head="value", trains="actor")
        policy.heads["value"] = ScalarHead(policy.width, "value")
    if parts.beside is None:
        return parts.assembly(policy.dressed(config), own_config, ())
    lives = ", and the critic with it" if Role.CRITIC in host.costumes else ""
    note = (
        f"reward_model stands on {parts.beside.name}, another model than {parts.common.name}: a second backbone is in "
        f"memory for the reward{lives}, {gigabytes(host.backbone)} more."
    )
    members = {"policy": policy.dressed(config), "reward": host.dressed(config)}
    return parts.assembly(SeparateRoles(members), own_config, (note,))


def _with_models(config: RunConfig, given: Given) -> Assembly:
    """Actor and critic train their own weights; reference and reward are frozen, on one model where they can be."""
    parts = _Parts(config, NOTHING_GIVEN, trains_base=True)  # the reference is not what trains
    actor = _Member(given.backbone(config, trains_base=True))
    actor.base_trains = base_parameters(actor.backbone, config.method)
    actor.costumes[Role.ACTOR] = Costume(wears=(), head="lm_head", trains="base")
    members = {"actor": actor, "reference": parts.policy}
    if parts.beside is not None:
        members["reward"] = parts.host
    if has_critic(config):
        _add_critic(config, parts, members)
    holds = "; ".join(" and ".join(member.costumes) for member in members.values())
    note = (
        f"finetuning_type: {config.method.finetuning_type} in stage {config.method.stage} holds {len(members)} models "
        f"in memory, {gigabytes(*(member.backbone for member in members.values()))} of weights: {holds}."
    )
    roles = SeparateRoles({name: member.dressed(config) for name, member in members.items()})
    return parts.assembly(roles, None, (note,))


def _dress_member(
    host: _Member, reward: RewardFolder, links: Sequence[Link], mark: str, beneath: tuple[str, ...]
) -> None:
    """Put a further reward model of the ensemble beside the reward role, on what everybody wears."""
    wears = (*beneath, *put_on(host.backbone, links[:-1], f"reward{mark}_parent"), f"reward{mark}")
    add_adapter(host.backbone, f"reward{mark}", links[-1].files.config, links[-1].files.state)
    host.ensemble.append(Costume(wears=wears, head=f"score{mark}"))
    host.heads[f"score{mark}"] = reward.head(host.width)


def _add_critic(config: RunConfig, parts: _Parts, members: dict[str, _Member]) -> None:
    """The critic: a model of its own among the members, or a head on the actor's."""
    critic = actor = members["actor"]
    if config.ppo.critic == "model":
        critic = members["critic"] = _Member(_critic_trunk(config, parts.links, parts.common, parts.beside))
        critic.base_trains = base_parameters(critic.backbone, config.method) - head_of_its_own(critic.backbone)
    critic.costumes[Role.CRITIC] = Costume(wears=(), head="value", trains="base")
    critic.heads["value"] = ScalarHead(actor.width, "value") if critic is actor else parts.critic_head(critic.width)


def _dress_reward(
    host: _Member, reward: RewardFolder, links: Sequence[Link], beneath: tuple[str, ...]
) -> tuple[str, ...]:
    """Put the reward role onto its backbone, over what everybody wears there; returns what it wears."""
    wears = beneath
    if links:
        wears = (*beneath, *put_on(host.backbone, links[:-1], "reward_parent"), "reward")
        add_adapter(host.backbone, "reward", links[-1].files.config, links[-1].files.state)
    host.costumes[Role.REWARD] = Costume(wears=wears, head="score")
    host.heads["score"] = reward.head(host.width)
    return wears


def _critic_trunk(
    config: RunConfig, links: Sequence[Link], common: Common, beside: RewardTrunk | None
) -> PreTrainedModel:
    """The model that a critic of its own starts from: the reward's, its adapters added in; else the actor's."""
    if beside is not None:
        model = beside.load(trains_base=True)
    else:
        other = None if common.name == config.model.model_name_or_path else common.name
        model = load_backbone(config, other, trains_base=True)
    merge(model, links, lambda: None)
    return model


def head_of_its_own(model: PreTrainedModel) -> frozenset[str]:
    """Parameters of the output head that are not the embedding's too: no value ever reaches them."""
    inside = {id(p) for p in model.get_output_embeddings().parameters()}
    inside -= {id(p) for p in model.get_input_embeddings().parameters()}
    return frozenset(name for name, p in model.named_parameters() if id(p) in inside)


def _lineage(config: RunConfig, mark: str, actor_links: Sequence[Link]) -> Lineage:
    """What the actor stands on as users see it: the model they named, and the adapters they named."""
    merged = read_lineage(Path(model_folder(config)))
    if merged is not None and merged.weights is not None and merged.weights != mark:
        return lineage_on(config, merged.weights, actor_links[len(merged.parents) :])
    return lineage_on(config, mark, actor_links)
