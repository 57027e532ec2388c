"""Examples encoded by several processes, with the result of one."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import chain
from multiprocessing import get_context
from typing import Any

from posttrain.errors import UserError

_state: dict[str, Any] = {}


def mapped(
    function: Callable[..., Any], items: Sequence[Any], arguments: tuple[Any, ...], *, workers: int, chunk: int
) -> Iterator[Any]:
    """``function(item, *arguments)`` of every item, in their order.

    Args:
        function: of a module's top level, as processes that start anew must find it.
        items: that processes share out.
        arguments: sent once to each process.
        workers: processes; fewer than two means this one. chunk: items of one task.

    Raises:
        UserError: a process ended without a result.
    """
    chunks = [items[start : start + chunk] for start in range(0, len(items), chunk)]
    workers = min(workers, len(chunks))
    if workers < 2:
        yield from (function(item, *arguments) for item in items)
        return
    # spawned, not forked, on every system: threads of torch and tokenizers do not survive a fork
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin, initargs=(function, arguments))
    try:
        yield from chain.from_iterable(pool.map(_work, chunks))
    except BrokenProcessPool as error:
        raise UserError(
            f"preprocessing_num_workers: {workers}: a process that encodes rows ended without a result. In a script of "
            'your own, put what it does under `if __name__ == "__main__":`; if memory is short, take fewer processes'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends its processes
    _state["work"] = partial(_call, function, arguments)


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], item: Any) -> Any:
    return function(item, *arguments)


def _work(items: Sequence[Any]) -> list[Any]:
    return [_state["work"](item) for item in items]
