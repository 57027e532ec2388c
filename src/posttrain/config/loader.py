"""From a file, a mapping and overrides to a checked RunConfig, or to one message that names every mistake."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.config.defaults import fill, stage_defaults
from posttrain.config.documents import parse_scalar, read_document
from posttrain.config.foreign import FOREIGN
from posttrain.config.renamed import ELSEWHERE, RENAMED
from posttrain.config.rules import cautions, problems
from posttrain.config.run import KEYS, Command, RunConfig
from posttrain.config.script import FLAGS, FlagError, readings
from posttrain.config.translate import TRANSLATED, RefusalError, translate
from posttrain.config.values import MismatchError, convert, shown
from posttrain.errors import UserError

COMMAND_LINE = "command line"
STAGE_DEFAULT = "default of the stage"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A value as it was written, and where."""

    value: Any
    where: str


@dataclass
class _Reading:
    """What has been gathered from the entries so far."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)


def load_config(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), *, command: Command = "train"
) -> RunConfig:
    """The configuration of one command.

    Args:
        source: a YAML or JSON file, or a mapping with the same flat keys.
        overrides: ``key=value`` texts that win over the source; values are read as YAML.
        command: decides which keys are required; keys that do not concern it are accepted and checked for their type.

    Raises:
        UserError: names the file, the line, the key and the likely fix of everything that is wrong.
    """
    if isinstance(source, Mapping):
        name = "configuration"
        entries = {str(key): Entry(value=value, where=name) for key, value in source.items()}
    else:
        document = read_document(source)
        name = document.name
        entries = {str(key): Entry(value=value, where=document.where(str(key))) for key, value in document.data.items()}
    for text in overrides:
        key, value = split_override(text)
        entries[key] = Entry(value=value, where=COMMAND_LINE)
    return resolve(entries, name=name, command=command)


def split_override(text: str) -> tuple[str, Any]:
    """``key=value`` as the key and its value.

    Raises:
        UserError: there is no ``=``, or nothing before it.
    """
    key, separator, value = text.partition("=")
    key = key.strip().removeprefix("--")
    if not separator or not key:
        raise UserError(f"{COMMAND_LINE}: `{text}` is not an override; write it as key=value, such as max_steps=100.")
    return key, parse_scalar(value.strip())


def resolve(entries: Mapping[str, Entry], *, name: str, command: Command) -> RunConfig:
    """The configuration that these entries describe.

    Raises:
        UserError: as ``load_config``.
    """
    reading = _Reading()
    entries = _without_flags(entries, command, reading)
    entries = _without_trunk(entries, reading)
    for key, entry in entries.items():
        _read_entry(key, entry, entries, reading)
    _require_model(reading, name, command)
    _stop_on_mistakes(reading, name)
    for key in stage_defaults(reading.values.get("stage", "sft")):
        reading.sources.setdefault(key, STAGE_DEFAULT)
    values = fill(reading.values, command)
    config = RunConfig.from_values(values, sources=reading.sources, warnings=())
    for key, sentence in problems(config, command):
        reading.mistakes.append(f"{entries[key].where if key in entries else name}: {sentence}.")
    _stop_on_mistakes(reading, name)
    warnings = (*reading.warnings, *(f"{sentence}." for sentence in cautions(config, command)))
    return RunConfig.from_values(values, sources=reading.sources, warnings=warnings)


def _without_flags(entries: Mapping[str, Entry], command: Command, reading: _Reading) -> Mapping[str, Entry]:
    """The entries with what a script's flags among them are here; of two for one key the command line's wins."""
    written = {key: entry.value for key, entry in entries.items()}
    try:
        found, notes = readings(written, trains=command == "train")
    except FlagError as error:
        reading.mistakes.append(
            f"{entries[error.flag].where if error.flag in entries else ''}: `{error.flag}` {error}."
        )
        return {key: entry for key, entry in entries.items() if key not in FLAGS}
    flags = {item.flag for item in found}
    kept = {key: entry for key, entry in entries.items() if key not in FLAGS and key not in flags}
    told: dict[str, list[str]] = {}
    for item in found:
        own, flag = kept.get(item.key), entries[item.flag]
        if own is not None and not (flag.where == COMMAND_LINE != own.where):
            notes.append(f"`{item.flag}` is ignored: `{item.key}` is set too")
            continue
        kept[item.key] = Entry(value=item.value, where=flag.where)
        told.setdefault(item.flag, []).append(f"`{item.key}: {shown(item.value)}`")
    if told:
        read = ", ".join(f"`{flag}` as {' and '.join(keys)}" for flag, keys in told.items())
        reading.warnings.append(f"flags of a script are read as keys: {read}.")
    reading.warnings += [f"{note}." for note in notes]
    return kept


def _without_trunk(entries: Mapping[str, Entry], reading: _Reading) -> Mapping[str, Entry]:
    """The entries without ``reward_model`` where adapters on it are named: the adapter knows its base."""
    adapters, trunk = entries.get("reward_model_adapters"), entries.get("reward_model")
    if adapters is None or trunk is None or not translate("reward_model_adapters", adapters.value)[0]:
        return entries
    reading.warnings.append(f"`reward_model: {trunk.value}` is taken to be the base of `reward_model_adapters`.")
    return {key: entry for key, entry in entries.items() if key != "reward_model"}


def _read_entry(key: str, entry: Entry, entries: Mapping[str, Entry], reading: _Reading) -> None:
    if key in RENAMED:
        target = RENAMED[key]
        if target in entries:
            reading.warnings.append(f"`{key}` is ignored: `{target}` is set too.")
            return
        reading.warnings.append(f"`{key}` is called `{target}` here and read as such.")
        _read_value(target, key, entry, entries, reading)
    elif key in KEYS or key in TRANSLATED:
        _read_value(key, key, entry, entries, reading)
    elif key in FOREIGN:
        _read_foreign(key, entry, reading)
    else:
        reading.mistakes.append(f"{entry.where}: {_unknown(key)}")


def _read_value(key: str, written: str, entry: Entry, entries: Mapping[str, Entry], reading: _Reading) -> None:
    try:
        translated, note = translate(key, entry.value)
    except RefusalError as refusal:
        reading.mistakes.append(f"{entry.where}: `{written}: {entry.value}` {refusal}.")
        return
    for target, value in translated.items():
        if target != key and target in entries:
            note = f"`{written}` is ignored: `{target}` is set too"
            continue
        try:
            reading.values[target] = convert(value, KEYS[target].hint, KEYS[target].limits)
            reading.sources[target] = entry.where
        except MismatchError as mismatch:
            reading.mistakes.append(f"{entry.where}: `{written}` {_closed(str(mismatch))}")
            return
    if note:
        reading.warnings.append(f"{note}.")


def _read_foreign(key: str, entry: Entry, reading: _Reading) -> None:
    foreign = FOREIGN[key]
    if foreign.action == "ignore":
        reading.warnings.append(f"`{key}` is ignored: {foreign.sentence}.")
    elif foreign.asks_for_nothing(entry.value):
        reading.warnings.append(f"`{key}: {shown(entry.value)}` changes nothing: posttrain has no other way.")
    else:
        reading.mistakes.append(f"{entry.where}: `{key}: {shown(entry.value)}` is not supported: {foreign.sentence}.")


def _closed(sentence: str) -> str:
    return sentence if sentence.endswith("?") else f"{sentence}."


def _unknown(key: str) -> str:
    plain = key.strip().lower().replace("-", "_")
    if plain in ELSEWHERE:
        return f"`{key}` is not a key here; what it stands for is set by `{ELSEWHERE[plain]}`."
    near = difflib.get_close_matches(plain, [*KEYS, *RENAMED, *sorted(FLAGS)], n=1, cutoff=0.6)
    if near:
        return f"unknown key `{key}`; did you mean `{RENAMED.get(near[0], near[0])}`?"
    return f"unknown key `{key}`; docs/configuration.md lists the keys that there are."


def _require_model(reading: _Reading, name: str, command: Command) -> None:
    scored = command == "eval" and bool(reading.values.get("predictions"))
    if command in ("label", "data") or scored:  # answers that are there already, and rows as they are, need no model
        reading.values.setdefault("model_name_or_path", "")
    if "model_name_or_path" not in reading.values and not reading.mistakes:
        reading.mistakes.append(
            f"{name}: `model_name_or_path` is missing: every command needs the folder or name of the base model; add a "
            "line such as `model_name_or_path: smollm2-135m-instruct`."
        )


def _stop_on_mistakes(reading: _Reading, name: str) -> None:
    if not reading.mistakes:
        return
    if len(reading.mistakes) == 1:
        raise UserError(reading.mistakes[0])
    here = [mistake.removeprefix(f"{name}: ").removeprefix(f"{name}, ") for mistake in reading.mistakes]
    listed = "\n".join(f"  - {mistake}" for mistake in here)
    raise UserError(f"{name}: {len(reading.mistakes)} things to correct:\n{listed}")
