"""The errors a user can cause, each ending in one clear message instead of a traceback."""


class PosttrainError(Exception):
    """A failure with a message meant for the user; ``exit_status`` is what the command line returns.

    ``is_said``: another process of the run has told the user, so that this one stays silent.
    """

    exit_status = 1
    is_said = False


class UserError(PosttrainError):
    """Bad input: configuration, data, paths or a combination that cannot work. Exit status 2.

    The message names the file, row and key concerned, and the likely fix.
    """

    exit_status = 2


class RunError(PosttrainError):
    """A run that started well and failed: a non-finite loss, a full disk, a gate that did not hold. Exit status 1."""


class RewardError(RunError):
    """Completions that cannot be scored. Nothing was learned from them: a loop writes a checkpoint, then stops."""


# How torch's allocators of CPU and GPU, its libraries and the system say it where they raise no type of their own.
_OUT_OF_MEMORY = (
    "not enough memory",
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "alloc_failed",
    "bad_alloc",
    "could not create a primitive",  # oneDNN's for a scratchpad or for code that it found no room for
    "could not create a memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is memory that ran out, on a CPU or a GPU."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _OUT_OF_MEMORY)
