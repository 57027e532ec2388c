"""What processes that share a run do with their shares; a second process is scripted."""

from __future__ import annotations

import pytest
import torch

from posttrain.engine import Processes, dealt, joined
from posttrain.engine.processes import _buckets
from posttrain.engine.tally import Tally
from posttrain.errors import UserError


class Pair(Processes):
    """The first of two processes; ``other`` holds what the second one adds to each sum, in order."""

    def __init__(self, other):
        super().__init__(0, 2)
        self.other = [torch.as_tensor(value) for value in other]

    def sum(self, tensor):
        return tensor.add_(self.other.pop(0).to(tensor.dtype))


def test_the_costliest_work_is_dealt_first_to_whoever_has_least() -> None:
    # 9 to the first, 5 and a 4 to the second, at the tie the other 4 to the first, 1 to the second
    assert dealt([5, 9, 1, 4, 4], [0, 0]) == [1, 0, 1, 1, 0]
    assert dealt([3, 3], [4, 0, 0]) == [1, 2]
    assert dealt([], [0, 0]) == []


def test_loads_go_on_from_deal_to_deal() -> None:
    loads = [0, 0]
    dealt([10], loads)
    assert loads == [10, 0]
    assert dealt([3], loads) == [1]


def test_a_process_without_gradients_takes_part_with_zeros() -> None:
    weights = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 2), (3,), (2,))]
    weights[0].grad = torch.ones(2, 2)
    # the other process has gradients of the first two; nobody has one of the last
    Pair([[1, 1, 0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]]).sum_gradients(weights)
    assert weights[0].grad.tolist() == [[2.0, 3.0], [4.0, 5.0]]
    assert weights[1].grad.tolist() == [5.0, 6.0, 7.0]
    assert weights[2].grad is None


def test_buckets_hold_neighbours_of_one_kind() -> None:
    kinds = (torch.float32, torch.float32, torch.bfloat16, torch.float32)
    weights = [torch.nn.Parameter(torch.zeros(2, dtype=kind)) for kind in kinds]
    assert [len(bucket) for bucket in _buckets(weights)] == [2, 1, 1]
    large = [torch.nn.Parameter(torch.empty(20_000_000, device="meta")) for _ in range(2)]
    assert [len(bucket) for bucket in _buckets(large)] == [1, 1]


def test_the_tally_of_all_is_that_of_one() -> None:
    whole, parts = Tally(), [Tally(), Tally(), Tally()]
    for number, (total, count) in enumerate([(2.0, 3), (4.0, 1), (1.5, 2)]):
        whole.add("loss/actor", torch.tensor(total), count)
        parts[number % 2].add("loss/actor", torch.tensor(total), count)
    parts[1].add("entropy", torch.tensor(6.0), 2)
    together = Tally.of(part.plain() for part in parts).means()
    assert together == {"loss/actor": pytest.approx(whole.means()["loss/actor"]), "entropy": 3.0}


def test_alone_nothing_is_communicated() -> None:
    with joined(timeout=1, say=print) as alone:
        assert (alone.rank, alone.size, alone.is_first, alone.lost()) == (0, 1, True, False)
        tensor = torch.ones(2)
        assert alone.sum(tensor) is tensor
        assert alone.gather({"a": 1}) == [{"a": 1}]
        assert alone.any(True)
        assert not alone.any(False)
        alone.require_equal(1, "cannot differ")
        alone.wait()
    assert not torch.distributed.is_initialized()


def test_a_world_without_an_address_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with (
        pytest.raises(UserError, match="MASTER_ADDR, MASTER_PORT is not set: start several processes with torchrun"),
        joined(timeout=1, say=print),
    ):
        pass


def test_processes_that_see_different_things_are_stopped(monkeypatch) -> None:
    pair = Pair([])
    monkeypatch.setattr(pair, "gather", lambda value: [value, "other"])
    with pytest.raises(UserError, match="differ"):
        pair.require_equal("mine", "they differ")
    pair.require_equal("other", "they differ")
