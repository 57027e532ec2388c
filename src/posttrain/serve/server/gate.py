"""What every request passes on its way in: its key, its size; and what is counted of it on its way out."""

from __future__ import annotations

import hmac
import time

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from posttrain.serve.server.metrics import Metrics
from posttrain.serve.server.refusals import RequestRefusedError

_GUARDED = "/v1"
_DRAINED = 8
"""Times the limit that is read of a body that is too large, for its sender to hear why it is refused."""


class Gate:
    """An ASGI application around another one."""

    def __init__(
        self, app: ASGIApp, *, key: str | None, max_bytes: int, metrics: Metrics, endpoints: tuple[str, ...]
    ) -> None:
        """Take what is behind the gate.

        Args:
            app: the application.
            key: that requests beneath ``/v1`` must bring; None lets everybody in.
            max_bytes: of a body.
            metrics: where requests are counted. endpoints: paths that are counted by name.
        """
        self._app, self._key, self._max_bytes = app, key, max_bytes
        self._metrics, self._endpoints = metrics, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, path = time.monotonic(), str(scope["path"])
        endpoint = path if path in self._endpoints else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.add("requests_total", endpoint=endpoint, status=str(message["status"]))
            await send(message)

        headers = Headers(scope=scope)
        try:
            self._check_key(path, headers)
            await self._check_size(headers, receive)
        except RequestRefusedError as refused:
            await JSONResponse(refused.body(), refused.status, refused.headers)(scope, receive, counted)
            return
        await self._app(scope, self._measured(receive), counted)
        if endpoint != "other" and scope["method"] == "POST":
            self._metrics.observe("request_seconds", time.monotonic() - began)

    def _check_key(self, path: str, headers: Headers) -> None:
        if self._key is None or not path.startswith(_GUARDED):
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), self._key.encode()):
            return
        said = "Incorrect API key provided." if given else "You did not provide an API key."
        raise RequestRefusedError(
            401,
            f"{said} Send it as `Authorization: Bearer KEY`.",
            kind="authentication_error",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

    async def _check_size(self, headers: Headers, receive: Receive) -> None:
        declared = headers.get("content-length", "")
        if not declared.isdecimal() or int(declared) <= self._max_bytes:
            return
        left = min(int(declared), _DRAINED * self._max_bytes)
        while left > 0:
            message = await receive()
            left -= len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body"):
                break
        raise self._too_large()

    def _measured(self, receive: Receive) -> Receive:
        """What the application receives, up to the limit: a body need not say how large it is."""
        size = 0

        async def measured() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max_bytes:
                raise self._too_large()
            return message

        return measured

    def _too_large(self) -> RequestRefusedError:
        limit = self._max_bytes / 1e6
        return RequestRefusedError(
            413, f"The request is larger than {limit:g} MB (api_max_body_mb).", code="request_too_large"
        )
