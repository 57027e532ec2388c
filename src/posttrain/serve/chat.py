"""Talking to a model in a terminal, or through a pipe with one message per line."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Protocol, TextIO

from posttrain.errors import UserError

HELP = """\
/system TEXT  set the system message (without TEXT: remove it) and start anew
/clear        forget the conversation
/exit         leave (so does Ctrl-D); Ctrl-C stops an answer
"""


class Talker(Protocol):
    """What the terminal needs of a model; ``ChatModel`` is one."""

    def stream_chat(self, messages: list[dict[str, str]], system: str | None = None) -> Iterator[str]:
        """The answer in pieces."""
        ...


def talk(
    model: Talker, *, source: TextIO | None = None, output: TextIO | None = None, interactive: bool | None = None
) -> None:
    """Read messages until the input ends or /exit, and print each answer as it comes.

    Args:
        model: answers.
        source: standard input if None. output: standard output if None.
        interactive: print prompts and hints; None asks whether the input is a terminal.
    """
    source, output = source or sys.stdin, output or sys.stdout
    interactive = source.isatty() if interactive is None else interactive
    conversation = _Conversation(model, output)
    if interactive:
        with contextlib.suppress(ImportError):  # not on Windows: editing the line is the console's there
            import readline  # noqa: F401 - gives input() a history
        output.write(HELP)
    for line in _lines(source, output, interactive):
        text = line.strip()
        if text == "/exit":
            return
        if text and not conversation.command(text, say=interactive):
            conversation.ask(text, interactive)


class _Conversation:
    """The messages so far."""

    def __init__(self, model: Talker, output: TextIO) -> None:
        self.model, self.output = model, output
        self.system: str | None = None
        self.messages: list[dict[str, str]] = []

    def command(self, text: str, *, say: bool) -> bool:
        """Obey a line that is a command; False where it is a message."""
        word, _, rest = text.partition(" ")
        if word == "/clear":
            self.messages, done = [], "The conversation starts anew."
        elif word == "/system":
            self.system, self.messages = rest.strip() or None, []
            done = "The system message is set." if self.system else "The system message is removed."
        elif word == "/help":
            done = HELP.rstrip()
        else:
            return False
        if say:
            self.output.write(f"{done}\n")
        return True

    def ask(self, text: str, interactive: bool) -> None:
        """Print the answer to one message; an answer that was stopped by Ctrl-C counts as far as it came."""
        messages = [*self.messages, {"role": "user", "content": text}]
        pieces: list[str] = []
        try:
            for piece in self.model.stream_chat(messages, self.system):
                pieces.append(piece)
                self.output.write(piece)
                self.output.flush()
        except KeyboardInterrupt:
            if not interactive:
                raise
        except UserError as error:
            if not interactive:
                raise
            self.output.write(f"{error}\n")
            return
        self.output.write("\n")
        self.output.flush()
        if pieces:
            self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]


def _lines(source: TextIO, output: TextIO, interactive: bool) -> Iterator[str]:
    """Lines of the input; in a terminal behind a prompt, where Ctrl-C begins a new line and Ctrl-D ends."""
    if not interactive:
        yield from source
        return
    while True:
        try:
            if source is sys.stdin:
                line = input("> ")
            else:
                output.write("> ")
                line = source.readline()
                if not line:
                    return
        except KeyboardInterrupt:
            output.write("\n")
            continue
        except EOFError:
            output.write("\n")
            return
        yield line
