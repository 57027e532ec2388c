"""Work that is given up after a time, and coroutines of others beside our own thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

Answer = TypeVar("Answer")

_GRACE_S = 1.0


def within(seconds: float | None, work: Callable[[], Answer]) -> Answer:
    """What ``work`` returns, or its exception.

    With a limit it runs in a thread of its own, which is left behind when the time is over: Python cannot end it.

    Raises:
        TimeoutError: it takes longer.
    """
    if seconds is None:
        return work()
    future: Future[Answer] = Future()
    future.set_running_or_notify_cancel()  # it cannot be cancelled any more

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # whatever it is, it belongs to whoever waits
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="reward").start()
    return _awaited(future, seconds, seconds)


class Loop:
    """One event loop in a thread of its own, so that sessions that coroutines keep open outlive a call."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, coroutine: Coroutine[Any, Any, Answer], seconds: float | None) -> Answer:
        """What the coroutine returns, or its exception.

        Raises:
            TimeoutError: it takes longer than ``seconds``; it is cancelled.
        """
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, daemon=True, name="rewards").start()
        future = asyncio.run_coroutine_threadsafe(limited(coroutine, seconds), self._loop)
        # one that never gives way to the loop is not stopped by it
        return _awaited(future, None if seconds is None else seconds + _GRACE_S, seconds)


async def limited(coroutine: Coroutine[Any, Any, Answer], seconds: float | None) -> Answer:
    """What the coroutine returns, or its exception; TimeoutError with the limit in it once that is over."""
    try:
        async with asyncio.timeout(seconds) as limit:
            return await coroutine
    except TimeoutError:
        if limit.expired():
            raise _too_long(seconds) from None
        raise


async def gathered(
    coroutines: Sequence[Coroutine[Any, Any, Answer]], *, at_once: int, seconds: float | None
) -> list[Answer | BaseException]:
    """What each coroutine returns, or its exception; TimeoutError for those that take longer than ``seconds``.

    Args:
        coroutines: one for each row. at_once: how many may run at the same time. seconds: for each.
    """
    gate = asyncio.Semaphore(at_once)

    async def one(coroutine: Coroutine[Any, Any, Answer]) -> Answer:
        async with gate:
            return await limited(coroutine, seconds)

    return await asyncio.gather(*map(one, coroutines), return_exceptions=True)


def _awaited(future: Future[Answer], wait: float | None, seconds: float | None) -> Answer:
    try:
        return future.result(wait)
    except TimeoutError:
        if future.done():
            raise
        future.cancel()
        raise _too_long(seconds) from None


def _too_long(seconds: float | None) -> TimeoutError:
    return TimeoutError(f"took longer than {seconds:g} seconds (reward_time_limit)")
