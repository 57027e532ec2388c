"""A set-up of another program as one of our files: values translated in meaning, and what could not be carried over."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.config.documents import parse_scalar, read_document
from posttrain.config.foreign import FOREIGN
from posttrain.config.renamed import RENAMED
from posttrain.config.run import KEYS
from posttrain.config.translate import TRANSLATED, RefusalError, translate
from posttrain.config.values import MismatchError, convert, shown
from posttrain.errors import UserError

LLAMAFACTORY_MARKS = frozenset({"finetuning_type", "template", "cutoff_len", "dataset_dir", "stage"})


@dataclass
class Converted:
    """A set-up while it is being carried over.

    Attributes:
        origin: what it was, for the head of the file.
        values: our keys. notes: key -> comment on its line. lost: (what was written, why it is not there).
    """

    origin: str
    values: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    lost: list[tuple[str, str]] = field(default_factory=list)

    def set(self, key: str, value: Any, note: str = "") -> None:
        """Our key with a value and a comment.

        Raises:
            UserError: the value does not fit the key.
        """
        try:
            self.values[key] = convert(value, KEYS[key].hint, KEYS[key].limits)
        except MismatchError as mismatch:
            raise UserError(f"{self.origin}: `{key}` {mismatch}{'' if not note else f' ({note})'}.") from None
        if note:
            self.notes[key] = note

    def lose(self, key: str, value: Any, why: str) -> None:
        """Nothing is written for this."""
        self.lost.append((f"{key}: {shown(value)}", why))

    def take(self, key: str, value: Any) -> None:
        """A key of ours, of transformers or of LLaMA-Factory, under the name and value it has here."""
        name = RENAMED.get(key, key)
        if name in KEYS or name in TRANSLATED:
            try:
                translated, note = translate(name, value)
            except RefusalError as refusal:
                self.lose(key, value, str(refusal))
                return
            if not translated and note:
                self.lose(key, value, note)
            for target, meaning in translated.items():
                self.set(target, meaning, f"was {key}: {shown(value)}" if (target, meaning) != (key, value) else "")
        elif key in FOREIGN:
            foreign = FOREIGN[key]
            if foreign.action == "ignore" or not foreign.asks_for_nothing(value):
                self.lose(key, value, foreign.sentence)
        else:
            self.lose(key, value, "it is not a key that is known here")

    def text(self) -> str:
        """The file: a head, the keys in the order of our reference, and what was left out."""
        lines = [f"# From {self.origin}, by `posttrain config convert`.", ""]
        group = ""
        for key in KEYS.values():
            if key.name not in self.values:
                continue
            if group and key.group != group:
                lines.append("")
            group = key.group
            note = _one_line(self.notes.get(key.name, ""))
            lines.append(f"{key.name}: {_scalar(self.values[key.name])}{f'  # {note}' if note else ''}")
        if self.lost:
            lost = (_one_line(f"{written}: {why}") for written, why in self.lost)
            lines += ["", "# Not carried over:", *(f"#   {sentence}" for sentence in lost)]
        return "\n".join(lines) + "\n"


def converted(words: Sequence[str]) -> Converted:
    """What a command line of another program, or a file of one, is here.

    Args:
        words: ``file.yaml``; ``llamafactory-cli train file.yaml key=value``; ``trl dpo --config file.yaml --beta 0.2``;
            ``python train.py --device 0 --train_file_path ...``. One word with blanks is split as a shell would.

    Raises:
        UserError: it is none of these, or a file cannot be read.
    """
    from posttrain.config.from_flags import from_flags
    from posttrain.config.from_trl import from_trl
    from posttrain.config.trl import METHODS

    if len(words) == 1 and " " in words[0] and not Path(words[0]).exists():
        words = shlex.split(words[0])
    words = [word for word in words if word.strip() and word != "\\"]
    if not words:
        raise UserError(f"config convert: nothing to convert; {_USAGE}")
    readers: Mapping[str, Callable[[Sequence[str]], Converted]] = {
        "trl": from_trl,
        "llamafactory-cli": _from_llamafactory,
        "lmf": _from_llamafactory,
    }
    for start, word in enumerate(words):  # whatever stands before, flags of a launcher among it
        name = Path(word).name
        if name in readers:
            return readers[name](words[start + 1 :])
        if name.endswith(".py"):
            method = Path(name).stem
            if method in METHODS and {"trl", "scripts"} & set(Path(word).parts):
                return from_trl([method, *words[start + 1 :]])
            return from_flags(words[start:])
    for start, word in enumerate(words):
        if Path(word).suffix in (".yaml", ".yml", ".json"):
            return _from_file(words[start:])
        if word.startswith("--"):
            return from_flags(["train.py", *words[start:]])
    raise UserError(f"config convert: `{' '.join(words)[:60]}` is no set-up that is known; {_USAGE}")


_USAGE = (
    "give a LLaMA-Factory file, `trl METHOD --config FILE`, or a command line such as `train.py --train_file_path ...`"
)


def whole(value: Any, key: str) -> int:
    """A number of steps, rows or tokens.

    Raises:
        UserError: it is none.
    """
    try:
        return int(str(value))
    except ValueError:
        raise UserError(f"config convert: `{key}` must be a whole number, not {shown(value)}.") from None


def _one_line(text: str) -> str:
    return " ".join(text.split())


def flags_of(words: Sequence[str]) -> dict[str, Any]:
    """``--key value``, ``--key=value``, ``--key`` (true) and ``key=value`` as a mapping; several values are a list.

    Raises:
        UserError: a word that belongs to no flag.
    """
    found: dict[str, Any] = {}
    values: dict[str, list[Any]] = {}
    key: str | None = None
    for word in words:
        is_flag = word.startswith("--")
        name, separator, value = word.removeprefix("--").partition("=")
        if is_flag or (separator and name.isidentifier()):
            key = name.replace("-", "_")
            values[key] = [parse_scalar(value)] if separator else []
            key = None if separator and not is_flag else key
        elif key is None:
            raise UserError(f"config convert: `{word}` belongs to no flag; write --key value.")
        else:
            values[key].append(parse_scalar(word))
    for name, given in values.items():
        found[name] = True if not given else given[0] if len(given) == 1 else given
    return found


def _from_file(words: Sequence[str]) -> Converted:
    data = read_document(words[0]).data
    if LLAMAFACTORY_MARKS & data.keys():
        return _from_llamafactory(words)
    raise UserError(
        f"{words[0]}: no key says whose file it is. For TRL name the method: posttrain config convert trl "
        f"{'grpo' if 'num_generations' in data else 'sft'} --config {words[0]}"
    )


def _from_llamafactory(words: Sequence[str]) -> Converted:
    """A file and overrides, every key under the name and value that it has here."""
    words = list(words)
    verbs = ("train", "export", "chat", "api", "webchat")
    if words and words[0] in verbs:
        words.pop(0)
    if words and Path(words[0]).suffix in (".yaml", ".yml", ".json"):
        origin = f"LLaMA-Factory's {Path(words[0]).name}"
        data = {str(key): value for key, value in read_document(words[0]).data.items()}
        words.pop(0)
    else:
        origin, data = "flags of llamafactory-cli", {}
    data |= flags_of(words)
    if not data:
        raise UserError(f"config convert: nothing to convert; {_USAGE}")
    found = Converted(origin=origin)
    if data.get("reward_model_adapters"):
        data.pop("reward_model", None)
    for key, value in data.items():
        if key in RENAMED and RENAMED[key] in data:
            found.lose(key, value, f"`{RENAMED[key]}` is set too")
        else:
            found.take(key, value)
    return found


def _scalar(value: Any) -> str:
    """A value as YAML writes it, on one line."""
    import yaml

    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=10_000).strip()
    return text.removesuffix("\n...").removesuffix("...").strip()
