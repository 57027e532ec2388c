"""Bodies of requests: what OpenAI's interface has, checked; nothing that would change an answer is passed over."""

from __future__ import annotations

import dataclasses
import difflib
import json
import secrets
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from posttrain.config import GenerationConfig
from posttrain.data.formats import ROLE_NAMES, Message, Messages
from posttrain.errors import UserError
from posttrain.rollout import SamplingParams
from posttrain.serve.server.refusals import RequestRefusedError

_IDLE = (
    *("user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key"),
    *("prompt_cache_retention", "prediction", "reasoning_effort", "verbosity", "web_search_options"),
)
"""Parameters of OpenAI's that change no answer here."""

_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "audio": (),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
}
"""Parameters that are refused, with the values that ask for nothing."""

_MOST_SAMPLES, _MOST_STOPS, _MOST_ALTERNATIVES = 128, 16, 20


class Question(BaseModel):
    """What every request that is answered with text has."""

    model_config = ConfigDict(extra="allow")
    default_samples: ClassVar[int] = 1

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int = Field(1, ge=1, le=_MOST_SAMPLES)
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    min_tokens: int | None = Field(None, ge=0)

    @classmethod
    def parsed(cls, body: bytes) -> Self:
        """The request in a body.

        Raises:
            RequestRefusedError: it is no JSON, or a parameter is wrong, unknown or not supported.
        """
        question = _validated(cls, json_object(body))
        _check_others(question.model_extra or {}, list(cls.model_fields))
        question.stop_strings()
        return question

    def stop_strings(self) -> tuple[str, ...]:
        """Texts that end an answer.

        Raises:
            RequestRefusedError: one is empty, or there are too many.
        """
        stops = [self.stop] if isinstance(self.stop, str) else list(self.stop or [])
        if "" in stops or len(stops) > _MOST_STOPS:
            raise RequestRefusedError(400, f"stop holds up to {_MOST_STOPS} texts, none of them empty.", param="stop")
        return tuple(stops)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool((self.stream_options or {}).get("include_usage"))

    def limit(self) -> int | None:
        """The most tokens that the answer may have, as the request says."""
        return self.max_tokens

    def alternatives(self) -> int | None:
        """How many of the most probable tokens are told beside each one; None is no log-probabilities at all."""
        return None

    def sampling(self, defaults: GenerationConfig, stop_token_ids: tuple[int, ...], room: int) -> SamplingParams:
        """How to draw: what the request leaves open is as configured.

        Args:
            defaults: as configured.
            stop_token_ids: that end an answer.
            room: tokens that fit behind the prompt.

        Raises:
            RequestRefusedError: numbers that do not go together, or more tokens than there is room for.
        """
        limit = self.limit()
        if limit is not None and limit > room:
            raise RequestRefusedError(
                400,
                f"max_tokens is {limit}, but only {room} tokens fit behind this prompt; lower it or leave it out.",
                param="max_tokens",
                code="context_length_exceeded",
            )
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "min_new_tokens": self.min_tokens,
        }
        changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        changes["max_new_tokens"] = min(defaults.max_new_tokens, room) if limit is None else limit
        if self.min_tokens is None:
            changes["min_new_tokens"] = min(defaults.min_new_tokens, changes["max_new_tokens"])
        if self.temperature is not None:
            changes["do_sample"] = self.temperature > 0
        settings = dataclasses.replace(defaults, **changes)
        # without a seed nobody can ask for the same answer again, so any numbers will do
        seed = secrets.randbits(62) if self.seed is None else self.seed
        try:
            return SamplingParams.configured(settings, stop_token_ids=stop_token_ids, seed=seed)
        except UserError as error:
            raise RequestRefusedError(400, f"{error}.".replace("new_tokens", "tokens")) from error


class ChatQuestion(Question):
    """``POST /v1/chat/completions``."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=_MOST_ALTERNATIVES)

    def limit(self) -> int | None:
        """See ``Question.limit``; ``max_tokens`` is the former name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def alternatives(self) -> int | None:
        """See ``Question.alternatives``.

        Raises:
            RequestRefusedError: alternatives without log-probabilities.
        """
        if self.top_logprobs and not self.logprobs:
            raise RequestRefusedError(400, "top_logprobs needs logprobs: true.", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionQuestion(Question):
    """``POST /v1/completions``."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=_MOST_ALTERNATIVES)

    def alternatives(self) -> int | None:
        """See ``Question.alternatives``."""
        return self.logprobs

    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or as tokens.

        Raises:
            RequestRefusedError: there is none.
        """
        found: list[Any] = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        if found and isinstance(found[0], int):
            found = [found]
        if not found:
            raise RequestRefusedError(400, "prompt is an empty list.", param="prompt")
        return found


def chat_messages(messages: list[dict[str, Any]], param: str = "messages") -> Messages:
    """A chat as the templates take it.

    Raises:
        RequestRefusedError: a message without role or text, of an unknown role, or with something else than text.
    """
    found = []
    for number, message in enumerate(messages):
        where = f"{param}[{number}]"
        role = str(message.get("role"))
        if role == "developer":
            role = "system"
        if role not in ROLE_NAMES:
            raise RequestRefusedError(
                400, f"{where}: role is {message.get('role')!r}; use system, user or assistant.", param=where
            )
        found.append(Message(ROLE_NAMES[role], _content(message.get("content"), where)))
    if not found:
        raise RequestRefusedError(400, f"{param} is an empty list.", param=param)
    return tuple(found)


def _content(content: Any, where: str) -> str:
    """A message's text, which may come in parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        kinds = [part.get("type") for part in content]
        if all(kind == "text" and isinstance(part.get("text"), str) for kind, part in zip(kinds, content, strict=True)):
            return "".join(part["text"] for part in content)
        other = next((kind for kind in kinds if kind != "text"), "text")
        raise RequestRefusedError(400, f"{where}: a part of type {other!r} cannot be read; send text.", param=where)
    raise RequestRefusedError(400, f"{where}: content is {type(content).__name__}, not text.", param=where)


def json_object(body: bytes) -> dict[str, Any]:
    """The object in a body.

    Raises:
        RequestRefusedError: there is none.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RequestRefusedError(400, f"The body is not valid JSON: {said}.") from None
    if not isinstance(found, dict):
        raise RequestRefusedError(400, "The body must be a JSON object.")
    return found


def _validated(kind: type[Any], values: Mapping[str, Any]) -> Any:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        param = str(first["loc"][0]) if first["loc"] else None
        missing = first["type"] == "missing"
        said = (
            "is missing"
            if missing
            else f"{first['msg']}, not {_excerpt(first['input'])}".replace("Input should", "should")
        )
        raise RequestRefusedError(400, f"{param}: {said}.", param=param) from None


def _check_others(values: Mapping[str, Any], known: list[str]) -> None:
    for name, value in values.items():
        if name in _IDLE or value is None or value in _UNSUPPORTED.get(name, ()):
            continue
        if name in _UNSUPPORTED:
            raise RequestRefusedError(
                400, f"{name} is not supported by this server; leave it out.", param=name, code="unsupported_parameter"
            )
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise RequestRefusedError(400, f"unknown parameter {name!r}{hint}", param=name, code="unknown_parameter")


def _excerpt(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
