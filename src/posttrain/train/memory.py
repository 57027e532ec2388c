"""How much memory a run will take, from the configuration and the models' config.json alone; no weights are loaded.

    state    = weights + adapters + gradients + optimizer, of every model that is held
    training = state + what the largest micro-batch keeps for its backward pass + a chunk of logits
               + the completions' states behind frozen layers, where all that trains is above these
    sampling = state + merged copies of the layers that wear adapters + keys and values of all slots + their logits

Sizes of weights and of what is kept for backward are those of the model itself, run without storage
(``models/skeleton``); they are exact to a percent. Fragmentation, and what libraries set aside, are not known before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from posttrain.config import RunConfig, is_online
from posttrain.engine import DEFAULT_MAX_TOKENS
from posttrain.engine.optimizers import state_bytes
from posttrain.models.adapters import add_adapter, base_weight, lora_layers
from posttrain.models.assemble_online import has_critic, head_of_its_own
from posttrain.models.assemble_reference import has_reference_model
from posttrain.models.assembly import WITH_DROPOUT, base_parameters, new_adapter
from posttrain.models.backbone import device, model_folder, precision
from posttrain.models.chains import Link, base_of, chain, names_model
from posttrain.models.fetch import resolve_model
from posttrain.models.lineage import read_lineage
from posttrain.models.load import disable_dropout
from posttrain.models.quantize import Quantization
from posttrain.models.reward_folder import RewardFolder
from posttrain.models.skeleton import num_elements, num_linear, saved_bytes, skeleton, stored_elements
from posttrain.models.split import num_frozen
from posttrain.models.trunks import ensemble_folders, reward_folder
from posttrain.train.parts import optimizer_rows

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TRAINED = 4  # bytes of a number that trains, and of its gradient: always float32
_CHUNK = 256  # rows of logits that are held at once
# Bytes of a number with its share of the scales: 4 bits with a scale for 64 of them, 8 bits with one for a row.
_QUANTISED = {4: 0.53, 8: 1.01}
_OWN = "own"
_PAIRS = ("rm", "dpo")


@dataclass(frozen=True, kw_only=True)
class ModelMemory:
    """One model that is held, in bytes.

    Attributes:
        name: what the user calls it. roles: who lives on it.
        num_parameters: of the model, adapters aside. num_trained: numbers of it, or of adapters and heads on it, that
            train.
        weights: of the model. adapters: of everything worn on it. gradients, optimizer: of what trains.
    """

    name: str
    roles: tuple[str, ...]
    num_parameters: int
    num_trained: int
    weights: int
    adapters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.adapters + self.gradients + self.optimizer


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What a run will hold at its fullest, in bytes, on ``device``.

    Attributes:
        models: what is held throughout.
        num_tokens: of the largest micro-batch.
        activations: what it keeps for its backward pass. logits: the chunk of them, or those of a decoding step.
        merged: copies of layers with their adapters added in, while sampling. kv_cache: of all slots, completions at
            their longest. Both 0 in stages that do not sample.
        lower_states: of all completions of an iteration behind the layers beneath all training, kept for its updates.
        checkpoint: bytes on disk of one checkpoint.
    """

    device: str
    models: tuple[ModelMemory, ...]
    num_tokens: int
    activations: int
    logits: int
    merged: int
    kv_cache: int
    lower_states: int
    checkpoint: int

    @property
    def state(self) -> int:
        """Weights, adapters, gradients and moments of all models."""
        return sum(model.total for model in self.models)

    @property
    def training(self) -> int:
        """While a micro-batch goes backward."""
        return self.state + self.activations + self.logits + self.lower_states

    @property
    def sampling(self) -> int:
        """While completions are decoded; in stages that do not sample just the state."""
        return self.state + self.merged + self.kv_cache + (self.logits if self.kv_cache else 0)

    @property
    def peak(self) -> int:
        """The larger of the two; what the interpreter and its libraries take (0.5 to 1 GB) comes on top."""
        return max(self.training, self.sampling)


def memory_plan(config: RunConfig, *, longest: int | None = None, longest_prompt: int | None = None) -> MemoryPlan:
    """The memory of a training run on this machine.

    Args:
        config: loaded with ``command="train"``; the folders it names are read, their weights are not.
        longest: tokens of the longest row (pair, in rm and dpo: of both answers on one prompt); None goes by
            ``cutoff_len``, and in stages that sample by ``longest_prompt`` and ``max_new_tokens``.
        longest_prompt: tokens of the longest prompt; None is ``cutoff_len``.

    Raises:
        UserError: a folder is not there, or is not what its key needs.
    """
    sampled = is_online(config.method.stage)
    prompt = longest_prompt or config.data.cutoff_len
    if longest is None:
        longest = config.data.cutoff_len * (2 if config.method.stage in _PAIRS else 1)
    if sampled:
        longest = prompt + config.generation.max_new_tokens
    planned = _Planned(config)
    models = tuple(planned.online() if sampled else planned.offline())
    actor, width = planned.trains, torch.finfo(planned.dtype).bits // 8
    rows = optimizer_rows(config) * (config.online.ppo_buffer_size if sampled else 1)
    limit = config.train.max_tokens_per_microbatch or DEFAULT_MAX_TOKENS
    num_tokens = max(longest, min(limit, optimizer_rows(config) * longest))
    vocabulary = int(actor.config.get_text_config().vocab_size)
    slots = min(config.online.num_rollout_slots, rows) if sampled else 0
    return MemoryPlan(
        device=str(device()),
        models=models,
        num_tokens=num_tokens,
        activations=_activations(config, actor, num_tokens, longest, width),
        logits=max(_CHUNK * vocabulary * (4 + width), slots * vocabulary * 4 * _logit_copies(config)),
        merged=_merged(actor, width) if sampled and planned.bits is None else 0,
        kv_cache=slots * longest * kv_bytes_per_token(actor, width),
        lower_states=rows * longest * planned.lower_state(width) if sampled else 0,
        checkpoint=planned.checkpoint(models),
    )


def kv_bytes_per_token(model: PreTrainedModel, width: int) -> int:
    """Keys and values of one token in all layers, ``width`` bytes a number."""
    config = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    size = getattr(config, "head_dim", None) or int(config.hidden_size) // heads
    return 2 * int(config.num_hidden_layers) * (getattr(config, "num_key_value_heads", None) or heads) * size * width


class _Planned:
    """The models of a run as they will be assembled, on skeletons."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.adapts = config.method.finetuning_type == "lora"
        name, _ = precision(config, device(), trains_base=not self.adapts)
        self.dtype = _DTYPES[name]
        self.folder = model_folder(config)
        quantised = Quantization.configured(config.model) if self.adapts else None
        self.bits = quantised.bits if quantised else None
        self.trains = self._skeleton(self.folder)

    def offline(self) -> Iterator[ModelMemory]:
        """One model with one role that trains."""
        config, model = self.config, self.trains
        links = chain(config.model.adapter_name_or_path)
        size = num_linear(model)
        score = int(model.config.get_text_config().hidden_size) if config.method.stage == "rm" else 0
        role = "reward" if config.method.stage == "rm" else "actor"
        asked = config.method.stage in ("dpo", "kto")
        apart = asked and has_reference_model(config)
        roles = (role, "reference before training") if asked and not apart else (role,)
        continued = bool(links) and self.adapts and not config.method.create_new_adapter
        trained = score + self._dress(links[-1] if continued else None)
        yield self._memory(config.model.model_name_or_path, roles, size, trained=trained)
        if apart:
            yield self._reference_model()

    def _reference_model(self) -> ModelMemory:
        """A reference of its own, which is there beside the policy until it has spoken."""
        config = self.config
        named, worn = config.preference.ref_model, _elements(chain(config.preference.ref_model_adapters))
        folder = self.folder if named is None else Path(resolve_model(named, cache_dir=config.model.cache_dir))
        bits = self.bits if named is None else config.model.ref_model_quantization_bit
        name, roles = named or config.model.model_name_or_path, ("reference before training",)
        return self._memory(name, roles, num_linear(self._skeleton(folder)), worn=worn, bits=bits)

    def online(self) -> Iterator[ModelMemory]:
        """Actor, reference, reward and critic, on one model where that is exact."""
        config = self.config
        reward = reward_folder(config)
        beside = None if reward is None else self._reward_base(reward)
        size = num_linear(self.trains)
        worn = _elements(link for member in ensemble_folders(config) for link in member.links)
        scores: tuple[str, ...] = ()
        if reward is not None and beside is None:
            worn += _elements(reward.links) + _elements(self._merged_in(reward))
            scores = ("reward",)
        critic = config.ppo.critic if has_critic(config) else None
        name, head = config.model.model_name_or_path, _head_size(self.trains)
        trained = self._dress(None)
        on_actor = head if critic == "value_head" else 0
        apart = trained + head
        if self.adapts:
            here = critic == "value_head" or (critic == "adapter" and beside is None)
            roles = ("actor", "reference", *scores, *(("critic",) if here else ()))
            both = apart if critic == "adapter" and here else on_actor
            yield self._memory(name, roles, size, trained=trained + both, worn=worn)
        else:
            roles = ("actor", "critic") if on_actor else ("actor",)
            yield self._memory(name, roles, size, trained=trained + on_actor)
            yield self._memory(name, ("reference", *scores), size, worn=worn)
            if critic == "model":
                output = head_of_its_own(self.trains)
                apart -= num_elements(self.trains, lambda n, p: n in output and p.requires_grad)
                yield self._memory("critic", ("critic",), size, trained=apart)
        if beside is not None:
            host = self._skeleton(beside)
            other, lives = num_linear(host), critic == "adapter" and self.adapts
            links = () if reward is None else reward.links
            roles = ("reward", "critic") if lives else ("reward",)
            moves = self._adapter(host, new_adapter(config, host)) + _head_size(host) if lives else 0
            bits: int | None = self.bits
            if reward is not None and reward.kind == "model":
                bits = config.model.reward_model_quantization_bit if self.adapts else None
            yield self._memory(str(beside), roles, other, trained=moves, worn=_elements(links), bits=bits)
        if config.reward.reward_classifier:
            yield self._classifier(config.reward.reward_classifier)

    def lower_state(self, width: int) -> int:
        """Bytes of a token's states behind frozen layers, ``width`` a number; a critic of its own may have its own."""
        if not num_frozen(self.trains, [name for name, p in self.trains.named_parameters() if p.requires_grad]):
            return 0
        both = has_critic(self.config) and self.config.ppo.critic != "value_head"
        return int(self.trains.config.get_text_config().hidden_size) * width * (2 if both else 1)

    def checkpoint(self, models: tuple[ModelMemory, ...]) -> int:
        """Bytes on disk: what trains with its moments, and the model as users load it."""
        trained = sum(model.num_trained for model in models)
        whole = 0 if self.adapts else models[0].weights
        state = 0 if self.config.train.save_only_model else state_bytes(self.config.train.optim)
        own = trained if self.adapts else models[0].num_trained
        return int(whole + trained * (_TRAINED + state) + (own * _TRAINED if self.adapts else 0))

    def _skeleton(self, folder: Path) -> PreTrainedModel:
        return skeleton(folder, dtype=self.dtype, trust_remote_code=self.config.model.trust_remote_code)

    def _dress(self, continued: Link | None) -> int:
        """Let train what will train; returns how many numbers that is."""
        model = self.trains
        if self.adapts:
            return self._adapter(
                model, new_adapter(self.config, model) if continued is None else continued.files.config
            )
        names = base_parameters(model, self.config.method)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        return num_elements(model, lambda name, _: name in names)

    def _adapter(self, model: PreTrainedModel, config: Any) -> int:
        with torch.device("meta"):
            add_adapter(model, _OWN, config)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(f".{_OWN}." in name)
        return num_elements(model, lambda _, parameter: parameter.requires_grad)

    def _memory(
        self,
        name: str,
        roles: tuple[str, ...],
        sizes: tuple[int, int],
        *,
        trained: int = 0,
        worn: int = 0,
        bits: int | Literal["own"] | None = "own",
    ) -> ModelMemory:
        size, linear = sizes
        return ModelMemory(
            name=name,
            roles=roles,
            num_parameters=size,
            num_trained=trained,
            weights=self._weights(size, linear, self.bits if bits == "own" else bits),
            adapters=(worn + (trained if self.adapts else 0)) * _TRAINED,
            gradients=trained * _TRAINED,
            optimizer=int(trained * state_bytes(self.config.train.optim)),
        )

    def _reward_base(self, reward: RewardFolder) -> Path | None:
        """The folder of the model that the reward stands on, None where it is the actor's; names alone are compared."""
        if reward.kind == "model":
            return reward.folder
        recorded = base_of(reward.links)
        name = recorded.base.name_or_path if recorded else reward.base_name_or_path
        own = read_lineage(self.folder)
        mine = [(self.config.model.model_name_or_path, str(self.folder))]
        if own is not None and own.merged:
            mine.append((own.base.name_or_path, own.base.name_or_path))
        if not name or any(names_model(name, called, folder) for called, folder in mine):
            return None
        if recorded and own is not None and own.weights == recorded.base.fingerprint:
            return None
        return Path(resolve_model(name, cache_dir=self.config.model.cache_dir))

    def _weights(self, size: int, linear: int, bits: int | None) -> int:
        """Bytes of a model's weights; under quantisation its linear layers are the smaller ones."""
        width = torch.finfo(self.dtype).bits // 8
        return int((size - linear) * width + linear * (width if bits is None else _QUANTISED[bits]))

    def _merged_in(self, reward: RewardFolder) -> tuple[Link, ...]:
        """Adapters that actor and reference wear on a base that a merged model is taken back to, for the reward."""
        own, recorded = read_lineage(self.folder), base_of(reward.links)
        if own is None or not own.merged:
            return ()
        if recorded is not None and recorded.base.fingerprint != own.base.fingerprint:
            return ()
        return chain(self.folder / parent.path for parent in own.parents)

    def _classifier(self, name: str) -> ModelMemory:
        folder = Path(resolve_model(name, cache_dir=self.config.model.cache_dir))
        size = stored_elements(folder)
        half = device().type == "cuda" and self.config.reward.reward_dtype != "float32"
        return ModelMemory(
            name=name,
            roles=("reward_classifier",),
            num_parameters=size,
            num_trained=0,
            weights=size * (2 if half else 4),
            adapters=0,
            gradients=0,
            optimizer=0,
        )


def _activations(config: RunConfig, model: PreTrainedModel, num_tokens: int, longest: int, width: int) -> int:
    """What one micro-batch keeps: all of it, or with checkpointing each layer's input and one layer in full.

    With offloading it is what two layers keep: one that computes, one on its way.
    """
    text = model.config.get_text_config()
    layers, state = int(text.num_hidden_layers), num_tokens * int(text.hidden_size) * width
    if config.method.stage not in WITH_DROPOUT:
        disable_dropout(model)
    whole = saved_bytes(model, num_tokens, longest)
    if config.train.gradient_checkpointing:
        whole = layers * state + whole // layers
    elif config.train.activation_offloading and device().type == "cuda":
        whole = 2 * whole // layers
    return whole + 2 * state  # the states that the heads read, and their gradient


def _merged(model: PreTrainedModel, width: int) -> int:
    """Copies of the layers that wear adapters, and the one difference in float32 that is being added."""
    sizes = [base_weight(layer).numel() for layer in lora_layers(model)]
    return sum(sizes) * width + max(sizes, default=0) * _TRAINED


def _logit_copies(config: RunConfig) -> int:
    """How often the logits of a decoding step are there at once: sorting makes more of them."""
    cuts = config.generation.top_p < 1 or config.generation.top_k > 0 or config.generation.min_p > 0
    return 6 if cuts else 4


def _head_size(model: PreTrainedModel) -> int:
    """Numbers of a value head: one a column, and its bias."""
    return int(model.config.get_text_config().hidden_size) + 1


def _elements(links: Iterable[Link]) -> int:
    """Numbers that these adapters hold."""
    return sum(tensor.numel() for link in links for tensor in link.files.state.values())
