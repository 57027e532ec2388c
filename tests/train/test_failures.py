"""What a loop can die of, and what the user is told."""

from __future__ import annotations

import pytest
import torch

from posttrain.engine import NonFiniteError, TooLargeError
from posttrain.errors import RunError
from posttrain.train.checkpoints import STATE_FILES
from posttrain.train.failures import explained
from posttrain.train.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "out")


def dying(run, error):
    with explained(run):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried to ..."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_memory_that_runs_out_names_the_keys_that_save_it(run, error):
    with pytest.raises(RunError, match=r"finetuning_type: lora.*posttrain doctor.*No checkpoint"):
        dying(run, error)


def test_what_is_too_large_by_itself_is_said_with_the_keys_that_make_it_smaller(run):
    with pytest.raises(RunError, match=r"^one row of 900 tokens.*gradient_checkpointing.*cutoff_len.*No checkpoint"):
        dying(run, TooLargeError("one row of 900 tokens."))


def test_numbers_that_are_none_name_the_way_back(run):
    run.save_checkpoint(3, lambda folder: [(folder / name).touch() for name in STATE_FILES])
    with pytest.raises(RunError, match=r"^loss became nan. The last good checkpoint is checkpoint-3: continue with"):
        dying(run, NonFiniteError("loss became nan."))


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), KeyError("x"), RunError("a gate")])
def test_other_errors_are_left_as_they_are(run, error):
    with pytest.raises(type(error)) as caught:
        dying(run, error)
    assert caught.value is error


def test_the_allocator_of_this_machine_is_understood(run):
    with pytest.raises(RunError, match="memory ran out"), explained(run):
        torch.empty(2**52)
