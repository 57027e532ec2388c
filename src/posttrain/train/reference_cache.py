"""What a reference said, kept for all runs of a user: under the hash of the weights, the rows and how it was computed.

The same pairs are often trained on with other learning rates, betas or ranks; the reference is then asked once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import posttrain
from posttrain.config.home import cache_home
from posttrain.data.cache import forget_old

FOLDER = "references"
SMALLEST = 10**10
"""Parameters times tokens below which asking is over before a cache would pay."""
_NAME, _KEY = "logps", "key"
_ELSEWHERE = ("_name_or_path", "transformers_version", "_attn_implementation_autoset")


def shared_place(model: nn.Module, rows: str, num_tokens: int, how: Sequence[object]) -> Path | None:
    """Where the answers of ``model`` to some rows are kept for all runs; None where that would not pay.

    Args:
        model: that answers.
        rows: hash of the rows.
        num_tokens: of all of them.
        how: what else decides about the last bits, such as the size of micro-batches.
    """
    if num_tokens * sum(parameter.numel() for parameter in model.parameters()) < SMALLEST:
        return None
    versions = [posttrain.__version__, torch.__version__]
    key = json.dumps([rows, weights_hash(model), versions, [str(value) for value in how]])
    return cache_home() / FOLDER / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"


def weights_hash(model: nn.Module) -> str:
    """A hash of every weight and of the configuration of the models within.

    An adapter whose B is still 0 adds nothing and leaves no trace: what a new one is drawn from does not matter.
    """
    digest = hashlib.sha256()
    for name, tensor in _that_count(model):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "to_dict"):
            values = {name: value for name, value in config.to_dict().items() if name not in _ELSEWHERE}
            digest.update(json.dumps(values, sort_keys=True, default=str).encode())
            break  # those of its parts are within
    return digest.hexdigest()


def kept(path: Path | None, key: str) -> Tensor | None:
    """The log-probabilities in a file, where they are of this key."""
    if path is None or not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get(_KEY) != key:
                return None
        return load_file(path)[_NAME]
    except (OSError, SafetensorError, KeyError):
        return None


def keep(path: Path, logps: Tensor, key: str) -> None:
    """Write such a file."""
    save_file({_NAME: logps}, path, metadata={_KEY: key})


def keep_shared(path: Path, logps: Tensor) -> str | None:
    """Write it for all runs, whole or not at all, and remove what none has used for a month.

    Returns:
        None, or why it cannot be kept.
    """
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        keep(partial, logps, path.stem)
        os.replace(partial, path)
        forget_old(path.parent)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        return f"{path.parent} cannot be written ({error}); POSTTRAIN_HOME names another"
    return None


def kept_shared(path: Path | None) -> Tensor | None:
    """What another run has kept; it counts as used now."""
    found = kept(path, path.stem if path else "")
    if found is not None and path is not None:
        with suppress(OSError):
            os.utime(path)
    return found


def _that_count(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers in the order of their names, without adapters that add nothing."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    silent = {name for name, tensor in tensors.items() if ".lora_B." in name and not tensor.any()}
    silent |= {name.replace(".lora_B.", ".lora_A.") for name in silent}
    for name in sorted(tensors.keys() - silent):
        yield name, tensors[name]
