"""One request in the event loop: its body, and the events of its job until it ends, is too late or nobody listens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from starlette.requests import ClientDisconnect, Request

from posttrain.serve.server.jobs import Done, End, Event, Job, Piece
from posttrain.serve.server.refusals import RequestRefusedError, too_late
from posttrain.serve.server.worker import Worker


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


class Exchange:
    """A request, and what the worker says to it.

    Args:
        request: of a client. worker: does the job. limit_s: seconds from now on.
    """

    def __init__(self, request: Request, worker: Worker, limit_s: float) -> None:
        self._request, self._worker, self._limit_s = request, worker, limit_s
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + limit_s
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()

    async def body(self) -> bytes:
        """What the client sends.

        Raises:
            RequestRefusedError: it takes too long, or is too large.
            ClientGoneError: the client hung up before the end.
        """
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._request.body()
        except TimeoutError:
            raise RequestRefusedError(
                408,
                f"The request did not arrive within {self._limit_s:g} seconds.",
                kind="timeout_error",
                code="timeout",
            ) from None
        except ClientDisconnect:
            raise ClientGoneError from None

    def send(self, event: Event) -> None:
        """Take an event, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and everybody in it
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def events(self, job: Job) -> AsyncGenerator[Piece | End, None]:
        """Let the worker do a job that sends here; its events. Whatever ends this, the job's slots are free then.

        Raises:
            RequestRefusedError: the worker takes no more, the job fails or takes too long.
            ClientGoneError: the client hung up.
        """
        self._worker.submit(job)
        listener = asyncio.create_task(self._listen())
        timer = self._loop.call_at(self._deadline, self._queue.put_nowait, Done(too_late(self._limit_s)))
        try:
            while True:
                event = await self._queue.get()
                if event is None:
                    raise ClientGoneError
                if isinstance(event, Done):
                    if event.error is not None:
                        raise event.error
                    return
                yield event
        finally:
            timer.cancel()
            listener.cancel()
            self._worker.cancel(job)

    async def _listen(self) -> None:
        """Notice that the client hangs up."""
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._queue.put_nowait(None)
