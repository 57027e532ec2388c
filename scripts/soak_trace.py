"""In the process under test: answer a signal by writing down what the main thread is executing."""

from __future__ import annotations

import os
import signal
import traceback
from types import FrameType

END = "that is all\n"
# One that does nothing where nobody handles it: while Python shuts down its handlers are gone already.
ASK = getattr(signal, "SIGURG", None)


def answer(path: object) -> None:
    """From now on; the file begins with a line that says so."""
    # Not a file object: the handler may be interrupted by itself, which buffers do not allow.
    file = os.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)

    def write(number: int, frame: FrameType | None) -> None:
        os.write(file, ("".join(traceback.format_stack(frame)) + END).encode())

    assert ASK is not None
    signal.signal(ASK, write)
    os.write(file, b"ready\n")
