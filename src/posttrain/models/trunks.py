"""The models under PPO's roles: what actor and reference stand on, and where the reward means something.

A reward adapter means something only on the backbone it was trained on. Three ways, tried in this order: that backbone
is the one actor and reference stand on (lineage says so, also of a base under a merged model); it is loaded beside
theirs; the run is refused with both names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from posttrain.config import RunConfig
from posttrain.errors import UserError
from posttrain.models.backbone import device, load_backbone, model_folder, precision
from posttrain.models.chains import Link, base_of, chain, check_links, names_model
from posttrain.models.fetch import resolve_model
from posttrain.models.given import NOTHING_GIVEN, Given
from posttrain.models.lineage import Backbone, fingerprint, read_lineage
from posttrain.models.load import load_tokenizer
from posttrain.models.quantize import Quantization
from posttrain.models.reward_folder import RewardFolder, load_reward_trunk, read_reward_folder


@dataclass(frozen=True, kw_only=True)
class Common:
    """The backbone that actor and reference stand on, and what they wear on it.

    Attributes:
        backbone: loaded, frozen. mark: its fingerprint. name: what the user calls it. folder: where it lies.
        actor_links: adapters beneath what trains. notes: sentences for the user.
    """

    backbone: PreTrainedModel
    mark: str
    name: str
    folder: Path
    actor_links: tuple[Link, ...]
    notes: tuple[str, ...]

    def check(self, links: Sequence[Link], *, key: str, allow_mismatch: bool) -> tuple[str, ...]:
        """See ``check_links``."""
        return check_links(
            links, self.mark, key=key, model=self.name, folder=self.folder, allow_mismatch=allow_mismatch
        )


@dataclass(frozen=True, kw_only=True)
class RewardTrunk:
    """A model of its own under the reward.

    Attributes:
        name: what to call it. links: the adapters that the reward wears on it, its own last; () for a whole model.
        load: a copy of it, frozen; ``load(trains_base=True)`` one whose weights are to train.
    """

    name: str
    links: tuple[Link, ...]
    load: Callable[..., PreTrainedModel]


def reward_folder(config: RunConfig) -> RewardFolder | None:
    """The reward model of a configuration; None where the reward is no model.

    Raises:
        UserError: the folder is no reward model, or of another kind than ``reward_model_type`` says.
    """
    wanted = config.reward
    if wanted.model_folder is None:
        return None
    if wanted.reward_model_type == "api":
        raise UserError(f"reward_model_type: api asks for the address of a server, not for {wanted.model_folder}")
    reward = read_reward_folder(wanted.model_folder)
    kind = {"lora": "adapter", "full": "model", None: reward.kind}[wanted.reward_model_type]
    if reward.kind != kind:
        what = {"adapter": "an adapter", "model": "a whole model"}
        raise UserError(
            f"reward_model_type: {wanted.reward_model_type} means {what[kind]}, but {reward.folder} is "
            f"{what[reward.kind]}. Remove reward_model_type: the folder says which it is."
        )
    return reward


def ensemble_folders(config: RunConfig) -> list[RewardFolder]:
    """The further reward models of an ensemble.

    Raises:
        UserError: one is no reward adapter.
    """
    members = [read_reward_folder(folder) for folder in config.reward.reward_ensemble]
    for member in members:
        if member.kind != "adapter":
            raise UserError(
                f"reward_ensemble: {member.folder} is a whole model; members of an ensemble are adapters on the base "
                "of the actor"
            )
    return members


def common_backbone(
    config: RunConfig, reward_links: Sequence[Link], given: Given = NOTHING_GIVEN, *, trains_base: bool = False
) -> Common:
    """What actor and reference stand on.

    Where the reward adapter stands on the base and ``model_name_or_path`` is that base merged with adapters by us, the
    base is what is loaded, and actor and reference wear those adapters.

    Args:
        config: names the model and its adapters.
        reward_links: the reward adapter on its parents; () where there is none.
        given: a model in memory to use instead of loading it.
        trains_base: load it as precisely as a model whose weights train.

    Raises:
        UserError: an adapter does not belong on the model, or the base under a merged model has changed.
    """
    actor_links = chain(config.model.adapter_name_or_path)
    backbone = given.backbone(config, trains_base=trains_base)
    mark, name, folder = fingerprint(backbone), config.model.model_name_or_path, model_folder(config)
    allowed = config.model.allow_mismatch
    notes = check_links(
        actor_links, mark, key="adapter_name_or_path", model=name, folder=folder, allow_mismatch=allowed
    )
    merged = read_lineage(folder)
    if merged is None or not merged.merged or not _stands_on_base(reward_links, merged.base, mark, name, folder):
        # the check of the reward chain says what differs
        return Common(backbone=backbone, mark=mark, name=name, folder=folder, actor_links=actor_links, notes=notes)
    del backbone
    base = load_backbone(config, merged.base.name_or_path, trains_base=trains_base)
    if fingerprint(base) != merged.base.fingerprint:
        raise UserError(
            f"{folder} was merged from {merged.base.name_or_path}, whose weights have changed since. reward_model was "
            "trained on the old ones; put them back, or train the reward model on the merged model."
        )
    parents = chain([folder / parent.path for parent in merged.parents])
    serves = "one frozen backbone serves reference and reward" if trains_base else "one backbone in memory serves all"
    note = (
        f"{name} is {merged.base.name_or_path} with {len(parents)} adapter(s) merged in, and the reward model was "
        f"trained on that base: {serves}{'' if trains_base else ' four roles'}."
    )
    return Common(
        backbone=base,
        mark=merged.base.fingerprint,
        name=merged.base.name_or_path,
        folder=Path(resolve_model(merged.base.name_or_path, cache_dir=config.model.cache_dir)),
        actor_links=(*parents, *actor_links),
        notes=(*notes, note),
    )


def reward_trunk(config: RunConfig, reward: RewardFolder, common: Common) -> tuple[RewardTrunk | None, tuple[str, ...]]:
    """The model of its own that the reward needs, None where it stands on the actor's; and sentences for the user.

    Raises:
        UserError: the adapter's own backbone is another one and cannot be had, or reads other tokens.
    """
    _check_bits(config, reward)
    if reward.kind == "model":
        _check_vocabulary(config, reward.folder, reward.folder)
        return RewardTrunk(name=str(reward.folder), links=(), load=_whole(config, reward)), reward.notes
    allowed = config.model.allow_mismatch
    try:
        notes = common.check(reward.links, key="reward_model", allow_mismatch=allowed)
    except UserError as refusal:
        base, folder = _named_base(config, reward, refusal)
        _check_vocabulary(config, reward.folder, folder)
        return RewardTrunk(
            name=base,
            links=reward.links,
            load=lambda trains_base=False: load_backbone(config, base, trains_base=trains_base),
        ), reward.notes
    return None, (*reward.notes, *notes)


def _check_bits(config: RunConfig, reward: RewardFolder) -> None:
    """Refuse bits of its own for a reward adapter, whose base is quantised like the actor's.

    Raises:
        UserError: as it says.
    """
    asked, base = config.model.reward_model_quantization_bit, config.model.quantization_bit
    if reward.kind == "adapter" and asked is not None and asked != base:
        raise UserError(
            f"reward_model_quantization_bit: {asked} is for a reward model that is a whole model; {reward.folder} is "
            f"an adapter, whose base is loaded like the actor's (quantization_bit: {base or 'null'}). Remove the key, "
            f"or set quantization_bit: {asked}."
        )


def gigabytes(*models: PreTrainedModel) -> str:
    """How much memory the weights of models take, in words."""
    size = sum(p.numel() * p.element_size() for model in models for p in model.parameters()) / 1e9
    return f"{size:.1f} GB" if size >= 0.1 else f"{size * 1e3:.1f} MB"


def _whole(config: RunConfig, reward: RewardFolder) -> Callable[..., PreTrainedModel]:
    def load(trains_base: bool = False) -> PreTrainedModel:
        dtype, _ = precision(config, device(), trains_base=trains_base)
        remote = config.model.trust_remote_code
        bits = None if trains_base else config.model.reward_model_quantization_bit
        how = Quantization.of_bits(config.model, bits)
        return load_reward_trunk(reward, dtype=dtype, device=device(), trust_remote_code=remote, how=how)

    return load


def _named_base(config: RunConfig, reward: RewardFolder, refusal: UserError) -> tuple[str, Path]:
    """Name and folder of the backbone that a reward adapter names, where it can be had and is the one it was."""
    recorded = base_of(reward.links)
    name = recorded.base.name_or_path if recorded else reward.base_name_or_path
    try:
        folder = Path(resolve_model(name, cache_dir=config.model.cache_dir))
    except UserError as missing:
        raise UserError(f"{refusal} ({name or 'Its base model'} is not there to be loaded beside it.)") from missing
    if recorded and fingerprint(load_backbone(config, name)) != recorded.base.fingerprint:
        raise UserError(f"{refusal} (The weights of {name} have changed since, so it cannot be loaded beside it.)")
    return name, folder


def _check_vocabulary(config: RunConfig, *folders: Path) -> None:
    """Refuse a reward model that reads other tokens than the actor writes; one without a tokenizer passes."""
    options = {"use_fast": config.model.use_fast_tokenizer, "trust_remote_code": config.model.trust_remote_code}
    own = load_tokenizer(model_folder(config), **options).get_vocab()
    for folder in folders:
        try:
            theirs = load_tokenizer(folder, **options).get_vocab()
        except UserError:
            continue
        odd = sorted(token for token, number in own.items() if theirs.get(token) != number)
        if odd:
            raise UserError(
                f"reward_model: {folder} has another vocabulary than {config.model.model_name_or_path} ({len(odd)} of "
                f"{len(own)} tokens differ, {odd[0]!r} among them), so it cannot read what the actor writes. Train a "
                "reward model on a model with the same tokenizer."
            )
        return


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
