"""Rewards that need no model of the run are computed beside it: in a thread, while the engine asks its roles."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from posttrain.rewards.protocol import Reward
from posttrain.types import RolloutBatch


@dataclass(frozen=True)
class Job:
    """A reward in two halves.

    Attributes:
        work: what a thread can do.
        finish: from what ``work`` gave to [B] rewards, in the thread that goes on with them.
    """

    work: Callable[[], Any]
    finish: Callable[[Any], Tensor]


class Begun:
    """A reward that is being computed.

    Args:
        works: done one after the other in one thread, so that functions of one user never meet each other.
        finish: from their results, in order, to [B] rewards.
    """

    def __init__(self, works: Sequence[Callable[[], Any]], finish: Callable[[list[Any]], Tensor]) -> None:
        self._works, self._finish = works, finish
        self._done: Future[list[Any]] = Future()
        self._given_up = threading.Event()
        if works:
            # a daemon: work that hangs holds up no exit
            threading.Thread(target=self._run, daemon=True, name="rewards apart").start()
        else:
            self._done.set_result([])

    def rewards(self) -> Tensor:
        """[B] once they are there.

        Raises:
            Exception: what the reward raised, as it raised it.
        """
        return self._finish(self._done.result())

    def give_up(self) -> None:
        """Begin nothing more; what is under way is left behind, since Python cannot end it."""
        self._given_up.set()

    def _run(self) -> None:
        found = []
        try:
            for work in self._works:
                if self._given_up.is_set():
                    return
                found.append(work())
            self._done.set_result(found)
        except BaseException as error:  # whatever it is, it belongs to whoever waits
            self._done.set_exception(error)


def begin(reward: Reward, batch: RolloutBatch) -> Begun:
    """Begin to score: apart where the reward is, at once where it asks a model of the run.

    Args:
        reward: with a method ``begin`` of its own, or see ``job``.
        batch: rollouts, the sampler's columns filled.
    """
    own = getattr(reward, "begin", None)
    if own is not None:
        begun: Begun = own(batch)
        return begun
    apart = job(reward, batch)
    if apart is not None:
        return Begun([apart.work], lambda found: apart.finish(found[0]))
    scores = reward(batch)
    return Begun([], lambda found: scores)


def job(reward: Reward, batch: RolloutBatch) -> Job | None:
    """The reward's work on a batch for another thread; None where it has to be asked in turn.

    A reward says so by ``is_apart``, or has a method ``job`` of its own.
    """
    own = getattr(reward, "job", None)
    if own is not None:
        found: Job | None = own(batch)
        return found
    return Job(lambda: reward(batch), lambda rewards: rewards) if getattr(reward, "is_apart", False) else None
