"""In the process under test: answer SIGUSR1 by writing down what the main thread is executing."""

from __future__ import annotations

import signal
import traceback
from types import FrameType

END = "that is all\n"


def answer(path: object) -> None:
    """From now on; the file begins with a line that says so."""
    file = open(str(path), "w", encoding="utf-8")  # noqa: SIM115  (for as long as the process lives)

    def write(number: int, frame: FrameType | None) -> None:
        file.write("".join(traceback.format_stack(frame)) + END)
        file.flush()

    signal.signal(signal.SIGUSR1, write)
    file.write("ready\n")
    file.flush()
