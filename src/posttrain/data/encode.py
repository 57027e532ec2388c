"""Examples -> encoded rows no longer than the cut-off, with an account of what was cut and dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from posttrain.data.formats import (
    ChatExample,
    Message,
    Messages,
    PairExample,
    PromptExample,
    TextExample,
    UnusableRowError,
)
from posttrain.data.template import EncodedRow, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOO_LONG = "longer than cutoff_len"
_SMALLEST_ROOM = 4
Side = Literal["left", "middle", "right"]
"""Which part of a message goes where it is too long."""


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Two sequences with the same prompt; answers and ends of turn in the loss masks.

    Attributes:
        ref_logps: log-probabilities of both answers under the reference, summed over their tokens.
    """

    chosen: EncodedRow
    rejected: EncodedRow
    margin: float | None = None
    ref_logps: tuple[float, float] | None = None

    def __len__(self) -> int:
        return max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt ready to be continued.

    Attributes:
        input_ids: [T]. text: the rendered prompt. messages: the chat it renders. extras: other columns of its row.
    """

    input_ids: list[int]
    text: str
    messages: Messages = ()
    extras: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(kw_only=True)
class Report:
    """What became of the rows that were read.

    Attributes:
        rows_read, kept: rows in, rows out (for packed documents: documents). truncated: kept, but cut to the cut-off.
        dropped: reason -> rows. first_dropped: reason -> where its first row stands.
        end_of_turn_kept: kept rows that end with their end-of-turn token (pairs: both sides).
        mixed: rows that several datasets, taking turns, became; rows taken twice count twice from there on.
        sequences: sequences to train on, where documents were packed into blocks.
    """

    rows_read: int = 0
    kept: int = 0
    truncated: int = 0
    end_of_turn_kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    first_dropped: dict[str, str] = field(default_factory=dict)
    sequences: int | None = None
    mixed: int | None = None

    def drop(self, reason: str, where: str) -> None:
        """Count one dropped row."""
        self.dropped[reason] += 1
        self.first_dropped.setdefault(reason, where)

    def sentence(self) -> str:
        """The account in one line."""
        mixed = "" if self.mixed is None else f", mixed to {self.mixed}"
        parts = [f"read {self.rows_read} rows{mixed}, kept {self.kept}"]
        if self.sequences is not None:
            parts.append(f"as {self.sequences} sequences")
        if self.truncated:
            parts.append(f"{self.truncated} cut to cutoff_len")
        if self.end_of_turn_kept:
            parts.append(f"{self.end_of_turn_kept} end with their end-of-turn token")
        for reason, count in self.dropped.most_common():
            parts.append(f"dropped {count}: {reason} (first: {self.first_dropped[reason]})")
        return "; ".join(parts)

    def __str__(self) -> str:
        return self.sentence()


def encode_chat(
    example: ChatExample,
    template: Template,
    cutoff_len: int,
    *,
    train_on_prompt: bool = False,
    mask_history: bool = False,
    side: Side = "middle",
) -> tuple[EncodedRow, bool]:
    """One chat as a row of at most ``cutoff_len`` tokens.

    What does not fit goes in this order: the oldest exchanges, the ``side`` of the longest user message (down to
    a quarter of the room), the end of the answer. Template and end of turn always stay.

    Returns:
        (row, was it cut).

    Raises:
        UnusableRowError: if the template alone does not fit.
    """
    messages = example.messages
    row = template.encode_chat(messages, train_on_prompt=train_on_prompt, mask_history=mask_history)
    cut = False
    while len(row) > cutoff_len and (shorter := _without_oldest_exchange(messages)) is not None:
        messages, cut = shorter, True
        row = template.encode_chat(messages, train_on_prompt=train_on_prompt, mask_history=mask_history)
    if len(row) <= cutoff_len:
        return row, cut
    prompt_ids = _fit_prompt(messages[:-1], [messages[-1].content], template, cutoff_len, side)
    return _exchange(prompt_ids, messages[-1].content, cutoff_len, template, train_on_prompt=train_on_prompt), True


def encode_pair(
    example: PairExample, template: Template, cutoff_len: int, side: Side = "middle"
) -> tuple[EncodedPair, bool]:
    """One preference pair, both sides cut the same way to at most ``cutoff_len`` tokens.

    Returns:
        (pair, was it cut); the prompt's tokens are the same on both sides.

    Raises:
        UnusableRowError: if the template alone does not fit, or cutting made both sides the same.
    """
    answers = [example.chosen, example.rejected]
    (chosen, rejected), cut = encode_answers(example.prompt, answers, template, cutoff_len, side)
    if chosen.input_ids == rejected.input_ids:
        raise UnusableRowError(
            "chosen equals rejected after cutting to cutoff_len" if cut else "chosen equals rejected"
        )
    return EncodedPair(chosen, rejected, example.margin), cut


def encode_answers(
    prompt: Messages, answers: Sequence[str], template: Template, cutoff_len: int, side: Side = "middle"
) -> tuple[list[EncodedRow], bool]:
    """Several answers to one prompt, each at most ``cutoff_len`` tokens; only answers and ends of turn train.

    Returns:
        (a row for each, was something cut); the prompt's tokens are the same in all.

    Raises:
        UnusableRowError: if the template alone does not fit.
    """
    longest = max(len(template.encode_answer(answer)) for answer in answers)
    prompt_ids, cut = template.encode_prompt(prompt), False
    while len(prompt_ids) + longest > cutoff_len and (shorter := _without_oldest_exchange(prompt)) is not None:
        prompt, cut = shorter, True
        prompt_ids = template.encode_prompt(prompt)
    if len(prompt_ids) + longest > cutoff_len:
        prompt_ids, cut = _fit_prompt(prompt, answers, template, cutoff_len, side), True
    return [_exchange(prompt_ids, answer, cutoff_len, template) for answer in answers], cut


def encode_prompt(
    example: PromptExample, template: Template, cutoff_len: int, side: Side | None = None
) -> tuple[EncodedPrompt, bool]:
    """One prompt to be continued, at most ``cutoff_len`` tokens.

    Args:
        example: the prompt. template: renders it. cutoff_len: the room there is.
        side: what goes of a longer one, after its oldest exchanges; None cuts nothing, as an answer to half a question
            teaches nothing.

    Returns:
        (prompt, was it cut).

    Raises:
        UnusableRowError: if it is longer than ``cutoff_len`` and may not be cut, or its template alone is.
    """
    prompt, cut = example.prompt, False
    input_ids = template.encode_prompt(prompt)
    if len(input_ids) > cutoff_len and side is None:
        raise UnusableRowError(f"prompt {TOO_LONG}")
    while len(input_ids) > cutoff_len and (shorter := _without_oldest_exchange(prompt)) is not None:
        prompt, cut = shorter, True
        input_ids = template.encode_prompt(prompt)
    if len(input_ids) > cutoff_len and side is not None:
        target = _longest_message(prompt)
        overhead = len(input_ids) - len(template.tokens(prompt[target].content))
        if cutoff_len - overhead < _SMALLEST_ROOM:
            raise UnusableRowError(f"chat template and system prompt alone {TOO_LONG}")
        prompt, input_ids = _cut(prompt, target, cutoff_len - overhead, template, side)
        cut = True
        if len(input_ids) > cutoff_len:
            raise UnusableRowError(f"prompt {TOO_LONG}")
    return EncodedPrompt(input_ids, template.prompt_text(prompt), prompt, example.extras), cut


def encode_text(example: TextExample, tokenizer: PreTrainedTokenizerBase, cutoff_len: int | None = None) -> list[int]:
    """A document's token ids: as the tokenizer begins a text (BOS where it does), closed by end of sequence.

    A document longer than ``cutoff_len`` is cut, without an end of sequence, as it does not end there.
    """
    ids = list(tokenizer(example.text, add_special_tokens=False, verbose=False)["input_ids"])
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and list(tokenizer("")["input_ids"])[:1] == [bos] and ids[:1] != [bos]:
        ids.insert(0, bos)
    if eos is not None and ids[-1:] != [eos]:
        ids.append(eos)
    return ids if cutoff_len is None else ids[:cutoff_len]


def row_of_text(ids: Sequence[int]) -> EncodedRow:
    """A row in which every token trains (the first has nothing before it to be predicted from)."""
    return EncodedRow(list(ids), [False] + [True] * (len(ids) - 1))


def blocks(documents: Iterable[Sequence[int]], block_size: int, separator: int | None = None) -> list[EncodedRow]:
    """Documents joined and cut into blocks; the remainder stays as a last, shorter block.

    Args:
        documents: token ids of each.
        block_size: tokens per block, at least 2.
        separator: put between documents that do not end with it already.

    Returns:
        Rows in which every token trains but the first; a last block of one token, which cannot train, is left out.

    Raises:
        ValueError: if ``block_size`` < 2.
    """
    if block_size < 2:
        raise ValueError("a block needs at least two tokens")
    stream: list[int] = []
    for ids in documents:
        if separator is not None and stream and stream[-1] != separator:
            stream.append(separator)
        stream += ids
    cuts = (stream[i : i + block_size] for i in range(0, len(stream), block_size))
    return [row_of_text(ids) for ids in cuts if len(ids) > 1]


def _without_oldest_exchange(messages: Messages) -> Messages | None:
    """The chat without its first user..assistant exchange; None if only one is left."""
    start = 1 if messages and messages[0].role == "system" else 0
    for i in range(start, len(messages) - 1):
        if messages[i].role == "assistant" and messages[i + 1].role != "assistant":
            return (*messages[:start], *messages[i + 1 :])
    return None


def _fit_prompt(prompt: Messages, answers: Sequence[str], template: Template, cutoff_len: int, side: Side) -> list[int]:
    """Prompt tokens with one side of the longest user message cut, as far as the answers need its room."""
    target = _longest_message(prompt)
    content = template.tokens(prompt[target].content)
    prompt_ids = template.encode_prompt(prompt)
    closing = len(template.closing)
    room = cutoff_len - (len(prompt_ids) - len(content)) - closing
    if room < _SMALLEST_ROOM:
        raise UnusableRowError(f"chat template and system prompt alone {TOO_LONG}")
    longest = max(len(template.tokens(answer)) for answer in answers)
    _, prompt_ids = _cut(prompt, target, max(room - longest, room // 4), template, side)
    if cutoff_len - len(prompt_ids) <= closing:
        raise UnusableRowError(f"chat template and system prompt alone {TOO_LONG}")
    return prompt_ids


def _longest_message(prompt: Messages) -> int:
    """Place of the longest message that may be cut.

    Raises:
        UnusableRowError: there is none.
    """
    may_be_cut = (i for i, message in enumerate(prompt) if message.role in ("user", "tool"))
    target = max(may_be_cut, key=lambda i: len(prompt[i].content), default=None)
    if target is None:
        raise UnusableRowError(f"system prompt {TOO_LONG}")
    return target


def _cut(prompt: Messages, target: int, budget: int, template: Template, side: Side) -> tuple[Messages, list[int]]:
    """The prompt, and its tokens, with as much of one message left as takes at most ``budget`` of them."""
    text = prompt[target].content
    content = template.tokens(text)
    prompt_ids = template.encode_prompt(prompt)
    overhead = len(prompt_ids) - len(content)
    keep = budget = min(len(content), budget)
    # Text cut at token borders may take more tokens when tokenised again.
    while keep < len(content):
        message = Message(prompt[target].role, _shortened(text, content, keep, template, side))
        shorter = (*prompt[:target], message, *prompt[target + 1 :])
        prompt_ids = template.encode_prompt(shorter)
        taken = len(prompt_ids) - overhead
        if taken <= budget or keep == 0:
            return shorter, prompt_ids
        keep = min(keep - 1, keep * budget // taken)
    return prompt, prompt_ids


def _shortened(text: str, ids: Sequence[int], keep: int, template: Template, side: Side) -> str:
    """The text of ``keep`` tokens, those at ``side`` left out, and so characters that the cut splits."""
    first = {"left": 0, "middle": (keep + 1) // 2, "right": keep}[side]
    last = len(ids) - (keep - first)
    decode = template.tokenizer.decode
    if template.tokenizer.is_fast and str(decode(list(ids))) != text:
        # A tokenizer that lowers letters or knows not all of them: the text itself is cut.
        places = template.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = places["offset_mapping"]
        head = text[: offsets[first - 1][1]] if first else ""
        return head + (text[offsets[last][0] :] if last < len(ids) else "")
    return str(decode(list(ids[:first]))).rstrip("\ufffd") + str(decode(list(ids[last:]))).lstrip("\ufffd")


def _exchange(
    prompt_ids: Sequence[int], answer: str, cutoff_len: int, template: Template, *, train_on_prompt: bool = False
) -> EncodedRow:
    """Prompt, as much of the answer as fits, end of turn."""
    room = cutoff_len - len(prompt_ids) - len(template.closing)
    ids = [*template.tokens(answer)[:room], *template.closing]
    mask = [False, *[train_on_prompt] * (len(prompt_ids) - 1), *[True] * len(ids)]
    return EncodedRow([*prompt_ids, *ids], mask)
