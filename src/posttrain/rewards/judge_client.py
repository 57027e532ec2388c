"""Chat completions from an OpenAI-compatible server: retries, a time limit, a bearer token, several at a time."""

from __future__ import annotations

import json
import queue
import random
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from posttrain.config import RunConfig
from posttrain.config.judge import is_url
from posttrain.errors import RewardError, UserError
from posttrain.rewards.posting import Post, PostError, excerpt, token_in

Item = TypeVar("Item")
Result = TypeVar("Result")

LONGEST_PAUSE_S = 60.0
_OF_THIS_REQUEST = (400, 413, 422)
_HINTS = {
    401: "set judge_token_env to the variable that holds the token",
    403: "the token of judge_token_env may not ask this model",
    404: "`judge` must be the base URL, mostly one that ends in /v1, and judge_model a model of this server",
}


class RefusedError(Exception):
    """The server refused this one request, an over-long one perhaps; others may well be answered."""


class ChatClient:
    """Asks one model on one server.

    Attributes:
        url: of the chat completions. model: its name there.
        num_requests: sent so far. num_retries: how many of them were sent again.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        token: str | None = None,
        time_limit_s: float = 120.0,
        retries: int = 4,
        temperature: float | None = 0.0,
        max_tokens: int | None = 1024,
        first_pause_s: float = 0.5,
    ) -> None:
        """Take the server; nothing is sent yet.

        Args:
            base_url: as OpenAI's libraries take it, such as ``http://127.0.0.1:8000/v1``.
            model: name of the model there. token: sent as a bearer token.
            time_limit_s: of one request. retries: how often one that failed is sent again.
            temperature, max_tokens: of the answers; None leaves them to the server.
            first_pause_s: before the first retry; each further one is twice as long.

        Raises:
            UserError: the URL cannot be used.
        """
        self.url = chat_url(base_url)
        self.model = model
        self.num_requests = 0
        self.num_retries = 0
        self._post = Post(self.url, token=token, time_limit_s=time_limit_s)
        self._retries, self._first_pause_s = retries, first_pause_s
        self._options: dict[str, Any] = {} if temperature is None else {"temperature": temperature}
        self._max_tokens, self._length_key = max_tokens, "max_tokens"
        self._lock = threading.Lock()

    @classmethod
    def configured(cls, config: RunConfig) -> ChatClient:
        """As the keys of the judge say.

        Raises:
            UserError: the URL cannot be used, or the variable that should hold the token is not set.
        """
        settings = config.judge
        assert settings.judge is not None
        assert settings.judge_model is not None
        return cls(
            settings.judge,
            settings.judge_model,
            token=token_in(settings.judge_token_env, "judge_token_env"),
            time_limit_s=settings.judge_time_limit,
            retries=settings.judge_retries,
            temperature=settings.judge_temperature,
            max_tokens=settings.judge_max_tokens,
        )

    def answer(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The model's answer to a chat; "" where it gave none.

        Raises:
            RewardError: no attempt brought an answer; it names the URL and the last failure.
            RefusedError: the server refuses this request.
            UserError: the server refuses every request like it: no such model, no valid token.
        """
        last: PostError | None = None
        for attempt in range(self._retries + 1):
            if last is not None:
                time.sleep(self._pause_s(attempt, last.wait_s))
            self._count(retry=last is not None)
            try:
                return _content(self._asked(messages))
            except PostError as failure:
                if not failure.may_pass:
                    raise self._lasting(failure) from failure
                last = failure
        raise RewardError(
            f"judge: no answer from {self.url} in {self._retries + 1} attempts; the last error: it {last}. Start the "
            "server, or raise judge_retries or judge_time_limit"
        )

    def _asked(self, messages: Sequence[Mapping[str, str]]) -> bytes:
        """One request, sent once more where only the name of one setting was wrong."""
        payload: dict[str, Any] = {"model": self.model, "messages": [dict(m) for m in messages], **self._options}
        key = self._length_key
        if self._max_tokens is not None:
            payload[key] = self._max_tokens
        try:
            return self._post(json.dumps(payload).encode("ascii"))
        except PostError as failure:
            if key != "max_tokens" or failure.status != 400 or "max_completion_tokens" not in str(failure):
                raise
            self._length_key = "max_completion_tokens"  # the only name that models which think first know
            return self._asked(messages)

    def _lasting(self, failure: PostError) -> Exception:
        """What a failure that another attempt would not cure means for other requests."""
        if failure.status in _OF_THIS_REQUEST:
            return RefusedError(str(failure))
        hint = _HINTS.get(failure.status or 0)
        return UserError(f"judge: {self.url} {failure}{f' ({hint})' if hint else ''}")

    def _pause_s(self, attempt: int, asked_s: float) -> float:
        """Twice as long each time, at least what the server asked for, and not the same for all who wait."""
        pause = self._first_pause_s * 2 ** (attempt - 1) * random.uniform(1.0, 1.25)
        return min(max(pause, asked_s), LONGEST_PAUSE_S)

    def _count(self, *, retry: bool) -> None:
        with self._lock:
            self.num_requests += 1
            self.num_retries += retry


def chat_url(base_url: str) -> str:
    """The address of the chat completions under a base URL.

    >>> chat_url("http://127.0.0.1:8000"), chat_url("https://judge.example/api/v1/")
    ('http://127.0.0.1:8000/v1/chat/completions', 'https://judge.example/api/v1/chat/completions')

    Raises:
        UserError: it is no http URL, or holds a password.
    """
    try:
        parts = urllib.parse.urlsplit(base_url.strip())
        usable = is_url(base_url.strip()) and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UserError(f"judge: {base_url!r} is no address of a server, such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password:
        raise UserError("judge: the address holds a user name or password; name a variable in judge_token_env instead")
    path = parts.path.rstrip("/") or "/v1"
    if not path.endswith("/chat/completions"):
        path += "/chat/completions"
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def side_by_side(items: Sequence[Item], work: Callable[[Item], Result], *, limit: int) -> Iterator[tuple[Item, Result]]:
    """(item, result) as they are finished, at most ``limit`` at work at a time; the first error ends it.

    Whoever stops iterating stops the work: nothing new is begun, and what is under way holds up no exit. A result that
    is not yet looked at counts as work, so that nothing is begun that it may have stopped.
    """
    places = threading.Semaphore(limit)
    waiting, lock, stopped = iter(items), threading.Lock(), threading.Event()
    done: queue.SimpleQueue[tuple[Item, Result | None, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        while True:
            places.acquire()
            if stopped.is_set():
                return
            with lock:
                item = next(waiting, stopped)
            if item is stopped:
                return
            try:
                done.put((item, work(item), None))  # type: ignore[arg-type]
            except Exception as error:
                done.put((item, None, error))  # type: ignore[arg-type]
                return

    for _ in range(min(limit, len(items))):
        threading.Thread(target=run, daemon=True).start()
    try:
        for _ in items:
            item, result, error = done.get()
            if error is not None:
                raise error
            yield item, result  # type: ignore[misc]
            places.release()
    finally:
        stopped.set()
        places.release(limit)


def _content(body: bytes) -> str:
    """The text in a chat completion.

    Raises:
        PostError: it is none, as of a server that is still starting, or no such server at all.
    """
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        said = excerpt(body) or "nothing"
        raise PostError(f"answered with what is no chat completion: {said}", may_pass=True) from None
    return content if isinstance(content, str) else ""
