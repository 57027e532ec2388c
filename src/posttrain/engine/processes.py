"""The processes that share a run: what they sum, gather and agree on. The only user of torch.distributed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from posttrain.engine.peers import GONE, INTERRUPTED, PeerEndedError, Peers
from posttrain.errors import RunError, UserError

_BUCKET = 25_000_000
"""Numbers that are summed in one go."""


class Processes:
    """This process among those that share the run; every method is called by all of them, in the same order.

    Alone, nothing is communicated and torch.distributed is not touched.

    Attributes:
        rank: of this process, from 0. size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1, peers: Peers | None = None) -> None:
        """Made by ``joined``; without arguments, a process alone."""
        self.rank, self.size, self._peers = rank, size, peers

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def lost(self) -> bool:
        """Whether another process has ended, or turns out to within half a second; for the handler of a signal."""
        return self._peers is not None and self._peers.lost(0.5)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes of a tensor of one shape and dtype, in place."""
        if self.size > 1:
            from torch import distributed

            self._done(distributed.all_reduce(tensor, async_op=True))
        return tensor

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Give every parameter the sum of its gradients; one that no process has a gradient of keeps none."""
        if self.size == 1:
            return
        owned = list(parameters)
        device = owned[0].device
        held = self.sum(torch.tensor([p.grad is not None for p in owned], dtype=torch.int32, device=device))
        shared = [p for p, count in zip(owned, held.tolist(), strict=True) if count]
        for bucket in _buckets(shared):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            total = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
            for parameter, part in zip(bucket, total.split([p.numel() for p in bucket]), strict=True):
                parameter.grad = part.view_as(parameter).clone()

    def gather(self, value: Any) -> list[Any]:
        """What each process says, by rank. value: a small one that JSON can hold."""
        if self.size == 1:
            return [value]
        from torch import distributed

        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(text)
        width = int(self.sum(lengths).max())
        texts = [torch.zeros(width, dtype=torch.uint8) for _ in range(self.size)]
        padded = torch.nn.functional.pad(text, (0, width - len(text)))
        self._done(distributed.all_gather(texts, padded, async_op=True))
        pairs = zip(texts, lengths.tolist(), strict=True)
        return [json.loads(bytes(found[:length].tolist())) for found, length in pairs]

    def any(self, flag: bool) -> bool:
        """Whether any process says yes."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(int(flag))))

    def from_first(self, value: Any) -> Any:
        """What process 0 says; see ``gather``."""
        return self.gather(value if self.is_first else None)[0]

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let process 0 do what is inside before the others, which find it done."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def wait(self) -> None:
        """Return once every process has come here."""
        self.any(False)

    def require_equal(self, value: Any, complaint: str) -> None:
        """Stop a run whose processes do not see the same.

        Raises:
            UserError: ``complaint``, if ``value`` differs.
        """
        found = self.gather(value)
        if any(other != found[0] for other in found):
            raise UserError(complaint)

    def _done(self, work: Any) -> None:
        """Wait for an operation in a way that signals and the loss of a process can interrupt."""
        pause = 5e-5
        while not work.is_completed():
            if self._peers is not None and self._peers.lost():
                raise PeerEndedError("another process of this run ended")
            time.sleep(pause)
            pause = min(1.5 * pause, 0.01)
        try:
            work.wait()
        except RuntimeError as error:
            if "timed out" not in str(error).lower():
                raise PeerEndedError("the connection to another process of this run broke") from error
            raise RunError(
                "the other processes of this run did not come to the same point in time. If one of them is merely "
                "slow, raise ddp_timeout, the seconds that they wait for each other."
            ) from error


def _buckets(parameters: Sequence[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Neighbours of one dtype and device, so many that they are worth one message."""
    bucket: list[torch.nn.Parameter] = []
    for parameter in parameters:
        alike = bucket and (parameter.dtype, parameter.device) == (bucket[0].dtype, bucket[0].device)
        if bucket and (not alike or sum(p.numel() for p in bucket) + parameter.numel() > _BUCKET):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


@contextmanager
def joined(*, timeout: float, say: Callable[[str], None]) -> Iterator[Processes]:
    """Join the processes that a launcher (torchrun) started for this run, and leave together with them.

    Gradients and columns travel by NCCL between GPUs where every process has its own, else by gloo.

    Args:
        timeout: seconds that a process waits for the others in one operation; 0 is half an hour.
        say: prints a message where nothing else can.

    Raises:
        UserError: if the launcher's variables are incomplete.
        PeerEndedError: if another process ends; ``is_said`` where process 0 has told the user why.
    """
    size = int(os.environ.get("WORLD_SIZE") or 1)
    if size == 1:
        yield Processes()
        return
    rank = _connect(size, timedelta(seconds=min(timeout or 1800.0, 1e8)))
    peers = Peers(rank, size, say)
    try:
        yield Processes(rank, size, peers)
        peers.finish()
    except BaseException as error:
        _leave(rank, peers, error)
        raise
    from torch import distributed

    distributed.destroy_process_group()


def _connect(size: int, timeout: timedelta) -> int:
    """Open the process group on this process's device; returns the rank."""
    from torch import distributed

    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set: start several processes with torchrun, or "
            "unset WORLD_SIZE for one"
        )
    local, local_size = (
        int(os.environ.get(name) or least) for name, least in (("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))
    )
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local % torch.cuda.device_count())
        if local_size <= torch.cuda.device_count():
            backend = "cpu:gloo,cuda:nccl"
    elif not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_size))
    try:
        distributed.init_process_group(backend, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the processes of this run could not reach each other: {error}") from error
    return distributed.get_rank()


def _leave(rank: int, peers: Peers, error: BaseException) -> None:
    """Tell the others how this process ends, and put in place of ``error`` what its user should hear.

    Raises:
        PeerEndedError: where ``error`` only follows from another process's end, or process 0 has told of it.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, which must not come before the message
    peers.is_leaving()
    # a launcher ends all processes when one has ended, which looks like Ctrl-C
    interrupted, follows = isinstance(error, KeyboardInterrupt), isinstance(error, PeerEndedError)
    status = INTERRUPTED if interrupted else getattr(error, "exit_status", 1)
    if rank > 0:
        first = peers.status_of_first(saves=interrupted)
        if first is not None and first > 0 and not (interrupted and first == INTERRUPTED):
            raise _said(first) from error
        if first == GONE and (interrupted or follows):
            raise peers.loss() from error
        peers.leave(status)
        return
    if peers.missing(0.5) if interrupted else follows and peers.lost(1.0):
        peers.leave(1)
        raise peers.loss() from error
    peers.leave(status)


def _said(status: int) -> PeerEndedError:
    error = PeerEndedError("process 0 of this run ended, and said why")
    error.exit_status, error.is_said = status, True
    return error
