"""Reading YAML and JSON files so that every key still knows the line it stands on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from posttrain.errors import UserError

Place = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class Document:
    """A parsed file.

    Attributes:
        name: the path as the user wrote it.
        data: its content, always a mapping.
        lines: path of keys and list positions -> line number, from 1; empty for JSON.
    """

    name: str
    data: dict[str, Any]
    lines: Mapping[Place, int] = field(default_factory=dict)

    def where(self, *place: str | int) -> str:
        """``file, line N`` of a key, as far as it is known."""
        line = self.lines.get(place)
        return f"{self.name}, line {line}" if line else self.name


class _PlainLoader(yaml.SafeLoader):
    """YAML without dates: ``run_name: 2024-06-26`` is text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - replaces the attribute of the same name in yaml
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_document(path: str | Path) -> Document:
    """The content of a configuration file.

    Raises:
        UserError: it is missing, unreadable, malformed (with its line), empty, no mapping, or has a key twice.
    """
    name = str(path)
    text = _read_text(Path(path).expanduser(), name)
    document = _parse_json(text, name) if Path(path).suffix.lower() == ".json" else _parse_yaml(text, name)
    if not isinstance(document.data, dict):
        raise UserError(f"{name}: expected lines of the form `key: value`, found {_kind(document.data)}.{_hint(text)}")
    return document


def parse_scalar(text: str) -> Any:
    """A value from the command line, read as YAML where that gives a scalar or a list, else as plain text."""
    try:
        value = yaml.load(text, Loader=_PlainLoader)
    except yaml.YAMLError:
        return text
    return text if isinstance(value, dict) else value


def _read_text(path: Path, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        looked = "" if path.is_absolute() else f" (looked in {Path.cwd()})"
        raise UserError(f"{name}: no such file{looked}.") from None
    except IsADirectoryError:
        raise UserError(f"{name} is a folder; give the YAML file itself.") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{name}, line {line}: the file is not UTF-8; save it as UTF-8 and try again.") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror or error}.") from None


def _parse_yaml(text: str, name: str) -> Document:
    try:
        loader = _PlainLoader(text)
        try:
            node = loader.get_single_node()
            lines: dict[Place, int] = {}
            _collect_lines(node, (), lines, name)
            data = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise UserError(_yaml_message(error, text, name)) from None
    return Document(name=name, data=data, lines=lines)  # type: ignore[arg-type]


def _collect_lines(node: yaml.Node | None, place: Place, lines: dict[Place, int], name: str) -> None:
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            here = (*place, str(key_node.value))
            line = key_node.start_mark.line + 1
            if here in lines and key_node.value != "<<":
                raise UserError(
                    f"{name}, line {line}: `{key_node.value}` stands on line {lines[here]} already; keep one."
                )
            lines[here] = line
            _collect_lines(value_node, here, lines, name)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*place, index)] = item.start_mark.line + 1
            _collect_lines(item, (*place, index), lines, name)


def _yaml_message(error: yaml.YAMLError, text: str, name: str) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = str(getattr(error, "problem", None) or error).strip()
    if mark is None:
        return f"{name}: not valid YAML: {problem}."
    lines = text.splitlines()
    source = lines[mark.line].strip() if mark.line < len(lines) else ""
    advice = ""
    if "unknown escape" in problem or "escape sequence" in problem:
        advice = " A Windows path needs no quotes, or single ones: 'E:\\models\\qwen'."
    elif "\\t" in problem:
        advice = " Indent with spaces, not with tabs."
    elif "mapping values are not allowed" in problem:
        advice = " Put a value that contains `: ` in quotes, and check the indentation."
    return f"{name}, line {mark.line + 1}: not valid YAML: {problem}: `{source}`.{advice}{_hint(text)}"


def _parse_json(text: str, name: str) -> Document:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise UserError(f"{name}: `{key}` stands there twice; keep one.")
            found[key] = value
        return found

    try:
        return Document(name=name, data=json.loads(text, object_pairs_hook=unique))
    except json.JSONDecodeError as error:
        raise UserError(f"{name}, line {error.lineno}: not valid JSON: {error.msg}.") from None


def _kind(data: object) -> str:
    if data is None:
        return "nothing"
    return "a list" if isinstance(data, list) else "plain text"


def _hint(text: str) -> str:
    if "：" in text:
        return " The file has full-width colons (：); YAML wants an ASCII colon and a space."
    return ""
