"""What a loop can die of, said with the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from posttrain.engine import DamagedError, NonFiniteError
from posttrain.errors import RewardError, RunError, UserError
from posttrain.train.run_directory import RunDirectory

# How torch's allocators of CPU and GPU, and the system, say it where they raise no type of their own.
_OUT_OF_MEMORY = ("not enough memory", "out of memory", "can't allocate memory", "cannot allocate memory")


@contextmanager
def explained(directory: RunDirectory) -> Iterator[None]:
    """Around everything that computes.

    Raises:
        RunError: numbers that are none, or memory that ran out; names the checkpoint to go on from.
    """
    try:
        yield
    except NonFiniteError as error:
        raise RunError(f"{error} {directory.way_back()}") from error
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise RunError(
            "memory ran out. Set max_tokens_per_microbatch (512, then less), which changes no result, and "
            "gradient_checkpointing: true; a smaller cutoff_len, max_new_tokens or num_rollout_slots helps too. "
            f"{directory.way_back()}"
        ) from error


@contextmanager
def kept(directory: RunDirectory, save: Callable[[], None]) -> Iterator[None]:
    """Around the loop: what was learned until completions could not be scored goes into a checkpoint.

    Args:
        directory: of the run. save: writes the checkpoint, if there is one to write.

    Raises:
        RunError: what went wrong with the reward, and the way back.
    """
    try:
        yield
    except RewardError as error:
        save()
        raise RunError(f"{error} {directory.way_back()}") from error


@contextmanager
def reading(checkpoint: Path, directory: RunDirectory) -> Iterator[None]:
    """Around everything that reads a checkpoint.

    Raises:
        UserError: a file of it that is damaged; names the checkpoint to use instead.
    """
    try:
        yield
    except DamagedError as error:
        raise UserError(f"{error} {directory.way_around(checkpoint)}") from error


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _OUT_OF_MEMORY)
