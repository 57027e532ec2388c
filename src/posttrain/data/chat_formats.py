"""How a chat is written as text, in five pieces, and the jinja template that writes it so."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml

from posttrain.data.columns import Piece, pieces_of, spanned
from posttrain.errors import UserError

_FIELDS = re.compile(r"\{(content|bos|eos)\}")
_TOKENS = {"bos": "(bos_token or '')", "eos": "(eos_token or '')"}
_NO_SYSTEM = "it has no place for a system message: write {system} into prompt_template where it belongs"
# Stands for a brace of the text while the pieces of a format are told from it.
_BRACE = "\ue002"


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """The pieces of a chat; ``{content}`` is the message, ``{bos}`` and ``{eos}`` are the tokenizer's tokens.

    Attributes:
        user, assistant, system: one message of that role; no ``system`` refuses system messages.
        opening: stands before every answer, also before the one that is to be written.
        prefix: begins the text. tool: what a tool returned; None writes it as the user's.
        default_system: where a chat has no system message. system_in_user: it opens the first user message.
        is_plain: belongs to no family of models, so that naming it means it.
    """

    user: str
    assistant: str
    system: str | None = None
    opening: str = ""
    prefix: str = ""
    tool: str | None = None
    default_system: str | None = None
    system_in_user: bool = False
    is_plain: bool = False

    def jinja(self) -> str:
        """The chat template, in one line."""
        content = "message['content']"
        parts = [_written(self.prefix)]
        if self.system is None:
            system = "{{ raise_exception(" + _literal(_NO_SYSTEM) + ") }}"
        elif self.system_in_user:
            system = "{% set ns.system = " + _expression(self.system, content) + " %}"
            default = "''" if self.default_system is None else _expression(self.system, _literal(self.default_system))
            parts.append("{% set ns = namespace(system=" + default + ") %}")
        else:
            system = _written(self.system)
            if self.default_system is not None:
                missing = "{% if not messages or messages[0]['role'] != 'system' %}"
                parts.append(missing + _written(self.system, _literal(self.default_system)) + "{% endif %}")
        first = "(ns.system ~ message['content'])" if self.system_in_user else content
        spent = "{% set ns.system = '' %}" if self.system_in_user else ""
        tool = "" if self.tool is None else "{% elif message['role'] == 'tool' %}" + _written(self.tool)
        parts += [
            "{% for message in messages %}{% if message['role'] == 'system' %}" + system,
            "{% elif message['role'] == 'assistant' %}" + _written(self.opening + self.assistant) + tool,
            "{% else %}" + _written(self.user, first) + spent + "{% endif %}{% endfor %}",
            "{% if add_generation_prompt %}" + _written(self.opening) + "{% endif %}" if self.opening else "",
        ]
        return "".join(parts)


@cache
def shipped_formats() -> Mapping[str, ChatFormat]:
    """The formats that come with the package, by LLaMA-Factory's names."""
    text = (resources.files("posttrain.data") / "chat_formats.yaml").read_text(encoding="utf-8")
    return {name: ChatFormat(**pieces) for name, pieces in yaml.safe_load(text).items()}


def prompt_format(text: str) -> ChatFormat:
    r"""The format that ``prompt_template`` asks for: ``问:{prompt}\n\n答:``, then answer and end of sequence.

    ``{system}`` is the system message, or nothing; braces that are meant literally are written twice. A line end may
    be written as ``\n``, as it arrives from YAML in single quotes or without quotes. Columns may stand in the place of
    ``{prompt}``; see ``spanned``.

    Raises:
        UserError: no ``{prompt}``, two of them, another name in braces, or a brace on its own.
    """
    key = "prompt_template"
    pieces = pieces_of(text, key)
    inner = spanned(pieces)
    if inner is not None:
        pieces = inner[0]
    names = [name for _, name in pieces if name is not None]
    unknown = [name for name in names if name not in ("prompt", "system")]
    if unknown:
        raise UserError(
            f"{key}: unknown name {{{unknown[0]}}}; known: {{prompt}} and {{system}}, or columns of the rows in the "
            "place of {prompt}. Braces that are meant literally are written twice: {{ and }}"
        )
    for name in ("prompt", "system"):
        if names.count(name) > 1:
            raise UserError(f"{key}: {{{name}}} stands there {names.count(name)} times; once is what it takes")
    if "prompt" not in names:
        raise UserError(f'{key}: {{prompt}} is missing, as in "问:{{prompt}}\\n\\n答:"')
    return _around(pieces)


def _around(pieces: Sequence[Piece]) -> ChatFormat:
    before: dict[str, str] = {}
    text = ""
    for literal, name in pieces:
        text += literal
        if name is not None:
            before[name], text = text, ""
    opening = _verbatim(text)
    if "system" not in before:
        return ChatFormat(user=_verbatim(before["prompt"]) + "{content}", opening=opening, assistant="{content}{eos}")
    if list(before) != ["system", "prompt"]:
        raise UserError("prompt_template: {system} stands before {prompt}")
    return ChatFormat(
        system=_verbatim(before["system"]) + "{content}",
        default_system="",
        user=_verbatim(before["prompt"]) + "{content}",
        opening=opening,
        assistant="{content}{eos}",
    )


def _verbatim(text: str) -> str:
    return text.replace("{", _BRACE)


def _literal(text: str) -> str:
    return json.dumps(text.replace(_BRACE, "{"), ensure_ascii=False)


def _expression(text: str, content: str) -> str:
    """The jinja expression of one piece, ``content`` in the place of its message."""
    words = []
    for number, word in enumerate(_FIELDS.split(text)):
        if number % 2:
            words.append(content if word == "content" else _TOKENS[word])
        elif word:
            words.append(_literal(word))
    return " ~ ".join(words)


def _written(text: str, content: str = "message['content']") -> str:
    return "{{ " + _expression(text, content) + " }}" if text else ""
