"""One request to a server: JSON posted, bytes back, and what every kind of failure means for another attempt."""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.request
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from posttrain.errors import UserError

_LARGEST_ANSWER = 64 * 2**20
_MAY_PASS = (408, 409, 425, 429)


class PostError(Exception):
    """A request failed.

    Attributes:
        may_pass: another attempt may bring an answer. wait_s: what the server asks to wait before it.
        status: of HTTP, None where there was none.
    """

    def __init__(self, sentence: str, *, may_pass: bool, wait_s: float = 0.0, status: int | None = None) -> None:
        super().__init__(sentence)
        self.may_pass, self.wait_s, self.status = may_pass, wait_s, status


class Post:
    """Posts to one address. A bearer token goes to that server alone and never into a message."""

    def __init__(self, url: str, *, token: str | None = None, time_limit_s: float | None = None) -> None:
        """Nothing is sent yet.

        Args:
            url: where to. token: sent with every request.
            time_limit_s: from the request to the end of the answer, once connected.
        """
        self.url, self._token, self._limit_s = url, token, time_limit_s
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        # no proxy leads to this machine itself
        self._opener = urllib.request.build_opener(_Stay, *([urllib.request.ProxyHandler({})] if is_local(url) else []))

    def __call__(self, body: bytes) -> bytes:
        """What the server answers.

        Raises:
            PostError: it does not answer in time, or with anything but success; says what it did.
        """
        until = None if self._limit_s is None else time.monotonic() + self._limit_s
        request = urllib.request.Request(self.url, data=body, headers=self._headers, method="POST")
        limit: dict[str, Any] = {} if self._limit_s is None else {"timeout": self._limit_s}
        try:
            with self._opener.open(request, **limit) as response:
                return _whole(response, until)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error) from error
        except (OSError, http.client.HTTPException) as error:
            raise PostError(self._hidden(reason(error)), may_pass=True) from error

    def _refused(self, error: urllib.error.HTTPError) -> PostError:
        """What a state of HTTP other than success says."""
        if 300 <= error.code < 400 and (place := error.headers.get("Location")):
            sentence = f"sends on to {place}; name that address if you trust it"
            return PostError(sentence, may_pass=False, status=error.code)
        text = f"answered {error.code} {error.reason}"
        try:
            if said := excerpt(error.read(2**12)):
                text += f": {said}"
        except (OSError, http.client.HTTPException):
            text += ", then broke off"
        wait = error.headers.get("Retry-After", "").strip()
        return PostError(
            self._hidden(text),
            may_pass=error.code in _MAY_PASS or error.code >= 500,
            wait_s=float(wait) if wait.isdecimal() else 0.0,
            status=error.code,
        )

    def _hidden(self, text: str) -> str:
        return text.replace(self._token, "***") if self._token else text


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows nobody: a redirected POST loses its content, and a token is not for another server."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        """None leaves the redirect as the error that it is here."""
        return


def is_local(url: str) -> bool:
    """Whether the server is this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def token_in(variable: str | None, key: str) -> str | None:
    """The token that an environment variable holds.

    Args:
        variable: its name; None for no token. key: that names it, for messages.

    Raises:
        UserError: it is not set, or holds what cannot be sent.
    """
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise UserError(f"{key}: the environment variable {variable} is not set; put the token there")
    if not (token.isascii() and token.isprintable()):
        raise UserError(f"{key}: what {variable} holds cannot be sent as a token: it is not plain ASCII text")
    return token


def reason(error: BaseException) -> str:
    """Why a connection failed, for the middle of a sentence."""
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, TimeoutError):
        return "gave no answer within the time limit"
    words = inner.strerror if isinstance(inner, OSError) and inner.strerror else str(inner) or type(inner).__name__
    return f"does not answer ({words})"


def excerpt(text: bytes) -> str:
    """The beginning of an answer on one line, in quotes; "" of an empty one."""
    shown = " ".join(text.decode("utf-8", errors="replace").split())
    return shown and repr(shown if len(shown) <= 160 else shown[:157] + "...")


def _whole(response: Any, until: float | None) -> bytes:
    """The whole answer; a server that lets it drip in is given up in time too."""
    parts, size = [], 0
    while part := response.read1(2**16):
        parts.append(part)
        size += len(part)
        if size > _LARGEST_ANSWER:
            raise PostError("answered with more than 64 MB", may_pass=False)
        if until is not None and time.monotonic() > until:
            raise TimeoutError
    return b"".join(parts)
