"""What a loop can die of, said with the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from posttrain.engine import DamagedError, NonFiniteError, TooLargeError
from posttrain.errors import RewardError, RunError, UserError, is_out_of_memory
from posttrain.train.run_directory import RunDirectory


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
    except TooLargeError as error:
        raise RunError(
            f"{error} Set gradient_checkpointing: true, which changes no result, or a smaller cutoff_len or "
            f"max_new_tokens; `posttrain doctor` says what takes how much. {directory.way_back()}"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            "memory ran out where no smaller micro-batch helps, which would have been tried. finetuning_type: lora, an "
            "optimizer with smaller moments (optim: adafactor or adamw_8bit), quantization_bit: 4 or a smaller model "
            "does, and while completions are sampled a smaller cutoff_len or max_new_tokens; `posttrain doctor` says "
            f"what takes how much. {directory.way_back()}"
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
