"""A conversation with one model, or with two at once, and the commands that change it."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from posttrain.config import GenerationConfig
from posttrain.config.documents import parse_scalar
from posttrain.data.files import rows_of_file
from posttrain.errors import UserError
from posttrain.serve.model import FinishReason, checked_messages
from posttrain.serve.output_file import as_lines, write_whole

HELP = """\
/system TEXT    set the system message and start anew (without TEXT: remove it)
/clear          forget the conversation
/retry          answer the last message once more
/set KEY VALUE  change how answers are drawn: /set temperature 0.7 (alone: show)
/model NAME     go on with another model, by its name or folder (alone: list)
/compare A B    let two models answer, side by side (alone: only the first again)
/save FILE      write the conversation; /load FILE goes on with one
/exit           leave, as Ctrl-D does; Ctrl-C stops an answer
A message of several lines stands between two lines of \"\"\".
"""
_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)
_QUIT = ("exit", "quit", "bye")

Message = dict[str, str]


class Cast(Protocol):
    """The models of a chat; ``Lineup`` is one."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of all models, the first the one to begin with."""
        ...

    def named(self, place: str) -> str:
        """The name of a model that is called ``place``, or lies there."""
        ...

    def settings(self, generation: Mapping[str, Any]) -> GenerationConfig:
        """The way of drawing with some changes."""
        ...

    def stream_chat(
        self, name: str, messages: Sequence[Mapping[str, str]], system: str | None, generation: Mapping[str, Any]
    ) -> Generator[str, None, FinishReason]:
        """The answer in pieces, and why it ended."""
        ...


class LeaveError(Exception):
    """The user wants to leave."""


class Conversation:
    """What was said so far, under which system message, and how answers are drawn.

    Attributes:
        cast: the models. speakers: names of those that answer, one or two.
        messages: name of a speaker -> its conversation, the system message left out.
        system: the system message. generation: what was changed of the configured way of drawing.
    """

    def __init__(self, cast: Cast) -> None:
        self.cast = cast
        self.speakers: tuple[str, ...] = cast.names[:1]
        self.messages: dict[str, list[Message]] = {self.speakers[0]: []}
        self.system: str | None = None
        self.generation: dict[str, Any] = {}

    def said_by(self, speaker: str, question: str, answer: str) -> None:
        """Add a question and the answer that a speaker gave."""
        told = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        self.messages[speaker] = [*self.messages[speaker], *told]

    def command(self, text: str) -> str | None:
        """Obey a line that is a command; returns a sentence for the user, None where the line is a message.

        Raises:
            UserError: a command that is none, or one that cannot be obeyed; nothing has changed then.
            LeaveError: the command to leave.
        """
        matched = None if text.startswith("//") else _COMMAND.fullmatch(text)
        if matched is None:
            return None
        word, rest = matched[1], (matched[2] or "").strip()
        if word in _QUIT:
            raise LeaveError
        commands: dict[str, Callable[[str], str]] = {
            **{"help": lambda rest: HELP.rstrip(), "system": self._set_system, "clear": self._clear},
            **{"set": self._set, "model": self._switch, "compare": self._compare},
            **{"save": self._save, "load": self._load},
        }
        if word not in commands:
            near = difflib.get_close_matches(word, [*commands, "retry", *_QUIT], n=1)
            hint = f"did you mean /{near[0]}?" if near else "/help lists what there is."
            raise UserError(f"there is no command /{word}; {hint} A message that begins with / is written with //.")
        return commands[word](rest)

    def last_question(self) -> str:
        """The last message of the user, taken back with its answers, to be asked once more.

        Raises:
            UserError: there is none.
        """
        asked = [said["content"] for said in self.messages[self.speakers[0]] if said["role"] == "user"]
        if not asked:
            raise UserError("nothing was asked yet")
        for speaker, said in self.messages.items():
            places = [place for place, message in enumerate(said) if message["role"] == "user"]
            self.messages[speaker] = said[: places[-1]]
        return asked[-1]

    def _set_system(self, rest: str) -> str:
        self.system = rest or None
        self._clear("")
        return "The system message is set." if self.system else "The system message is removed."

    def _clear(self, rest: str) -> str:
        self.messages = {speaker: [] for speaker in self.speakers}
        return "The conversation starts anew."

    def _set(self, rest: str) -> str:
        key, _, value = rest.replace("=", " ", 1).partition(" ")
        if value.strip():
            changed = {**self.generation, key: parse_scalar(value.strip())}
            self.cast.settings(changed)
            self.generation = changed
        values = dataclasses.asdict(self.cast.settings(self.generation))
        if key and key not in values:
            self.cast.settings({key: None})  # refuses the name
        names = [key] if key else sorted(values)
        return "\n".join(f"{name}: {_plain(values[name])}" for name in names)

    def _switch(self, rest: str) -> str:
        if not rest:
            return "\n".join(f"{'*' if name in self.speakers else ' '} {name}" for name in self.cast.names)
        name = self.cast.named(rest)
        self._let_speak(name)
        return f"{name} answers from now on."

    def _compare(self, rest: str) -> str:
        names = [self.cast.named(word) for word in rest.split()]
        if not names:
            self._let_speak(self.speakers[0])
            return f"{self.speakers[0]} answers from now on."
        if len(names) == 1:
            names = [self.speakers[0], *names]
        if len(names) != 2 or names[0] == names[1]:
            raise UserError(f"two different models are compared, such as /compare {' '.join(self.cast.names[:2])}")
        self._let_speak(*names)
        return f"{names[0]} and {names[1]} answer from now on."

    def _let_speak(self, *names: str) -> None:
        """Change who answers; whoever said nothing yet goes on with what was said so far."""
        so_far = self.messages[self.speakers[0]]
        self.messages = {name: self.messages.get(name, so_far) for name in names}
        self.speakers = names

    def _save(self, rest: str) -> str:
        if not rest:
            raise UserError("name a file, such as /save talk.jsonl")
        target = Path(rest).expanduser()
        if target.is_dir():
            raise UserError(f"{target} is a folder; name a file")
        if target.is_file() and not _is_saved(target):
            raise UserError(f"{target} holds something else than a conversation; name another file")
        system = [{"role": "system", "content": self.system}] if self.system else []
        rows = [
            {"messages": [*system, *self.messages[name]], "model": name, "generation": self.generation}
            for name in self.speakers
        ]
        write_whole(target, as_lines(rows))
        return f"wrote {target}"

    def _load(self, rest: str) -> str:
        if not rest:
            raise UserError("name a file, such as /load talk.jsonl")
        rows = _saved(Path(rest).expanduser())
        first = rows[0]
        generation = first.get("generation") or {}
        self.cast.settings(generation)
        names = [str(row.get("model")) for row in rows]
        if len(set(names)) != len(rows) or not all(name in self.cast.names for name in names):
            rows, names = rows[:1], [self.speakers[0]]
        system, _ = _parts(first["messages"])
        self.messages = {name: _parts(row["messages"])[1] for name, row in zip(names, rows, strict=True)}
        self.system, self.speakers, self.generation = system, tuple(names), dict(generation)
        return f"{len(self.messages[names[0]])} messages; {' and '.join(names)} answer{'s' * (len(names) == 1)}."


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_saved(path: Path) -> bool:
    try:
        _saved(path)
    except UserError:
        return False
    return True


def _saved(path: Path) -> list[dict[str, Any]]:
    """The rows of a saved conversation: ours, a dataset's row with ``messages``, or a list of messages.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    found = list(rows_of_file(path))
    rows = [row for _, row in found]
    if rows and all("role" in row and "content" in row for row in rows):
        rows = [{"messages": rows}]
    if not 1 <= len(rows) <= 2:
        raise UserError(f"{path}: expected a conversation, or two that are compared, found {len(rows)} rows")
    for number, row in enumerate(rows, start=1):
        messages = row.get("messages")
        if not isinstance(messages, list) or not messages:
            raise UserError(f"{path}, row {number}: no list of `messages` (found: {', '.join(map(str, row))})")
        try:
            told = checked_messages(messages, None)
        except UserError as error:
            raise UserError(f"{path}, row {number}: {error}") from None
        row["messages"] = [{"role": message.role, "content": message.content} for message in told]
        if not isinstance(row.get("generation") or {}, dict):
            raise UserError(f"{path}, row {number}: `generation` is no object of keys and values")
    return rows


def _parts(messages: Sequence[Message]) -> tuple[str | None, list[Message]]:
    """The system message, and the others."""
    if messages and messages[0]["role"] == "system":
        return messages[0]["content"], list(messages[1:])
    return None, list(messages)
