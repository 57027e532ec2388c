"""Pipeline files: stages in order, each a few flat keys, each able to name what an earlier one wrote."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from posttrain.config.documents import Document, read_document
from posttrain.config.loader import COMMAND_LINE, STAGE_DEFAULT, Entry, resolve, split_override
from posttrain.config.run import KEYS, Command
from posttrain.config.stages import TRAINING_STAGES, concerns
from posttrain.errors import UserError

COMMANDS: Mapping[str, Command] = {
    **cast("dict[str, Command]", dict.fromkeys(TRAINING_STAGES, "train")),
    "export": "export",
    "evaluate": "eval",
    "generate": "generate",
    "label": "label",
}
"""Kinds of stages, and the command whose keys each takes."""

_TOP_KEYS = ("name", "output_dir", "prepare", "defaults", "stages")
_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """One entry of ``prepare``: data made by a generator of the project before the first stage.

    Attributes:
        generator: its name. output: the folder to write. seed: of everything random in it.
        options: the generator's own keys. where: file and line, for messages.
    """

    generator: str
    output: str
    seed: int = 42
    options: Mapping[str, Any] = field(default_factory=dict)
    where: str = field(default="prepare", compare=False)


@dataclass(frozen=True, kw_only=True)
class PipelineStage:
    """One stage, its references resolved and its keys checked.

    Attributes:
        name: unique within the pipeline. kind: a key of ``COMMANDS``.
        values: flat keys that ``load_config`` takes; ``output_dir`` is always among them.
    """

    name: str
    kind: str
    values: Mapping[str, Any]

    @property
    def command(self) -> Command:
        """The command whose keys the stage takes."""
        return COMMANDS[self.kind]


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """A pipeline: what is prepared, and the stages in order.

    Attributes:
        warnings: the stages' warnings, each starting with the name of its stage.
    """

    name: str
    output_dir: str
    prepare: tuple[PreparedData, ...]
    stages: tuple[PipelineStage, ...]
    warnings: tuple[str, ...] = field(default=(), compare=False)


def load_pipeline(path: str | Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """The pipeline that a file describes.

    The keys of a stage come from, each winning over the ones before it: ``defaults``, the file named by ``config``, the
    stage itself, overrides. An override is ``key=value`` for every stage, ``stage.key=value`` for one,
    ``prepare.generator.key=value``, or ``name=value`` and ``output_dir=value`` for the pipeline.

    ``${output_dir}``, ``${name}``, ``${stage.key}`` and ``${prepare.generator.key}`` stand for values above them.

    Args:
        path: a YAML or JSON file; files named by ``config`` are looked up beside it.
        overrides: texts from the command line.

    Raises:
        UserError: names the stage, the line, the key and the likely fix.
    """
    return _Pipeline(read_document(path), Path(path).expanduser().parent, overrides).config()


class _Pipeline:
    """A pipeline file while it is being read."""

    def __init__(self, document: Document, folder: Path, overrides: Sequence[str]) -> None:
        self.document = document
        self.folder = folder
        self.known: dict[str, Any] = {}
        self.overrides: dict[str, dict[str, Any]] = {}
        for text in overrides:
            key, value = split_override(text)
            owner, _, rest = key.rpartition(".")
            top = not owner and rest in ("name", "output_dir")
            self.overrides.setdefault("." if top else owner, {})[rest] = value

    def config(self) -> PipelineConfig:
        data = self.document.data
        for key in data:
            if key not in _TOP_KEYS:
                raise self._error(_unknown_top_key(key), key)
        top = {"name": data.get("name"), "output_dir": data.get("output_dir"), **self.overrides.get(".", {})}
        name = self._text(top["name"] or Path(self.document.name).stem, "name")
        self.known["name"] = name
        self.known["output_dir"] = self._text(top["output_dir"], "output_dir", "output_dir: runs/demo")
        self.known["output_dir"] = self._filled(
            self.known["output_dir"], "`output_dir`", self.document.where("output_dir")
        )
        prepared = tuple(self._prepared(index, item) for index, item in enumerate(self._list("prepare")))
        items = self._list("stages")
        if not items:
            raise self._error("`stages` is missing: list what runs, each item with `name` and `stage`", "stages")
        names = self._stage_names(items)
        self._check_owners(names, [item.generator for item in prepared])
        stages, warnings = [], []
        for index, item in enumerate(items):
            stage, cautions = self._stage(index, item, names[index])
            stages.append(stage)
            warnings += [f"stage {stage.name}: {sentence}" for sentence in cautions]
        return PipelineConfig(
            name=name,
            output_dir=self.known["output_dir"],
            prepare=prepared,
            stages=tuple(stages),
            warnings=tuple(dict.fromkeys(warnings)),
        )

    def _prepared(self, index: int, item: object) -> PreparedData:
        where = self.document.where("prepare", index)
        if not isinstance(item, dict) or not isinstance(item.get("generator"), str):
            raise UserError(f"{where}: each item of `prepare` needs a `generator`, such as `generator: text2sql`.")
        generator = item["generator"]
        changed = {**item, **self.overrides.get("prepare", {}), **self.overrides.get(f"prepare.{generator}", {})}
        values = {
            key: self._filled(value, f"`{key}` of generator {generator}", where) for key, value in changed.items()
        }
        values.setdefault("output", f"{self.known['output_dir']}/data")
        seed = values.get("seed", 42)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise UserError(f"{where}: `seed` of generator {generator} must be a whole number, not {seed!r}.")
        if not isinstance(values["output"], str):
            raise UserError(f"{where}: `output` of generator {generator} must be a folder, not {values['output']!r}.")
        for key, value in values.items():
            self.known[f"prepare.{generator}.{key}"] = value
        options = {key: value for key, value in values.items() if key not in ("generator", "output", "seed")}
        return PreparedData(generator=generator, output=values["output"], seed=seed, options=options, where=where)

    def _stage_names(self, items: Sequence[object]) -> list[str]:
        names: list[str] = []
        for index, item in enumerate(items):
            where = self.document.where("stages", index)
            if not isinstance(item, dict):
                raise UserError(f"{where}: each item of `stages` is a block of keys, beginning with `- name: sft`.")
            name = str(item.get("name") or item.get("stage") or "")
            if not _NAME.fullmatch(name) or name == "prepare":
                raise UserError(
                    f"{where}: stage number {index + 1} needs a `name` of letters, digits, - and _"
                    f"{f', not `{name}`' if name else ''}; outputs are found by it, as in ${{sft.output_dir}}."
                )
            if name in names:
                raise UserError(f"{where}: there are two stages called {name}; names must differ.")
            names.append(name)
        return names

    def _stage(self, index: int, item: Mapping[str, Any], name: str) -> tuple[PipelineStage, tuple[str, ...]]:
        where = self.document.where("stages", index)
        entries = self._entries(index, item, name)
        kind = str(entries.pop("stage", Entry(value="", where=where)).value or "")
        if kind not in COMMANDS:
            raise UserError(_unknown_kind(kind, name, self.document.where("stages", index, "stage"), where))
        command = COMMANDS[kind]
        own = {**self.overrides.get(name, {}), **item}
        if command == "train":
            entries = {key: entry for key, entry in entries.items() if key in own or not _foreign_default(key, kind)}
        self._add_defaults(entries, command, name, where)
        entries = {
            key: Entry(value=self._filled(entry.value, f"`{key}` of stage {name}", entry.where), where=entry.where)
            for key, entry in entries.items()
        }
        checked = {**entries, "stage": Entry(value=kind, where=where)} if command == "train" else entries
        try:
            config = resolve(checked, name=where, command=command)
        except UserError as error:
            raise UserError(f"stage {name}: {error}") from None
        flat = config.to_flat()
        self.known.update({f"{name}.{key}": value for key, value in flat.items()})
        values = {key: flat[key] for key, source in config.sources.items() if source != STAGE_DEFAULT}
        return PipelineStage(name=name, kind=kind, values=values), config.warnings

    def _entries(self, index: int, item: Mapping[str, Any], name: str) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        defaults = self.document.data.get("defaults") or {}
        if not isinstance(defaults, dict):
            raise self._error("`defaults` is a block of flat keys, such as `lora_rank: 16`", "defaults")
        for key, value in defaults.items():
            entries[str(key)] = Entry(value=value, where=self.document.where("defaults", str(key)))
        if item.get("config") is not None:
            entries.update(self._file_entries(item["config"], index, name))
        for key, value in item.items():
            if key not in ("name", "config"):
                entries[str(key)] = Entry(value=value, where=self.document.where("stages", index, str(key)))
        for key, value in {**self.overrides.get("", {}), **self.overrides.get(name, {})}.items():
            entries[key] = Entry(value=value, where=COMMAND_LINE)
        return entries

    def _file_entries(self, config: object, index: int, name: str) -> dict[str, Entry]:
        try:
            document = read_document(self.folder / str(config))
        except UserError as error:
            where = self.document.where("stages", index, "config")
            raise UserError(f"{where}: `config` of stage {name}: {error}") from None
        return {str(key): Entry(value=value, where=document.where(str(key))) for key, value in document.data.items()}

    def _add_defaults(self, entries: dict[str, Entry], command: Command, name: str, where: str) -> None:
        folder = f"{self.known['output_dir']}/{name}"
        if command == "export":
            target = entries.setdefault("export_dir", Entry(value=folder, where=where))
            entries["output_dir"] = target
        else:
            entries.setdefault("output_dir", Entry(value=folder, where=where))

    def _filled(self, value: Any, subject: str, where: str) -> Any:
        """The value with every ``${...}`` replaced; a value that is one reference keeps the type it stands for."""
        if isinstance(value, list):
            return [self._filled(item, subject, where) for item in value]
        if not isinstance(value, str):
            return value
        whole = _REFERENCE.fullmatch(value)
        if whole:
            return self._referred(whole.group(1), subject, where)
        return _REFERENCE.sub(lambda match: str(self._referred(match.group(1), subject, where)), value)

    def _referred(self, reference: str, subject: str, where: str) -> Any:
        reference = reference.strip()
        if reference in self.known:
            return self.known[reference]
        folders = [key for key in self.known if "." not in key or key.endswith((".output_dir", ".output"))]
        valid = ", ".join(f"${{{key}}}" for key in folders) or "none yet"
        near = difflib.get_close_matches(reference, list(self.known), n=1, cutoff=0.7)
        advice = f" Did you mean ${{{near[0]}}}?" if near else ""
        raise UserError(
            f"{where}: {subject} refers to ${{{reference}}}, which nothing above it provides.{advice} "
            f"Valid here: {valid}, and any other key of an earlier stage."
        )

    def _check_owners(self, names: list[str], generators: list[str]) -> None:
        owners = [".", "", "prepare", *names, *(f"prepare.{generator}" for generator in generators)]
        for owner, values in self.overrides.items():
            if owner not in owners:
                raise UserError(
                    f"{COMMAND_LINE}: `{owner}.{next(iter(values))}` names no stage; the stages are {', '.join(names)}."
                )

    def _list(self, key: str) -> list[Any]:
        value = self.document.data.get(key)
        if value is not None and not isinstance(value, list):
            raise self._error(f"`{key}` is a list; begin each of its items with `- `", key)
        return value or []

    def _text(self, value: object, key: str, example: str = "") -> str:
        if isinstance(value, str) and value:
            return value
        advice = f"; add a line such as `{example}`" if example else ""
        raise self._error(f"`{key}` is missing or not text{advice}", key)

    def _error(self, sentence: str, *place: str | int) -> UserError:
        return UserError(f"{self.document.where(*place)}: {sentence}{'' if sentence.endswith('?') else '.'}")


def _unknown_top_key(key: object) -> str:
    near = difflib.get_close_matches(str(key), _TOP_KEYS, n=1, cutoff=0.6)
    advice = f"did you mean `{near[0]}`?" if near else "keys for every stage stand under `defaults`"
    return f"unknown key `{key}` in a pipeline ({', '.join(_TOP_KEYS)}); {advice}"


def _foreign_default(key: str, kind: str) -> bool:
    """True for a key that belongs to another stage, which a default or an override for all stages may well hold."""
    return key in KEYS and not concerns(KEYS[key].group, kind)


def _unknown_kind(kind: str, name: str, kind_where: str, where: str) -> str:
    kinds = ", ".join(COMMANDS)
    if not kind:
        return f"{where}: stage {name} has no `stage`; add one of {kinds}, or `config` with a file that has it."
    near = difflib.get_close_matches(kind, COMMANDS, n=1, cutoff=0.4)
    advice = f"; did you mean {near[0]}?" if near else "."
    return f"{kind_where}: `stage: {kind}` of stage {name} is not one of {kinds}{advice}"
