"""A GPT-2 of random weights, to train from scratch, with a BertTokenizer whose words are characters of given texts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BertTokenizer, GPT2Config, GPT2LMHeadModel

from posttrain.errors import UserError
from posttrain.models.load import quiet

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_FILES = ("config.json", "model.safetensors", "vocab.txt")


@dataclass(frozen=True)
class NewModel:
    """What was written.

    Attributes:
        directory: where. num_words, num_weights: of the model. digests: file name -> SHA-256.
    """

    directory: Path
    num_words: int
    num_weights: int
    digests: Mapping[str, str]


def generate(
    directory: Path,
    *,
    seed: int = 0,
    texts: Sequence[str] = (),
    num_layers: int = 4,
    width: int = 192,
    num_heads: int = 4,
    num_positions: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> NewModel:
    """Write the model's folder; the same arguments give the same bytes under one version of torch.

    Args:
        directory: created when missing. seed: of the weights.
        texts: JSON Lines or plain text; every character in them becomes a word, letters and digits within a word, too.
        num_layers, width, num_heads, num_positions: of the GPT-2.
        progress: called with (files written, files in all).

    Raises:
        UserError: no text, a file that cannot be read, sizes that do not fit each other, or a folder that cannot be
            written.
    """
    if not texts:
        raise UserError("`texts` is empty: name the files whose characters the model is to know")
    if min(num_layers, width, num_heads, num_positions) < 1 or width % num_heads:
        raise UserError(f"width {width} must be a multiple of num_heads {num_heads}, and every size at least 1")
    words = vocabulary(Path(text).expanduser() for text in texts)
    config = GPT2Config(
        vocab_size=len(words),
        n_layer=num_layers,
        n_embd=width,
        n_head=num_heads,
        n_positions=num_positions,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    digests = _write(directory, model, words)
    if progress:
        progress(len(_FILES), len(_FILES))
    manifest = {"seed": seed, "num_words": len(words), "num_weights": model.num_parameters(), "digests": digests}
    (directory / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8", newline="\n")
    return NewModel(directory, len(words), model.num_parameters(), digests)


def vocabulary(files: Iterator[Path]) -> list[str]:
    """Special tokens, then the characters of the files, the most frequent first.

    Raises:
        UserError: a file is missing or not UTF-8.
    """
    counts: Counter[str] = Counter()
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"texts: {file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        for line in lines:
            counts.update("".join(_texts_of(line, is_json=file.suffix in (".json", ".jsonl"))).lower())
    words = [character for character, _ in counts.most_common() if not character.isspace()]
    inner = [f"##{character}" for character in words if character.isascii() and character.isalnum()]
    return list(dict.fromkeys([*SPECIAL, *words, *inner]))


def _texts_of(line: str, *, is_json: bool) -> Iterator[str]:
    """The line, or all texts of the JSON object in it."""
    if not is_json:
        yield line
        return
    try:
        values: list[Any] = [json.loads(line)]
    except ValueError:  # a JSON file of many lines: its characters are all that is wanted
        yield line
        return
    while values:
        value = values.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            values += value.values()
        elif isinstance(value, list):
            values += value


def _write(directory: Path, model: GPT2LMHeadModel, words: Sequence[str]) -> dict[str, str]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8", newline="\n")
        with quiet():
            model.save_pretrained(directory)
            BertTokenizer.from_pretrained(directory, eos_token="[SEP]").save_pretrained(directory)
        # what save_pretrained leaves of it differs from version to version
        (directory / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"{directory} cannot be written: {error.strerror or error}") from error
    return {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in _FILES}
