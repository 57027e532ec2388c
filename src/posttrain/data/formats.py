"""Rows -> examples: alpaca, sharegpt and chat-message rows, preference pairs, plain text, prompts."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from posttrain.errors import UserError

ChatRole = Literal["system", "user", "assistant", "tool"]

PROMPT_COLUMNS = ("instruction", "prompt", "question", "query")
RESPONSE_COLUMNS = ("output", "response", "answer", "completion", "ranked")
MESSAGE_COLUMNS = ("messages", "conversations", "conversation")
UNSUPPORTED_COLUMNS = ("tools", "images", "videos", "audios")
OPTIONAL_COLUMNS = ("system", "history", *UNSUPPORTED_COLUMNS)

ROLE_NAMES: Mapping[str, ChatRole] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant): ?")


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: ChatRole
    content: str


Messages = tuple[Message, ...]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the rows of a dataset are laid out.

    Attributes:
        formatting: "alpaca" (one column each for prompt, answer, ...) or "sharegpt" (a list of messages).
        columns: what a column is for -> its name. Purposes: prompt, query, response, system, history, messages,
            chosen, rejected, tools, images, videos, audios.
        role_tag, content_tag: keys of one message. roles: value of ``role_tag`` -> our role.
    """

    formatting: Literal["alpaca", "sharegpt"] = "alpaca"
    columns: Mapping[str, str] = field(default_factory=dict)
    role_tag: str = "from"
    content_tag: str = "value"
    roles: Mapping[str, ChatRole] = field(default_factory=lambda: dict(ROLE_NAMES))


@dataclass(frozen=True, kw_only=True)
class Placed:
    """What an example keeps of its row: where it stands, and what ``split_key`` makes of it (empty without one)."""

    where: str = field(default="", compare=False)
    group: str = field(default="", compare=False)


@dataclass(frozen=True, kw_only=True)
class TextExample(Placed):
    """A document: every token trains."""

    text: str


@dataclass(frozen=True, kw_only=True)
class ChatExample(Placed):
    """A chat whose last message is the assistant's."""

    messages: Messages


@dataclass(frozen=True, kw_only=True)
class PairExample(Placed):
    """Two answers to one prompt, the chosen one better than the rejected one (by ``margin``, if the data say)."""

    prompt: Messages
    chosen: str
    rejected: str
    margin: float | None = None


@dataclass(frozen=True, kw_only=True)
class PromptExample(Placed):
    """A chat that waits for the assistant; ``extras`` are the row's other columns, for rewards to read."""

    prompt: Messages
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class UnpairedExample(Placed):
    """An answer, and whether it is a good one."""

    prompt: Messages
    answer: str
    desirable: bool


@dataclass(frozen=True, kw_only=True)
class RankingExample(Placed):
    """Answers to one prompt, no two the same, from the best to the worst."""

    prompt: Messages
    answers: tuple[str, ...]


Example = TextExample | ChatExample | PairExample | PromptExample | UnpairedExample | RankingExample


class UnusableRowError(Exception):
    """A well-formed row that cannot train; ``reason`` is counted in the report."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def guess_layout(row: Mapping[str, Any], where: str, names: Collection[str] = ()) -> Layout:
    """The layout of rows shaped like ``row``, from the names of its columns.

    Args:
        row: the first row. where: it stands there. names: columns of any row, as a row may leave some out.

    Raises:
        UserError: if no known shape fits.
    """
    columns = {name: name for name in OPTIONAL_COLUMNS if name in row or name in names}
    columns |= {name: name for name in ("chosen", "rejected") if name in row}
    holder = next((name for name in (*MESSAGE_COLUMNS, "prompt") if isinstance(row.get(name), list)), None)
    if holder is not None and not _repeats_an_answer(row, holder):
        return Layout(formatting="sharegpt", columns={**columns, "messages": holder})
    prompt = next((name for name in PROMPT_COLUMNS if name in row), None)
    content = {"prompt": "content"} if isinstance(row.get("content"), str) else {}
    if content and prompt == "query":  # a text and its question
        return Layout(columns={**columns, **content, "response": "query"})
    if prompt is not None:
        columns["prompt"] = prompt
        if "input" in row or "input" in names:
            columns["query"] = "input"
        if response := next((name for name in RESPONSE_COLUMNS if name in row), None):
            columns["response"] = response
        return Layout(columns=columns)
    only_text = [name for name, value in row.items() if isinstance(value, str)] == ["content"]
    if only_text or ("chosen" in columns and "rejected" in columns):
        return Layout(columns={**columns, **content})
    if "text" in row:
        return Layout(columns={"prompt": "text"})
    raise UserError(
        f"{where}: no known columns (found: {_keys(row)}). Known rows have instruction/output, prompt/response, "
        "messages, conversations, prompt/chosen/rejected or text; other names are mapped under `columns` in "
        "dataset_info.json."
    )


def _repeats_an_answer(row: Mapping[str, Any], holder: str) -> bool:
    """Whether the messages are one of the whole conversations in ``chosen`` and ``rejected`` once more."""
    return isinstance(row.get("chosen"), list) and row[holder] in (row["chosen"], row.get("rejected"))


def text_example(row: Mapping[str, Any], layout: Layout, where: str, text_column: str | None = None) -> TextExample:
    """The row's document, from ``text_column`` or the column that holds text.

    Raises:
        UserError: if there is no such column or it holds no text.
        UnusableRowError: if the document is blank.
    """
    column = text_column or ("text" if "text" in row else None)
    if column is None and "response" not in layout.columns:
        column = layout.columns.get("prompt")
    if column is None:
        raise UserError(
            f"{where}: no column of plain text (found: {_keys(row)}). Training on documents reads a column `text`; "
            "name another with `text_column`."
        )
    text = _text(row, column, where)
    if not text.strip():
        raise UnusableRowError("empty text")
    return TextExample(text=text, where=where)


def chat_example(row: Mapping[str, Any], layout: Layout, where: str) -> ChatExample:
    """The row as a chat that ends with the assistant's answer; in a preference row, the chosen one.

    Raises:
        UserError: if a column is missing or malformed.
        UnusableRowError: if every answer is empty.
    """
    if "text" in row and layout.columns.get("prompt") == "text" and "response" not in layout.columns:
        raise UserError(f"{where}: plain text, not a chat; to learn all of it set `text_column: text`")
    messages = _prompt(row, layout, where)
    if "chosen" in layout.columns:
        name = layout.columns["chosen"]
        messages = (*messages, _answer(_value(row, name, where), layout, where, name)[-1])
    elif layout.formatting == "alpaca":
        column = layout.columns.get("response", "output")
        messages = (*messages, Message("assistant", _text(row, column, where)))
    while messages and messages[-1].role != "assistant":
        messages = messages[:-1]
    if not messages:
        raise UserError(f"{where}: no assistant message to learn from")
    if len(messages) == 1 or all(m.role in ("system", "assistant") for m in messages):
        raise UserError(f"{where}: no user message before the assistant's answer")
    if not any(m.content for m in messages if m.role == "assistant"):
        raise UnusableRowError("empty answer")
    return ChatExample(messages=messages, where=where)


def pair_example(
    row: Mapping[str, Any], layout: Layout, where: str, margin_column: str | None = "margin"
) -> PairExample:
    """The row as a preference pair.

    Read: chosen and rejected as strings, as single messages, as message lists (prompt column or common beginning),
    as "\\n\\nHuman: ... \\n\\nAssistant: ..." transcripts, or as the two items of the answer column.

    Raises:
        UserError: if a column is missing or malformed.
        UnusableRowError: if both answers are the same, or answer different prompts.
    """
    chosen, rejected = _two_answers(row, layout, where)
    sides = [_answer(side, layout, where, name) for side, name in ((chosen, "chosen"), (rejected, "rejected"))]
    prompt = _prompt(row, layout, where)
    if not _has_prompt(layout) and sides[0][:-1] != sides[1][:-1]:
        raise UnusableRowError("chosen and rejected answer different prompts")
    if not prompt or prompt[-1].role == "assistant":
        raise UserError(f"{where}: the prompt of a preference pair must end with a user message")
    if sides[0][-1].content == sides[1][-1].content:
        raise UnusableRowError("chosen equals rejected")
    margin = row.get(margin_column) if margin_column else None
    if margin is not None:
        try:
            margin = float(margin)
        except (TypeError, ValueError):
            raise UserError(f"{where}: column {margin_column!r} must be a number, found {margin!r}") from None
    return PairExample(
        prompt=prompt, chosen=sides[0][-1].content, rejected=sides[1][-1].content, margin=margin, where=where
    )


def prompt_example(row: Mapping[str, Any], layout: Layout, where: str) -> PromptExample:
    """The row as a prompt: its answer, if any, is left to ``extras`` (chats: under "reference").

    Raises:
        UserError: if a column is missing or malformed, or there is no user message.
    """
    extras = {key: value for key, value in row.items() if key not in _prompt_columns(layout)}
    messages = _prompt(row, layout, where)
    if messages and messages[-1].role == "assistant":
        extras.setdefault("reference", messages[-1].content)
        messages = messages[:-1]
    elif "response" in layout.columns and isinstance(answer := row.get(layout.columns["response"]), str):
        extras.setdefault("reference", answer)
    if not any(m.role == "user" for m in messages):
        raise UserError(f"{where}: no user message to answer")
    return PromptExample(prompt=messages, extras=extras, where=where)


def _has_prompt(layout: Layout) -> bool:
    return "messages" in layout.columns or "prompt" in layout.columns


def _prompt(row: Mapping[str, Any], layout: Layout, where: str) -> Messages:
    """The row's messages before its answers; without a column of their own, those that begin the chosen side."""
    if _has_prompt(layout):
        return _messages(row, layout, where)
    name = layout.columns.get("chosen", "chosen")
    start = _answer(_value(row, name, where), layout, where, name)[:-1]
    if not start:
        raise UserError(f"{where}: no prompt beside {name!r} (found: {_keys(row)})")
    return start


def _prompt_columns(layout: Layout) -> set[str]:
    purposes = ("prompt", "query", "system", "history", "messages")
    return {layout.columns[p] for p in purposes if p in layout.columns}


def _messages(row: Mapping[str, Any], layout: Layout, where: str) -> Messages:
    """System, history and prompt of an alpaca row, or the message list of a sharegpt row."""
    for purpose in UNSUPPORTED_COLUMNS:
        column = layout.columns.get(purpose)
        if column and row.get(column):
            raise UserError(f"{where}: column {column!r} ({purpose}) is not supported; only text is read")
    messages: list[Message] = []
    system = layout.columns.get("system")
    if system and row.get(system):
        messages.append(Message("system", _text(row, system, where)))
    if layout.formatting == "sharegpt":
        column = layout.columns.get("messages", "conversations")
        turns = _message_list(_value(row, column, where), layout, f"{where}, column {column!r}")
        return (*(messages if turns[0].role != "system" else ()), *turns)
    history = layout.columns.get("history")
    for turn in (row.get(history) if history else None) or ():
        if not isinstance(turn, Sequence) or len(turn) != 2 or not all(isinstance(t, str) for t in turn):
            raise UserError(f"{where}, column {history!r}: a turn must be [question, answer], found {_short(turn)}")
        messages += [Message("user", turn[0]), Message("assistant", turn[1])]
    parts = [_text(row, layout.columns.get("prompt", "instruction"), where)]
    query = layout.columns.get("query")
    if query and row.get(query):
        parts.append(_text(row, query, where))
    content = "\n".join(part for part in parts if part)
    if not content:
        raise UnusableRowError("empty prompt")
    return (*messages, Message("user", content))


def _message_list(value: Any, layout: Layout, where: str) -> Messages:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: expected a list of messages, found {_short(value)}")
    return tuple(_message(item, layout, f"{where}, message {i + 1}") for i, item in enumerate(value))


def _message(item: Any, layout: Layout, where: str) -> Message:
    if not isinstance(item, Mapping):
        raise UserError(f"{where}: expected an object with role and content, found {_short(item)}")
    pairs = ((layout.role_tag, layout.content_tag), ("from", "value"), ("role", "content"))
    tags = next((tags for tags in pairs if all(tag in item for tag in tags)), None)
    if tags is None:
        wanted = " or ".join(dict.fromkeys(f"{role!r} and {content!r}" for role, content in pairs))
        raise UserError(f"{where}: needs {wanted} (found: {_keys(item)})")
    role = layout.roles.get(str(item[tags[0]]))
    if role is None:
        raise UserError(f"{where}: unknown role {item[tags[0]]!r}; known: {', '.join(layout.roles)}")
    return Message(role, _text(item, tags[1], where))


def _two_answers(row: Mapping[str, Any], layout: Layout, where: str) -> tuple[Any, Any]:
    response = layout.columns.get("response")
    if "chosen" not in layout.columns and response and isinstance(row.get(response), list):
        answers = row[response]
        if len(answers) != 2:
            raise UserError(f"{where}: column {response!r} must hold two answers (better, worse), found {len(answers)}")
        return answers[0], answers[1]
    names = (layout.columns.get("chosen", "chosen"), layout.columns.get("rejected", "rejected"))
    return _value(row, names[0], where), _value(row, names[1], where)


def _answer(value: Any, layout: Layout, where: str, name: str) -> Messages:
    """One side of a pair as messages of which the last is the answer."""
    where = f"{where}, column {name!r}"
    if isinstance(value, Mapping):
        messages: Messages = (_message(value, layout, where),)
    elif isinstance(value, list):
        messages = _message_list(value, layout, where)
    elif isinstance(value, str) and not _has_prompt(layout):
        messages = _transcript(value)
    elif isinstance(value, str):
        messages = (Message("assistant", value),)
    else:
        raise UserError(f"{where}: expected text or messages, found {_short(value)}")
    if messages[-1].role != "assistant":
        raise UserError(f"{where}: the last message must be the assistant's, found role {messages[-1].role!r}")
    return messages


def _transcript(text: str) -> Messages:
    parts = _TRANSCRIPT.split(text)
    if parts[0] or len(parts) < 3:
        return (Message("assistant", text),)
    return tuple(
        Message("user" if speaker == "Human" else "assistant", content)
        for speaker, content in zip(parts[1::2], parts[2::2], strict=True)
    )


def _value(row: Mapping[str, Any], column: str, where: str) -> Any:
    if column not in row:
        raise UserError(
            f"{where}: no column {column!r} (found: {_keys(row)}). Fix the row, or map the column under `columns` in "
            "dataset_info.json."
        )
    return row[column]


def _text(row: Mapping[str, Any], column: str, where: str) -> str:
    value = _value(row, column, where)
    if not isinstance(value, str):
        raise UserError(f"{where}: {column!r} must be text, found {_short(value)}")
    return value


def _keys(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "none"


def _short(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
