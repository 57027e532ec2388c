"""Reward models in folders of any origin: what one holds, its head, and its trunk where it brings one.

    reward = read_reward_folder(path)                                # no trunk weights are loaded
    reward.kind                                                      # "adapter" | "model"
    reward.links                                                     # kind adapter: the chain to wear, ``path`` last
    reward.head(hidden_size, kind="score")                           # ScalarHead; kind="value" for a critic
    model = load_reward_trunk(reward, dtype=..., device=...)         # kind model: packed, frozen, in evaluation mode
    answer(model, {"score": reward.head(width)}, batch, wants=("score",))

Scores are read at the last real token of a sequence, as all of these do by their own code; the head knows the one
exception (``ScalarHead.skips``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from posttrain.errors import UserError
from posttrain.models.adapter_files import CONFIG
from posttrain.models.chains import Link, chain
from posttrain.models.forward import prepare_trunk
from posttrain.models.heads import FoundHead, Kind, ScalarHead, find_heads, no_head, read_bin
from posttrain.models.lineage import Lineage, read_lineage
from posttrain.models.load import DtypeName, check_model_folder, choose_dtype, load_causal_lm, read_json
from posttrain.models.quantize import Quantization, quantize

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# wrappers that were saved with their weights: TRL's value-head model under ZeRO-3, data parallelism
_WRAPPED = re.compile(r"(module\.)?pretrained_model\.|module\.")


@dataclass(frozen=True, kw_only=True)
class RewardFolder:
    """What a reward model's folder holds.

    Attributes:
        folder: where it lies.
        kind: "adapter", worn by a backbone, or "model", with a trunk of its own.
        layout: what it is, for sentences: "a LLaMA-Factory reward adapter".
        found: the head's weights.
        links: of an adapter: it and the parents it records, innermost first.
        base_name_or_path: what an adapter names as its base model, "" where it does not.
        lineage: what the folder records of its origin, if it does.
        notes: sentences for the user.
    """

    folder: Path
    kind: Literal["adapter", "model"]
    layout: str
    found: FoundHead
    links: tuple[Link, ...] = ()
    base_name_or_path: str = ""
    lineage: Lineage | None = None
    notes: tuple[str, ...] = ()

    @property
    def hidden_size(self) -> int:
        """D, of the trunk that the head was trained on."""
        return int(self.found.weight.shape[1])

    def head(self, hidden_size: int, *, kind: Kind = "score") -> ScalarHead:
        """The head as a "score" or, for a critic to start from, as a "value".

        Raises:
            UserError: the trunk has another hidden size.
        """
        if self.hidden_size != hidden_size:
            raise UserError(
                f"{self.folder}: its head is for a model of hidden size {self.hidden_size}, the model at hand has "
                f"{hidden_size}. It was trained on another model."
            )
        return self.found.head(kind)


def read_reward_folder(path: str | Path) -> RewardFolder:
    """What the folder of a reward model holds, whoever wrote it.

    Adapters: ours and LLaMA-Factory's (LoRA weights beside ``value_head.safetensors`` or ``.bin``), peft's SEQ_CLS
    (``score`` among the weights). Models: sequence classifiers with one label, whole language models with a value
    head beside or among their weights (LLaMA-Factory's full fine-tuning, TRL), a trunk with ``value_fn``.

    Raises:
        UserError: it is none of these, has no head or several that differ, or a file is damaged.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"the reward model {folder} {'is a file' if folder.exists() else 'does not exist'}.")
    is_adapter, is_model = ((folder / name).is_file() for name in (CONFIG, "config.json"))
    if is_adapter and any((folder / name).is_file() for name in _WEIGHTS):
        raise UserError(
            f"{folder} holds an adapter ({CONFIG}) and the weights of a whole model; which of the two scores is not "
            "clear. Move one of them into a folder of its own."
        )
    if is_adapter:
        links, found = chain([folder]), _the_head(folder)
        lineage = links[-1].files.lineage
        return RewardFolder(
            folder=folder,
            kind="adapter",
            layout=_layout(found, lineage, "adapter"),
            found=found,
            links=links,
            base_name_or_path=links[-1].files.base_model_name_or_path,
            lineage=lineage,
            notes=_notes(folder, found),
        )
    if not is_model:
        raise UserError(f"{folder} is no reward model: it has neither {CONFIG} nor config.json.")
    check_model_folder(folder)
    found, lineage = _the_head(folder), read_lineage(folder)
    return RewardFolder(
        folder=folder,
        kind="model",
        layout=_layout(found, lineage, "model"),
        found=found,
        lineage=lineage,
        notes=_notes(folder, found),
    )


def load_reward_trunk(
    reward: RewardFolder,
    *,
    dtype: DtypeName = "float32",
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
    how: Quantization | None = None,
) -> PreTrainedModel:
    """The trunk of a whole reward model as a causal language model, frozen, in evaluation mode, packed where it can be.

    Its output head shares the embedding's weights and means nothing.

    Args:
        reward: of kind "model".
        dtype, device, trust_remote_code: as for ``load_causal_lm``.
        how: quantise its linear layers.

    Raises:
        UserError: its trunk is none of a causal language model, or weights are missing.
    """
    if reward.kind != "model":
        raise ValueError(f"{reward.folder} is an adapter: it has no trunk of its own")
    wrapped = any(_WRAPPED.match(name) for name in _weight_names(reward.folder))
    model = load_causal_lm(
        reward.folder,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
        key_mapping={f"^(?:{_WRAPPED.pattern})": ""} if wrapped else None,
        trunk_only=True,
        as_stored=how is not None,
    )
    if how is not None:
        quantize(model, how, torch.device(device), choose_dtype(dtype, device, reward.folder)[0])
    model.requires_grad_(False)
    prepare_trunk(model)
    return model


def _the_head(folder: Path) -> FoundHead:
    """The one head in ``folder``."""
    heads = list(find_heads(folder))
    if not heads:
        raise no_head(folder, "reward")
    for other in heads[1:]:
        if not other.agrees(heads[0]):
            raise UserError(
                f"{folder} holds two heads that differ, {heads[0].module} in {heads[0].path.name} and {other.module} "
                f"in {other.path.name}. Remove the one that does not belong to this model."
            )
    return heads[0]


def _layout(found: FoundHead, lineage: Lineage | None, kind: str) -> str:
    if lineage is not None:
        return f"a reward {kind} of posttrain"
    if found.module == "score":
        return "a sequence classifier" if kind == "model" else "a peft SEQ_CLS adapter"
    if found.module == "value_fn":
        return "a trunk with a value_fn head"
    alone = found.path.name.startswith("value_head")
    return f"a LLaMA-Factory reward {kind}" if alone else "a language model with a value head among its weights"


def _notes(folder: Path, found: FoundHead) -> tuple[str, ...]:
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    ends = config.get("eos_token_id")
    if found.skips is None or found.skips not in (ends if isinstance(ends, list) else [ends]):
        return ()
    return (
        f"{folder} pads with the token that ends its texts (id {found.skips}), so its score is read at the token "
        "before, as it was trained.",
    )


def _weight_names(folder: Path) -> list[str]:
    """Names of all weights of a whole model."""
    path = next(folder / name for name in _WEIGHTS if (folder / name).is_file())
    if path.name.endswith(".index.json"):
        return list(read_json(path).get("weight_map", {}))
    if path.suffix == ".bin":
        return list(read_bin(path))
    with safe_open(path, framework="pt") as file:
        return list(file.keys())
