"""Chat completions from an OpenAI-compatible server: retries, a time limit, a bearer token, several at a time."""

from __future__ import annotations

import http.client
import json
import os
import queue
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from posttrain.config import RunConfig
from posttrain.config.judge import is_url
from posttrain.errors import RunError, UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

LONGEST_PAUSE_S = 60.0
_LARGEST_ANSWER = 8_000_000
_SHOWN = 300
_PASSING = (408, 409, 425, 429)
_OF_THIS_REQUEST = (400, 413, 422)
_LOCAL = ("localhost", "127.0.0.1", "::1")


class RefusedError(Exception):
    """The server refused this one request, an over-long one perhaps; others may well be answered."""


class _PassingError(Exception):
    """A failure that may not come again; ``wait_s``: what the server asked for."""

    def __init__(self, text: str, wait_s: float = 0.0) -> None:
        super().__init__(text)
        self.wait_s = wait_s


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
            UserError: the URL or the token cannot be used.
        """
        self.url = chat_url(base_url)
        self.model = model
        self.num_requests = 0
        self.num_retries = 0
        self._time_limit_s, self._retries, self._first_pause_s = time_limit_s, retries, first_pause_s
        self._options: dict[str, Any] = {} if temperature is None else {"temperature": temperature}
        self._max_tokens, self._length_key = max_tokens, "max_tokens"
        self._token = token
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        local = urllib.parse.urlsplit(self.url).hostname in _LOCAL
        proxies = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(_Unmoved(), *proxies)
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
            token=_token(settings.judge_token_env),
            time_limit_s=settings.judge_time_limit,
            retries=settings.judge_retries,
            temperature=settings.judge_temperature,
            max_tokens=settings.judge_max_tokens,
        )

    def answer(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The model's answer to a chat; "" where it gave none.

        Raises:
            RunError: no attempt brought an answer; it names the URL and the last failure.
            RefusedError: the server refuses this request.
            UserError: the server refuses every request like it: no such model, no valid token.
        """
        last: _PassingError | None = None
        for attempt in range(self._retries + 1):
            if last is not None:
                time.sleep(self._pause_s(attempt, last.wait_s))
            self._count(retry=last is not None)
            try:
                return self._asked(messages)
            except _PassingError as failure:
                last = failure
        raise RunError(
            f"judge: {self.url} gave no answer in {self._retries + 1} attempts; the last error: {last}. Start the "
            "server, or raise judge_retries or judge_time_limit"
        )

    def _asked(self, messages: Sequence[Mapping[str, str]]) -> str:
        """One request."""
        payload: dict[str, Any] = {"model": self.model, "messages": [dict(m) for m in messages], **self._options}
        key = self._length_key
        if self._max_tokens is not None:
            payload[key] = self._max_tokens
        try:
            return _content(self._posted(json.dumps(payload).encode("ascii")))
        except RefusedError as refusal:
            if self._max_tokens is None or key != "max_tokens" or "max_completion_tokens" not in str(refusal):
                raise
            self._length_key = "max_completion_tokens"  # models that think before they answer know only this name
            return self._asked(messages)

    def _posted(self, body: bytes) -> bytes:
        deadline = time.monotonic() + self._time_limit_s
        request = urllib.request.Request(self.url, data=body, headers=self._headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._time_limit_s) as response:
                return _read(response, deadline)
        except urllib.error.HTTPError as error:
            raise self._of_status(error) from error
        except TimeoutError as error:
            raise _PassingError(f"no answer within {self._time_limit_s:g} s") from error
        except urllib.error.URLError as error:
            late = isinstance(error.reason, TimeoutError)
            text = f"no answer within {self._time_limit_s:g} s" if late else str(error.reason)
            raise _PassingError(self._hidden(text)) from error
        except (OSError, http.client.HTTPException) as error:
            raise _PassingError(self._hidden(f"{type(error).__name__}: {error}")) from error

    def _of_status(self, error: urllib.error.HTTPError) -> Exception:
        """What an HTTP status means for the request and for those after it."""
        try:
            with error:
                said = error.read(_LARGEST_ANSWER).decode("utf-8", errors="replace")
        except (OSError, http.client.HTTPException):
            said = ""
        text = self._hidden(f"HTTP {error.code} {error.reason}{': ' if said else ''}{_short(said)}")
        if error.code in _PASSING or error.code >= 500:
            return _PassingError(text, _asked_to_wait(error.headers.get("Retry-After")))
        if error.code in _OF_THIS_REQUEST:
            return RefusedError(text)
        hints = {401: "judge_token_env", 403: "judge_token_env", 404: "judge (with /v1) and judge_model"}
        if error.code < 400:
            target = error.headers.get("Location", "another address")
            return UserError(f"judge: {self.url} sends on to {target}; name that server in `judge` if you trust it")
        return UserError(f"judge: {self.url} answered {text}. Check {hints.get(error.code, 'judge')}")

    def _pause_s(self, attempt: int, asked_s: float) -> float:
        """Twice as long each time, at least what the server asked for, and not the same for all who wait."""
        pause = self._first_pause_s * 2 ** (attempt - 1) * random.uniform(1.0, 1.25)
        return min(max(pause, asked_s), LONGEST_PAUSE_S)

    def _count(self, *, retry: bool) -> None:
        with self._lock:
            self.num_requests += 1
            self.num_retries += retry

    def _hidden(self, text: str) -> str:
        return text.replace(self._token, "***") if self._token else text


class _Unmoved(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would take the token to a server that nobody named."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """None leaves the redirect as the error that it is here."""
        return


def chat_url(base_url: str) -> str:
    """The address of the chat completions under a base URL.

    >>> chat_url("http://127.0.0.1:8000"), chat_url("https://judge.example/api/v1/")
    ('http://127.0.0.1:8000/v1/chat/completions', 'https://judge.example/api/v1/chat/completions')

    Raises:
        UserError: it is no http URL, or holds a password.
    """
    try:
        parts = urllib.parse.urlsplit(base_url.strip())
        usable = is_url(base_url.strip()) and bool(parts.hostname) and (parts.port is None or parts.port > 0)
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

    Whoever stops iterating stops the work: nothing new is begun, and what is under way holds up no exit.
    """
    waiting, lock, stopped = iter(items), threading.Lock(), threading.Event()
    done: queue.SimpleQueue[tuple[Item, Result | None, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        while not stopped.is_set():
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
    finally:
        stopped.set()


def _token(variable: str | None) -> str | None:
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise UserError(f"judge_token_env: the environment variable {variable} is not set; put the token there")
    if not (token.isascii() and token.isprintable()):
        raise UserError(f"judge_token_env: what {variable} holds cannot be sent as a token: it is not plain ASCII text")
    return token


def _read(response: Any, deadline: float) -> bytes:
    """The whole answer, however slowly it drips in, but no later than the deadline."""
    parts, size = [], 0
    while part := response.read1(65536):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline:
            raise TimeoutError
        if size > _LARGEST_ANSWER:
            raise _PassingError(f"an answer of more than {_LARGEST_ANSWER} bytes")
    return b"".join(parts)


def _content(body: bytes) -> str:
    """The text in a chat completion."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        shown = _short(body.decode("utf-8", errors="replace"))
        raise _PassingError(f"what it answered is no chat completion: {shown or '(nothing)'}") from None
    return content if isinstance(content, str) else ""


def _asked_to_wait(header: str | None) -> float:
    """Seconds of a Retry-After header; its other form, a date, is left to the growing pauses."""
    return float(header) if header is not None and header.strip().isdecimal() else 0.0


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
