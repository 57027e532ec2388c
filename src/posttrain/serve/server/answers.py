"""Answers as OpenAI's interface writes them, whole or in chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from posttrain.serve.server.jobs import End, FinishReason, Piece, TextJob, TokenInfo
from posttrain.serve.server.models import Voice

_BROKEN = "\ufffd"


@dataclass
class Choice:
    """One completion, as far as it has come."""

    text: str = ""
    tokens: list[TokenInfo] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def add(self, event: Piece | End) -> None:
        """Take what is new."""
        if isinstance(event, Piece):
            self.text += event.text
            self.tokens += event.tokens
        else:
            self.finish_reason = event.finish_reason


class Writer(Protocol):
    """How one endpoint writes the answer to one job."""

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The answer in one piece."""
        ...

    def opening(self, choice: int) -> dict[str, Any] | None:
        """The chunk before the first text of a choice, if there is one."""
        ...

    def chunk(self, event: Piece | End) -> dict[str, Any]:
        """What is new of one choice."""
        ...

    def closing(self) -> dict[str, Any]:
        """The last chunk, with the numbers of tokens."""
        ...


class ChatWriter:
    """``chat.completion`` and ``chat.completion.chunk``."""

    def __init__(self, job: TextJob) -> None:
        """Take whose answer it is."""
        self._job = job
        self._head = _head("chatcmpl", job.voice)

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """See ``Writer``."""
        listed = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": self._logprobs(choice.tokens),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ]
        return {**self._head, "object": "chat.completion", "choices": listed, "usage": usage(self._job)}

    def opening(self, choice: int) -> dict[str, Any] | None:
        """See ``Writer``: whose turn it is."""
        return self._chunk(choice, {"role": "assistant", "content": ""})

    def chunk(self, event: Piece | End) -> dict[str, Any]:
        """See ``Writer``."""
        if isinstance(event, End):
            return self._chunk(event.choice, {}, finish_reason=event.finish_reason)
        return self._chunk(event.choice, {"content": event.text}, tokens=event.tokens)

    def closing(self) -> dict[str, Any]:
        """See ``Writer``."""
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage(self._job)}

    def _chunk(
        self,
        choice: int,
        delta: dict[str, Any],
        *,
        tokens: Sequence[TokenInfo] = (),
        finish_reason: FinishReason | None = None,
    ) -> dict[str, Any]:
        logprobs = self._logprobs(tokens) if tokens else None
        listed = [{"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}]
        return {**self._head, "object": "chat.completion.chunk", "choices": listed}

    def _logprobs(self, tokens: Sequence[TokenInfo]) -> dict[str, Any] | None:
        if self._job.alternatives is None:
            return None
        voice = self._job.voice
        content = [
            {
                **_named(voice, info.token, info.logprob),
                "top_logprobs": [_named(voice, token, logprob) for token, logprob in info.alternatives],
            }
            for info in tokens
        ]
        return {"content": content, "refusal": None}


class CompletionWriter:
    """``text_completion``, whole or in chunks."""

    def __init__(self, job: TextJob) -> None:
        """Take whose answer it is."""
        self._job = job
        self._head = {**_head("cmpl", job.voice), "object": "text_completion"}
        self._offsets: dict[int, int] = {}

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """See ``Writer``."""
        listed = [
            self._choice(index, choice.text, choice.tokens, choice.finish_reason)
            for index, choice in enumerate(choices)
        ]
        return {**self._head, "choices": listed, "usage": usage(self._job)}

    def opening(self, choice: int) -> dict[str, Any] | None:
        """See ``Writer``: none."""
        return None

    def chunk(self, event: Piece | End) -> dict[str, Any]:
        """See ``Writer``."""
        if isinstance(event, End):
            return {**self._head, "choices": [self._choice(event.choice, "", (), event.finish_reason)]}
        return {**self._head, "choices": [self._choice(event.choice, event.text, event.tokens, None)]}

    def closing(self) -> dict[str, Any]:
        """See ``Writer``."""
        return {**self._head, "choices": [], "usage": usage(self._job)}

    def _choice(
        self, index: int, text: str, tokens: Sequence[TokenInfo], finish_reason: FinishReason | None
    ) -> dict[str, Any]:
        logprobs = self._logprobs(index, tokens) if tokens else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, choice: int, tokens: Sequence[TokenInfo]) -> dict[str, Any]:
        voice = self._job.voice
        names = [_text(voice, info.token) for info in tokens]
        offsets = []
        for name in names:
            offsets.append(self._offsets.get(choice, 0))
            self._offsets[choice] = offsets[-1] + len(name)
        return {
            "tokens": names,
            "token_logprobs": [info.logprob for info in tokens],
            "top_logprobs": [_by_text(voice, info) for info in tokens],
            "text_offset": offsets,
        }


def usage(job: TextJob) -> dict[str, int]:
    """Tokens of the prompts, each counted once, and of all choices."""
    prompt, drawn = sum(map(len, job.prompts)), job.num_drawn
    return {"prompt_tokens": prompt, "completion_tokens": drawn, "total_tokens": prompt + drawn}


def score_list(
    name: str, scores: Sequence[float | None], num_tokens: int, kind: Literal["score.evaluation"] = "score.evaluation"
) -> dict[str, Any]:
    """The answer to ``/v1/score``, LLaMA-Factory's with the numbers of tokens."""
    return {
        "id": f"scoreval-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": name,
        "scores": list(scores),
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }


def _head(prefix: str, voice: Voice) -> dict[str, Any]:
    return {"id": f"{prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": voice.name}


def _named(voice: Voice, token: int, logprob: float) -> dict[str, Any]:
    text = _text(voice, token)
    # a token may be a part of a character, whose bytes the text does not tell
    return {"token": text, "logprob": logprob, "bytes": None if _BROKEN in text else list(text.encode())}


def _by_text(voice: Voice, info: TokenInfo) -> dict[str, float]:
    """Log-probabilities by text: of tokens that look alike, such as parts of characters, that of the most probable."""
    found: dict[str, float] = {}
    for token, logprob in (*info.alternatives, (info.token, info.logprob)):
        found.setdefault(_text(voice, token), logprob)
    return found


def _text(voice: Voice, token: int) -> str:
    return str(voice.template.tokenizer.decode([token]))
