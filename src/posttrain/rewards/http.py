"""A server as the reward: asked in batches, several at a time, and again where it does not answer."""

from __future__ import annotations

import json
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import torch
from torch import Tensor

from posttrain.config import RunConfig
from posttrain.errors import RewardError, UserError
from posttrain.rewards.judge_client import side_by_side
from posttrain.rewards.posting import Post, PostError, excerpt, is_local, reason, token_in
from posttrain.rewards.scores import OnError, Strict
from posttrain.types import RolloutBatch

Payload = Literal["posttrain", "llamafactory"]
Decode = Callable[[Sequence[int]], str]
Answer = TypeVar("Answer")

_AT_ONCE = 4
_LONGEST_PAUSE_S = 30.0


class HttpReward:
    """What a server says of completions.

    Payload "posttrain": ``{"prompts": [...], "completions": [...], "messages": [...], "columns": {name: [...]}}``;
    "llamafactory": ``{"model": "model", "messages": [text, ...]}``, each text prompt and completion with their special
    tokens. The answer to both is ``{"scores": [...]}``, one number for each completion, in their order.
    """

    is_apart = True

    def __init__(
        self,
        url: str,
        *,
        payload: Payload = "posttrain",
        decode: Decode | None = None,
        token: str | None = None,
        time_limit_s: float | None = 60.0,
        batch_size: int = 32,
        retries: int = 5,
        pause_s: float = 1.0,
        on_error: OnError = "stop",
        notify: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        """Take an address; nothing is sent yet.

        Args:
            url: where requests are posted.
            payload: see above.
            decode: token ids -> text with special tokens, for "llamafactory"; None joins prompt and completion.
            token: bearer token, sent with every request and never shown.
            time_limit_s: of one request. batch_size: completions in one.
            retries: further attempts after a request that failed. pause_s: before the first of them; it doubles.
            on_error, notify: see ``Strict``.
        """
        self._post = Post(url, token=token, time_limit_s=time_limit_s)
        self._payload, self._decode, self._limit_s, self._size = payload, decode, time_limit_s, batch_size
        self._retries, self._pause_s = retries, pause_s
        # keys are put behind the question mark, and messages into logs
        address = urlsplit(url)._replace(query="", fragment="").geturl()
        self._strict = Strict(f"the reward server {address}", on_error=on_error, notify=notify)

    @classmethod
    def configured(
        cls,
        config: RunConfig,
        url: str,
        *,
        payload: Payload = "posttrain",
        decode: Decode | None = None,
        notify: Callable[[str], None] = lambda sentence: None,
    ) -> HttpReward:
        """With the token and the limits that the configuration names.

        Raises:
            UserError: ``reward_token_env`` names a variable that is not set.
        """
        keys = config.reward
        return cls(
            url,
            payload=payload,
            decode=decode,
            token=token_in(keys.reward_token_env, "reward_token_env"),
            time_limit_s=keys.reward_time_limit,
            batch_size=keys.reward_batch_size,
            retries=keys.reward_retries,
            on_error=keys.reward_on_error,
            notify=notify,
        )

    def check(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Refuse a server that takes no connection, at any attempt, before time is spent on completions.

        Raises:
            UserError: so it is.
        """
        if not is_local(self._post.url) and urllib.request.getproxies():
            return  # only the proxy can tell
        parts = urlsplit(self._post.url)
        address = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))

        def connect() -> None:
            try:
                socket.create_connection(address, timeout=min(10.0, self._limit_s or 10.0)).close()
            except OSError as error:
                raise PostError(reason(error), may_pass=True) from error

        try:
            self._persistent(connect, threading.Event())
        except RewardError as error:
            raise UserError(f"{error} Start it, or correct the address.") from error

    def __call__(self, batch: RolloutBatch) -> Tensor:
        """[B] rewards.

        Raises:
            RewardError: the server answers at no attempt, refuses, or gives anything but one number for each.
        """
        bodies = []
        for start in range(0, len(batch), self._size):
            rows = torch.arange(start, min(start + self._size, len(batch)), device=batch.input_ids.device)
            bodies.append((self._body(batch.rows(rows)), len(rows)))
        given_up = threading.Event()

        def ask(number: int) -> list[Any]:
            body, count = bodies[number]
            return self._scores(self._persistent(lambda: self._post(body), given_up), count)

        try:
            found = dict(side_by_side(range(len(bodies)), ask, limit=_AT_ONCE))
        finally:
            given_up.set()  # where one request fails for good, no other is tried again
        return self._strict.rewards([value for number in sorted(found) for value in found[number]], batch)

    def _body(self, batch: RolloutBatch) -> bytes:
        """What is posted about these rows."""
        if self._payload == "llamafactory":
            content: dict[str, Any] = {"model": "model", "messages": self._texts(batch)}
        else:
            names = dict.fromkeys(name for row in batch.extras for name in row)
            content = {
                "prompts": batch.prompts,
                "completions": batch.completions,
                "messages": batch.messages,
                "columns": {name: [row.get(name) for row in batch.extras] for name in names},
            }
        return json.dumps(content, default=str).encode("ascii")

    def _texts(self, batch: RolloutBatch) -> list[str]:
        if self._decode is None:
            return [prompt + completion for prompt, completion in zip(batch.prompts, batch.completions, strict=True)]
        rows = zip(batch.input_ids, batch.attention_mask, strict=True)
        return [self._decode(ids[mask].tolist()) for ids, mask in rows]

    def _persistent(self, ask: Callable[[], Answer], given_up: threading.Event) -> Answer:
        """What ``ask`` returns at the first attempt or a later one; no further one is made once ``given_up`` is set."""
        for attempt in range(self._retries + 1):
            try:
                return ask()
            except PostError as error:
                pause_s = min(max(self._pause_s * 2**attempt, error.wait_s), _LONGEST_PAUSE_S)
                if not error.may_pass or attempt == self._retries or given_up.wait(pause_s):
                    times = f" ({attempt + 1} attempts)" if attempt else ""
                    raise RewardError(f"{self._strict.source} {error}{times}.") from error
        raise AssertionError("the last attempt returns or raises")

    def _scores(self, text: bytes, count: int) -> list[Any]:
        """The scores in an answer.

        Raises:
            RewardError: it is no list of ``count``.
        """
        try:
            answer = json.loads(text)
        except ValueError:
            raise RewardError(f"{self._strict.source} answered {excerpt(text) or 'nothing'}, not JSON.") from None
        if not isinstance(answer, dict) or "scores" not in answer:
            raise RewardError(f'{self._strict.source} answered {excerpt(text)}, without a list called "scores".')
        return self._strict.listed(answer["scores"], count)
