"""Chats -> tokens: the tokenizer's own chat template, with training and sampling token-exactly alike."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2

from posttrain.data.formats import Message
from posttrain.data.template_names import is_named, other_rendering, resolve_chat_template
from posttrain.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from posttrain.config import DataConfig

EXAMPLE = (
    Message("user", "What is 2 + 3?"),
    Message("assistant", "5"),
    Message("user", "And one more?"),
    Message("assistant", "6"),
)
"""The chat under which templates are compared and shown."""

_TOLD = (Message("system", "Be exact."), Message("user", "Thank you."))

# Whose rows may go on behind the end of turn. A reward model's may not: its score is read from the last token, and
# completions that are sampled end with their end of turn.
_WITH_TAIL = ("sft", "dpo", "kto")


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A sequence and which of its tokens train.

    Attributes:
        input_ids: [T]. loss_mask: [T], True on tokens that train as targets; never the first.
    """

    input_ids: list[int]
    loss_mask: list[bool]

    def __len__(self) -> int:
        return len(self.input_ids)


class Template:
    """Renders chats with one jinja chat template and one tokenizer.

    A chat is rendered once, with a mark in place of every answer, and cut at the marks; prompt parts and answers are
    tokenised apart. Hence a trained sequence is exactly ``encode_prompt`` + answer + end of turn, whatever the
    template injects, strips or would merge across the border.

    Attributes:
        tokenizer: the tokenizer. chat_template: the jinja text in use, to be saved with the model.
        end_of_turn: token ids that close an answer; at least one. stop_token_ids: ids that end a generation.
        closing: what a trained answer ends with: its end of turn, and where asked for what is written behind that.
        pad_id: the padding token; end of sequence where the tokenizer has none (masks come from lengths).
        fingerprint: changes when the same chat would be rendered differently.
        notes: sentences for the user about what the template's name was resolved to.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        name: str | None = None,
        default_system: str | None = None,
        *,
        prompt_template: str | None = None,
        train_after_end_of_turn: bool = False,
    ) -> None:
        """Resolve a template and find out how it writes answers.

        Args:
            tokenizer: the tokenizer. name: see ``resolve_chat_template``; so ``prompt_template``.
            default_system: system message of chats that have none.
            train_after_end_of_turn: answers keep, and learn, what the template writes behind their end of turn.
        """
        self.tokenizer = tokenizer
        self.name = name
        self.default_system = default_system
        self.chat_template = resolve_chat_template(tokenizer, name, prompt_template)
        self._header, self._lead, self._closing = self._probe()
        self.end_of_turn, tail = self._end_of_turn()
        self._tail = tuple(self._behind(tail)) if train_after_end_of_turn and tail else ()
        self.closing = (*self.end_of_turn, *self._tail)
        eos = tokenizer.eos_token_id
        self.stop_token_ids = tuple(dict.fromkeys((self.end_of_turn[-1], *([] if eos is None else [int(eos)]))))
        self.pad_id = pad_token_id(tokenizer, self.end_of_turn[-1])
        identity = "\x1f".join((self.chat_template, repr(default_system), str(self.end_of_turn)))
        self.fingerprint = hashlib.sha256(identity.encode("utf-8")).hexdigest()[:16]
        self.notes = self._notes()

    @classmethod
    def configured(cls, tokenizer: PreTrainedTokenizerBase, data: DataConfig, stage: str | None = None) -> Template:
        """The template that the keys ask for; ``stage`` says what the rows are for, if they are to be learnt.

        Raises:
            UserError: unknown name, or no template to be had.
        """
        asked = data.train_after_end_of_turn
        return cls(
            tokenizer,
            data.template,
            data.default_system,
            prompt_template=data.prompt_template,
            train_after_end_of_turn=stage in _WITH_TAIL and (is_named(data.template) if asked is None else asked),
        )

    @property
    def example(self) -> str:
        """``EXAMPLE`` as it is rendered, with its end of turn; then a question under a system message, where it can."""
        end = str(self.tokenizer.decode(list(self.end_of_turn)))
        for messages in (EXAMPLE, EXAMPLE[:2]):
            try:
                row = self.encode_chat(messages)
            except UserError:  # some templates take one question only
                continue
            if len(messages) == 2 or row:
                return self.prompt_text(messages[:-1]) + messages[-1].content + end + self._told()
        return ""

    def _told(self) -> str:
        try:
            return " " + self.prompt_text(_TOLD)
        except UserError:  # it has no place for a system message
            return ""

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids up to where the assistant's answer begins.

        Raises:
            UserError: if the messages cannot be rendered or the last one is the assistant's.
        """
        return [token for ids, _ in self._parts(messages) for token in ids]

    def encode_answer(self, content: str) -> list[int]:
        """The answer's tokens and its end of turn."""
        return [*self.tokens(content), *self.closing]

    def encode_chat(
        self, messages: Sequence[Message], *, train_on_prompt: bool = False, mask_history: bool = False
    ) -> EncodedRow:
        """A chat ending in an answer; answers and their ends of turn train.

        Args:
            messages: the chat, its last message the assistant's.
            train_on_prompt: every token trains.
            mask_history: only the last answer trains.

        Returns:
            The row; it begins with ``encode_prompt(messages[:-1])`` and ends with ``end_of_turn``.

        Raises:
            UserError: if the messages cannot be rendered or do not end with an answer.
        """
        if not messages or messages[-1].role != "assistant":
            raise UserError("a chat to train on must end with an assistant message")
        parts = [*self._parts(messages[:-1]), (self.encode_answer(messages[-1].content), True)]
        input_ids: list[int] = []
        loss_mask: list[bool] = []
        for number, (ids, is_answer) in enumerate(parts):
            trains = train_on_prompt or (is_answer and not (mask_history and number < len(parts) - 1))
            input_ids += ids
            loss_mask += [trains] * len(ids)
        loss_mask[0] = False
        return EncodedRow(input_ids, loss_mask)

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The rendered prompt, up to where the assistant's answer begins."""
        messages = self._with_system(messages)
        return self._render(messages) + self._header

    def tokens(self, text: str) -> list[int]:
        """Token ids of plain text, nothing added."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []

    def _parts(self, messages: Sequence[Message]) -> list[tuple[list[int], bool]]:
        """(token ids, is an answer with its end of turn), alternating, of a chat that waits for an answer."""
        messages = self._with_system(messages)
        if not messages or messages[-1].role == "assistant":
            raise UserError("a prompt must end with a user message")
        mark = "\ue000"
        while any(mark in message.content for message in messages):
            mark += "\ue000"
        marked: list[Message] = []
        answers: list[str] = []
        for message in messages:
            if message.role == "assistant":
                marked.append(Message("assistant", f"{mark}{len(answers)}\ue001"))
                answers.append(message.content)
            else:
                marked.append(message)
        rest = self._render(marked) + self._header
        parts: list[tuple[list[int], bool]] = []
        for number, answer in enumerate(answers):
            before, found, rest = rest.partition(f"{mark}{number}\ue001")
            if not found:
                raise UserError("the chat template leaves out or reorders earlier assistant messages")
            before = before.removesuffix(self._lead)
            self._add_prompt(parts, before)
            parts.append(([*self.tokens(answer), *self.end_of_turn], True))
        self._add_prompt(parts, rest)
        return parts

    def _add_prompt(self, parts: list[tuple[list[int], bool]], text: str) -> None:
        """Append a template part; what closes the answer before it, and what is learnt with it, is left to that."""
        if not parts:
            parts.append((self.tokens(text), False))
            return
        ids = self._behind(text.removeprefix(self._closing))
        size = len(self._tail)
        if size and tuple(ids[:size]) == self._tail:
            parts[-1] = ([*parts[-1][0], *self._tail], True)
            ids = ids[size:]
        parts.append((ids, False))

    def _behind(self, text: str) -> list[int]:
        """Tokens of a text as it stands behind an end of turn: SentencePiece treats the start of a text differently."""
        last = self.end_of_turn[-1]
        ids = self.tokens(f"{self.tokenizer.convert_ids_to_tokens(last)}{text}")
        return ids[1:] if ids and ids[0] == last else self.tokens(text)

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        if self.default_system is None or (messages and messages[0].role == "system"):
            return list(messages)
        return [Message("system", self.default_system), *messages]

    def _render(self, messages: Sequence[Message], *, generation_prompt: bool = True) -> str:
        chat = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    chat, chat_template=self.chat_template, tokenize=False, add_generation_prompt=generation_prompt
                )
            )
        except jinja2.TemplateError as error:
            roles = ", ".join(message.role for message in messages)
            raise UserError(f"the chat template refuses the messages ({roles}): {error}") from error

    def _probe(self) -> tuple[str, str, str]:
        """What the template writes around an answer.

        Returns:
            (header that opens an answer where the template knows no generation prompt, what it writes between
            generation prompt and answer and a sampled answer therefore lacks, text after an answer).
        """
        mark = "\ue000probe\ue001"
        question = self._with_system([Message("user", "?")])
        before, found, after = self._render([*question, Message("assistant", mark)], generation_prompt=False).partition(
            mark
        )
        if not found:
            raise UserError("the chat template does not render assistant messages")
        silent, prompted = self._render(question, generation_prompt=False), self._render(question)
        lead = before.removeprefix(prompted) if before.startswith(prompted) else ""
        if silent == prompted and lead.strip():
            return lead, "", after
        return "", lead, after

    def _notes(self) -> tuple[str, ...]:
        """Where the name of a family resolved to a template that writes chats otherwise than the family does."""
        chat = [{"role": message.role, "content": message.content} for message in EXAMPLE]

        def rendered(template: str) -> str:
            try:
                return str(self.tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False))
            except jinja2.TemplateError as error:
                raise UserError(str(error)) from error

        found = other_rendering(self.tokenizer, self.name, rendered)
        if found is None or self.tokens(found[0]) == self.tokens(found[1]):
            return ()
        own, shipped = (_from_difference(a, b) for a, b in (found, found[::-1]))
        return (
            f"template: {self.name} is the tokenizer's own chat template, which writes {own} where LLaMA-Factory's "
            f"{self.name} has {shipped}; the tokenizer's own is used",
        )

    def _end_of_turn(self) -> tuple[tuple[int, ...], str]:
        """What closes an answer: the template's text up to its first special token, or end of sequence.

        Returns:
            (token ids, text that the template writes behind them).
        """
        after = self._closing
        added = [str(token) for token in self.tokenizer.added_tokens_decoder.values()]
        found = [(after.index(token), -len(token), token) for token in added if token.strip() and token in after]
        if found:
            start, _, token = min(found)
            self._closing, after = after[: start + len(token)], after[start + len(token) :]
            before = self._closing[:start]
            last: Any = self.tokenizer.convert_tokens_to_ids(token)
        else:
            before, after, last = after, "", self.tokenizer.eos_token_id
            if last is None:
                raise UserError("the tokenizer has no end-of-sequence token and the chat template closes no answer")
        return (*self.tokens(before.strip()), int(last)), after


def _from_difference(text: str, other: str) -> str:
    """The text from shortly before the first place where it differs from another one."""
    same = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    start = max(0, same - 12)
    piece = text[start : same + 60]
    return repr(("..." if start else "") + piece + ("..." if same + 60 < len(text) else ""))


def pad_token_id(tokenizer: PreTrainedTokenizerBase, fallback: int | None = None) -> int:
    """The padding token, else end of sequence, else ``fallback``, else 0: any id will do, masks come from lengths."""
    choices = (tokenizer.pad_token_id, tokenizer.eos_token_id, fallback, 0)
    return int(next(choice for choice in choices if choice is not None))
