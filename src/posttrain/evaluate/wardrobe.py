"""One backbone and everything it is evaluated in: several chains of adapters, a reward head, loaded once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.config import RunConfig
from posttrain.engine.microbatches import DEFAULT_MAX_TOKENS, microbatches
from posttrain.models.adapters import lora_layers, merged
from posttrain.models.backbone import model_folder
from posttrain.models.chains import Link, chain, check_links
from posttrain.models.forward import answer, is_packed, prepare_trunk
from posttrain.models.heads import ScalarHead, find_head, trunk_width
from posttrain.models.lineage import read_lineage
from posttrain.models.load import load_tokenizer
from posttrain.models.merging import dress
from posttrain.models.reward_folder import RewardFolder
from posttrain.models.trunks import Common, RewardTrunk, common_backbone, reward_folder, reward_trunk
from posttrain.models.variants import is_policy, put_on_all, variant_folders
from posttrain.types import Batch, Outputs


@dataclass(frozen=True, kw_only=True)
class Outfit:
    """One variant of the backbone.

    Attributes:
        wears: names of its adapters, innermost first.
        reference: adapters of the policy that its KL is measured against; None where it has none.
        head: the reward head that lies beside its outermost adapter.
        links: its adapter folders.
        trunk: a model of its own, where it is not the backbone.
    """

    wears: tuple[str, ...]
    reference: tuple[str, ...] | None = None
    head: ScalarHead | None = None
    links: tuple[Link, ...] = ()
    trunk: PreTrainedModel | None = None


class Wardrobe:
    """A frozen backbone that puts on one outfit at a time.

    Attributes:
        backbone: in evaluation mode. tokenizer: of the base model.
        variants: name -> outfit, in the order of the configuration. reward: scores completions; None without one.
        notes: sentences for the user.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        variants: Mapping[str, Outfit],
        reward: Outfit | None,
        *,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        notes: Sequence[str] = (),
    ) -> None:
        """Take a backbone that holds every adapter the outfits name; ``max_tokens`` of one forward."""
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.variants = dict(variants)
        self.reward = reward
        self.notes = tuple(notes)
        self.device = next(backbone.parameters()).device
        self._max_tokens = max_tokens
        self._bare = not any(True for _ in lora_layers(backbone))

    @contextmanager
    def wearing(self, names: tuple[str, ...]) -> Iterator[PreTrainedModel]:
        """The backbone with these adapters merged into its weights for the time of the context."""
        with nullcontext() if self._bare else merged(self.backbone, names):
            yield self.backbone

    def logprobs(self, names: tuple[str, ...], batch: Batch) -> Tensor:
        """[B, T] log-probability of each token of ``loss_mask`` under these adapters, on the CPU."""
        with self.wearing(names):
            return self._answered(self.backbone, batch, "lm_head", {})

    def likelihood(self, names: tuple[str, ...], batch: Batch) -> tuple[Tensor, Tensor]:
        """As ``logprobs``, and [B, T] whether each of these tokens is the most probable one."""
        with self.wearing(names):
            found = self._outputs(self.backbone, batch, "hits", {})
        logprobs, hits = torch.zeros(batch.input_ids.shape), torch.zeros(batch.input_ids.shape, dtype=torch.bool)
        for rows, out in found:
            assert out.logprobs is not None
            assert out.hits is not None
            width = out.logprobs.shape[1]
            logprobs[rows, :width], hits[rows, :width] = out.logprobs.float().cpu(), out.hits.cpu()
        return logprobs, hits

    def scores(self, outfit: Outfit, batch: Batch) -> Tensor:
        """[B] the reward that an outfit with a head gives each sequence, on the CPU."""
        assert outfit.head is not None
        heads = {"score": outfit.head.to(self.device)}
        if outfit.trunk is not None:
            return self._answered(outfit.trunk, batch, "score", heads)
        with self.wearing(outfit.wears):
            return self._answered(self.backbone, batch, "score", heads)

    def _answered(
        self, model: PreTrainedModel, batch: Batch, want: Literal["lm_head", "score"], heads: Mapping[str, ScalarHead]
    ) -> Tensor:
        found = torch.zeros(len(batch)) if want == "score" else torch.zeros(batch.input_ids.shape)
        for rows, out in self._outputs(model, batch, want, heads):
            values = out.scores if want == "score" else out.logprobs
            assert values is not None
            if want == "score":
                found[rows] = values.float().cpu()
            else:
                found[rows, : values.shape[1]] = values.float().cpu()
        return found

    @torch.no_grad()
    def _outputs(
        self, model: PreTrainedModel, batch: Batch, want: str, heads: Mapping[str, ScalarHead]
    ) -> list[tuple[Tensor, Outputs]]:
        """(rows, what they answer) of each micro-batch; rows that share a prefix compute it once."""
        pieces = microbatches(_numbered(batch), self._max_tokens)
        return [(piece.number, answer(model, heads, piece.to(self.device), wants=(want,))) for piece in pieces]


def load_wearing(config: RunConfig) -> Wardrobe:
    """The backbone of a configuration with all that its ``variants`` and ``reward_model`` wear.

    Without ``variants`` there is one, called "model", which wears ``adapter_name_or_path``. Adapters that all of them
    begin with are folded into the weights. A reward model that stands on another model is loaded beside it; where that
    is the base under a merged model, the base serves both.

    Raises:
        UserError: a folder is missing, was trained on another backbone, or is no reward model where one is needed.
    """
    model = config.model
    folder = model_folder(config)
    tokenizer = load_tokenizer(folder, use_fast=model.use_fast_tokenizer, trust_remote_code=model.trust_remote_code)
    reward = reward_folder(config)
    common = common_backbone(config, reward.links if reward else ())
    chains, notes = _variant_chains(config, common, folder)
    beside = None
    if reward is not None:
        beside, said = reward_trunk(config, reward, common)
        notes += said
    backbone = common.backbone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # peft's, that there will be several adapters
        put_on = put_on_all(backbone, [*chains.values(), *([reward.links] if reward and beside is None else [])])
        scorer = _reward_outfit(reward, beside, put_on, backbone) if reward else None
    prepare_trunk(backbone)
    backbone.eval()
    variants = {name: _outfit(links, put_on) for name, links in chains.items()}
    if not any(chains.values()):
        head = find_head(folder)
        variants = {name: Outfit(wears=(), head=head) for name in variants}
    return Wardrobe(
        backbone,
        tokenizer,
        variants,
        scorer,
        max_tokens=config.train.max_tokens_per_microbatch or DEFAULT_MAX_TOKENS,
        notes=list(dict.fromkeys(notes)),
    )


def _variant_chains(
    config: RunConfig, common: Common, folder: Path
) -> tuple[dict[str, tuple[Link, ...]], tuple[str, ...]]:
    """Variant name -> what it wears on the common backbone; and sentences for the user.

    Where that is the base under a merged model, every variant wears what was merged in first.
    """
    own = chain(config.model.adapter_name_or_path)
    merged_in = common.actor_links[: len(common.actor_links) - len(own)]
    recorded = read_lineage(folder) if merged_in else None
    mark = recorded.weights if recorded and recorded.weights else common.mark
    name_or_path, allowed = config.model.model_name_or_path, config.model.allow_mismatch
    checked = {link.fingerprint for link in own}
    chains, notes = {}, common.notes
    for name, folders in variant_folders(config).items():
        links = chain(folders)
        rest = [link for link in links if link.fingerprint not in checked]
        notes += check_links(rest, mark, key=name, model=name_or_path, folder=folder, allow_mismatch=allowed)
        chains[name] = (*merged_in, *links)
    return chains, notes


def _reward_outfit(
    reward: RewardFolder, beside: RewardTrunk | None, put_on: Mapping[str, str], backbone: PreTrainedModel
) -> Outfit:
    """The reward model: adapters on the backbone, or a model beside it."""
    if beside is None:
        head = reward.head(trunk_width(backbone.config))
        return replace(_outfit(reward.links, put_on), head=head)
    trunk = beside.load()
    dress(trunk, beside.links)
    trunk.requires_grad_(False)
    if not is_packed(trunk):
        prepare_trunk(trunk)
    head = reward.head(trunk_width(trunk.config))
    return Outfit(wears=(), head=head, links=reward.links, trunk=trunk.eval())


def _outfit(links: tuple[Link, ...], put_on: Mapping[str, str]) -> Outfit:
    wears = tuple(name for link in links if (name := put_on[link.fingerprint]))
    return Outfit(
        wears=wears,
        # what a policy was kept close to: all that it wears but its own adapter
        reference=wears[:-1] if is_policy(links) else None,
        head=links[-1].files.head if links else None,
        links=links,
    )


@dataclass(frozen=True, kw_only=True)
class _Numbered(Batch):
    """A batch that remembers which rows it was made of."""

    number: Tensor


def _numbered(batch: Batch) -> _Numbered:
    return _Numbered(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        loss_mask=batch.loss_mask,
        number=torch.arange(len(batch), device=batch.input_ids.device),
    )
