"""Chats -> tokens: the tokenizer's own chat template, with training and sampling token-exactly alike."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import jinja2

from posttrain.data.formats import Message
from posttrain.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Formats of plain text, which belong to no model: whoever names one means it, whatever the tokenizer brings.
PLAIN = ("alpaca", "default", "empty", "vicuna")
# Model families: the tokenizer's own template is the authority, a file here serves tokenizers without one.
FAMILIES = (
    *("chatml", "qwen", "llama2", "llama3", "mistral", "gemma", "zephyr"),
    *("baichuan2", "bailing", "chatglm3", "cohere", "deepseek", "deepseek3", "deepseekr1", "ernie", "exaone"),
    *("falcon", "gemma2", "gemma3", "glm4", "gpt_oss", "granite3", "granite4", "hunyuan", "intern2", "lfm2", "llama4"),
    *("olmo", "phi", "phi4", "qwen3", "qwen3_nothink", "seed_oss", "smollm", "smollm2", "xverse", "yi", "yuan"),
)


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
        pad_id: the padding token; end of sequence where the tokenizer has none (masks come from lengths).
        fingerprint: changes when the same chat would be rendered differently.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, name: str | None = None, default_system: str | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.name = name
        self.default_system = default_system
        self.chat_template = resolve_chat_template(tokenizer, name)
        self._header, self._lead, self._closing = self._probe()
        self.end_of_turn = self._end_of_turn()
        eos = tokenizer.eos_token_id
        self.stop_token_ids = tuple(dict.fromkeys((self.end_of_turn[-1], *([] if eos is None else [int(eos)]))))
        self.pad_id = pad_token_id(tokenizer, self.end_of_turn[-1])
        identity = "\x1f".join((self.chat_template, repr(default_system), str(self.end_of_turn)))
        self.fingerprint = hashlib.sha256(identity.encode("utf-8")).hexdigest()[:16]

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids up to where the assistant's answer begins.

        Raises:
            UserError: if the messages cannot be rendered or the last one is the assistant's.
        """
        return [token for ids, _ in self._parts(messages) for token in ids]

    def encode_answer(self, content: str) -> list[int]:
        """The answer's tokens and its end of turn."""
        return [*self.tokens(content), *self.end_of_turn]

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
            parts += [(self._prompt_tokens(before, after_answer=number > 0), False), (self.encode_answer(answer), True)]
        parts.append((self._prompt_tokens(rest, after_answer=bool(answers)), False))
        return parts

    def _prompt_tokens(self, text: str, *, after_answer: bool) -> list[int]:
        """Tokens of a template part; what closes the answer before it is left to ``encode_answer``."""
        if not after_answer:
            return self.tokens(text)
        text = text.removeprefix(self._closing)
        # Tokenised behind the end of turn, as it stands there: SentencePiece treats the start of a text differently.
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

    def _end_of_turn(self) -> tuple[int, ...]:
        """What closes an answer: the template's text up to its first special token, or end of sequence."""
        after = self._closing
        added = [str(token) for token in self.tokenizer.added_tokens_decoder.values()]
        found = [(after.index(token), -len(token), token) for token in added if token.strip() and token in after]
        if found:
            start, _, token = min(found)
            self._closing = after[: start + len(token)]
            last: Any = self.tokenizer.convert_tokens_to_ids(token)
        else:
            start, last = len(after), self.tokenizer.eos_token_id
            if last is None:
                raise UserError("the tokenizer has no end-of-sequence token and the chat template closes no answer")
        return (*self.tokens(after[:start].strip()), int(last))


def resolve_chat_template(tokenizer: PreTrainedTokenizerBase, name: str | None) -> str:
    """The jinja text that ``name`` stands for with this tokenizer.

    The name of a plain text format is taken literally. That of a model family means the tokenizer's own template where
    it has one, else the shipped one of that name; no name means the tokenizer's own.

    Raises:
        UserError: unknown name, or no template to be had.
    """
    own = _own_template(tokenizer)
    if name is None:
        if own:
            return own
        raise UserError(
            f"the tokenizer has no chat template: set `template` to one of {', '.join(shipped_templates())} "
            "(`empty` joins the texts as they are)"
        )
    known = (*PLAIN, *FAMILIES)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known))}."
        raise UserError(f"unknown template {name!r}: {hint} Without `template` the tokenizer's own is used.")
    if own and name not in PLAIN:
        return own
    if name not in shipped_templates():
        raise UserError(
            f"template {name!r} is the tokenizer's own, but this tokenizer has none: set `template` to one of "
            f"{', '.join(shipped_templates())}"
        )
    return (resources.files("posttrain.data") / "templates" / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    own: Any = tokenizer.chat_template
    own = own.get("default") if isinstance(own, dict) else own
    return str(own) if own else None


def shipped_templates() -> tuple[str, ...]:
    """Names of the templates that come with the package."""
    files = (resources.files("posttrain.data") / "templates").iterdir()
    return tuple(sorted(file.name.removesuffix(".jinja") for file in files if file.name.endswith(".jinja")))


def pad_token_id(tokenizer: PreTrainedTokenizerBase, fallback: int | None = None) -> int:
    """The padding token, else end of sequence, else ``fallback``, else 0: any id will do, masks come from lengths."""
    choices = (tokenizer.pad_token_id, tokenizer.eos_token_id, fallback, 0)
    return int(next(choice for choice in choices if choice is not None))
