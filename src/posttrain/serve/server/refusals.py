"""Errors as OpenAI's clients read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class RequestRefusedError(Exception):
    """A request that gets an error instead of an answer.

    Attributes:
        status: of HTTP. headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Take what is said: a sentence, OpenAI's ``type``, the parameter concerned and OpenAI's ``code``."""
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self._error = {"message": message, "type": kind, "param": param, "code": code}

    def body(self) -> dict[str, Any]:
        """The JSON of the response."""
        return {"error": self._error}


def unknown_model(name: str, known: tuple[str, ...]) -> RequestRefusedError:
    """A model that is not served here."""
    listed = ", ".join(known) or "none"
    message = f"The model {name!r} does not exist here; this server has: {listed}."
    return RequestRefusedError(404, message, param="model", code="model_not_found")


def queue_full(waiting: int, seconds: int) -> RequestRefusedError:
    """Too many requests wait already."""
    return RequestRefusedError(
        429,
        f"{waiting} requests wait for a slot already (api_max_queue); try again in {seconds} seconds.",
        kind="rate_limit_error",
        code="queue_full",
        headers={"Retry-After": str(seconds)},
    )


def too_late(seconds: float) -> RequestRefusedError:
    """A request that was not answered within its time."""
    message = f"The answer was not complete within {seconds:g} seconds (api_time_limit); ask for fewer tokens."
    return RequestRefusedError(504, message, kind="timeout_error", code="timeout")


def shutting_down() -> RequestRefusedError:
    """The server was told to stop."""
    return RequestRefusedError(503, "The server is shutting down.", kind="server_error", code="shutting_down")


def failed(reason: str) -> RequestRefusedError:
    """An error of the server's own."""
    return RequestRefusedError(500, f"The server failed: {reason}", kind="server_error", code="internal_error")
