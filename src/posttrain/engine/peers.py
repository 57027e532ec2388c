"""How the processes of a run notice that one of them has ended, and which of them tells the user."""

from __future__ import annotations

import _thread
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch

from posttrain.errors import RunError

GONE = -1
"""The status of a process that ended without a word."""
INTERRUPTED = 130
_FOREVER = timedelta(days=365)
# Within a minute all processes must have ended: torchrun kills what is left 30 seconds after the first.
_NOTICES_ITSELF = 2.0
_IS_INTERRUPTED = 15.0
_HEARS = 10.0
_SAVES = 28.0


class PeerEndedError(RunError):
    """Another process of the run has ended, so that this one cannot go on."""


class Peers:
    """A channel on which processes say how they ended; one that breaks says it too.

    Process 0 listens to all others, and they to it. Where the main thread does not come across the loss by itself, in
    a collective operation that fails, it is interrupted; where that does not help (it waits for a GPU), the process
    is ended with the message.
    """

    def __init__(self, rank: int, size: int, say: Callable[[str], None]) -> None:
        """Open the channel; every process must do so.

        Args:
            rank, size: of this process, and how many there are.
            say: prints the message where the main thread cannot.
        """
        from torch import distributed

        self._rank, self._size, self._say = rank, size, say
        self._group = distributed.new_group(backend="gloo", timeout=_FOREVER)
        self._watched = range(1, size) if rank == 0 else range(1)
        self._statuses: dict[int, int] = {}
        self._heard = {peer: threading.Event() for peer in self._watched}
        self._any_lost = threading.Event()
        self._leaving = threading.Event()
        for peer in self._watched:
            threading.Thread(target=self._listen, args=(peer,), daemon=True).start()

    def lost(self, patience: float = 0.0) -> bool:
        """Whether a process ended that should not have, or does within so many seconds."""
        until = time.monotonic() + patience
        while not self._any_lost.is_set() and time.monotonic() < until:
            time.sleep(0.01)  # not Event.wait: a handler of a signal may come here while the event is held
        return self._any_lost.is_set()

    def missing(self, patience: float) -> bool:
        """As ``lost``, those not counted that the user interrupted."""
        return self.lost(patience) and any(status not in (0, INTERRUPTED) for status in self._statuses.values())

    def status_of_first(self, *, saves: bool) -> int | None:
        """How process 0 ended; None if it goes on.

        Args:
            saves: it may be writing a checkpoint, and gets longer.
        """
        self._heard[0].wait(_SAVES if saves else _HEARS)
        return self._statuses.get(0)

    def is_leaving(self) -> None:
        """Take note that the main thread needs no interruption any more."""
        self._leaving.set()

    def loss(self) -> PeerEndedError:
        """The error that says which processes are missing."""
        lost = sorted(peer for peer, status in self._statuses.items() if status != 0)
        which = "process " + " and ".join(map(str, lost)) if lost else "another one"
        return PeerEndedError(
            f"{which} of the {self._size} processes of this run ended, so process {self._rank} stopped too. If it said "
            "nothing above, it was killed, as happens where memory runs out."
        )

    def leave(self, status: int) -> None:
        """Say how this process ends."""
        from torch import distributed

        self._leaving.set()
        for peer in self._watched:
            if peer not in self._statuses or self._statuses[peer] == 0:
                try:
                    distributed.send(torch.tensor([status]), dst=peer, group=self._group)
                except RuntimeError:
                    self._statuses[peer] = self._statuses.get(peer, GONE)  # it ended meanwhile

    def finish(self) -> None:
        """Leave a run that went well once all others do.

        Raises:
            PeerEndedError: if one of them does not end well.
        """
        if self._rank > 0:
            self.leave(0)
        for heard in self._heard.values():
            heard.wait()
        if self._any_lost.is_set():
            raise self.loss()
        if self._rank == 0:
            self.leave(0)

    def _listen(self, peer: int) -> None:
        from torch import distributed

        word = torch.zeros(1, dtype=torch.int64)
        try:
            distributed.recv(word, src=peer, group=self._group)
            status = int(word)
        except RuntimeError:
            status = GONE
        self._statuses[peer] = status
        if status != 0:
            self._any_lost.set()
        self._heard[peer].set()
        if status in (0, INTERRUPTED) or self._leaving.wait(_NOTICES_ITSELF):
            return
        _thread.interrupt_main()
        if not self._leaving.wait(_IS_INTERRUPTED):
            if status == GONE or self._rank == 0:
                self._say(str(self.loss()))
            os._exit(1)
