"""Talking to models in a terminal, or through a pipe with one message per line."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from collections.abc import Iterator
from typing import TextIO

from posttrain.errors import UserError
from posttrain.serve.columns import shown, side_by_side
from posttrain.serve.conversation import HELP, Cast, Conversation, LeaveError

_BLOCK = '"""'
_NARROWEST = 60
"""Columns of a terminal below which two answers stand under each other."""


def talk(
    cast: Cast, *, source: TextIO | None = None, output: TextIO | None = None, interactive: bool | None = None
) -> None:
    """Read messages until the input ends or /exit, and print each answer as it comes.

    Args:
        cast: the models that answer.
        source: standard input if None. output: standard output if None.
        interactive: print prompts and hints; None asks whether the input is a terminal.

    Raises:
        UserError: not interactive: a message or a command that cannot be used; the line is named.
    """
    source, output = source or sys.stdin, output or sys.stdout
    interactive = source.isatty() if interactive is None else interactive
    if not interactive and isinstance(source, io.TextIOWrapper):
        source.reconfigure(encoding="utf-8-sig", errors="surrogateescape")  # as all files are read, on Windows too
    if interactive:
        with contextlib.suppress(ImportError):  # not on Windows: editing the line is the console's there
            import readline  # noqa: F401 - gives input() a history
        output.write(HELP)
    terminal = _Terminal(Conversation(cast), output, interactive=interactive)
    lines = _Lines(source, output, interactive=interactive)
    for text in lines.messages():
        try:
            terminal.take(text)
        except LeaveError:
            return
        except UserError as error:
            if not interactive:
                raise UserError(f"standard input, line {lines.number}: {error}") from error
            output.write(f"{error}\n")
        except KeyboardInterrupt:  # while a command was at work
            if not interactive:
                raise
            output.write("\n")


class _Terminal:
    """Shows what is said."""

    def __init__(self, conversation: Conversation, output: TextIO, *, interactive: bool) -> None:
        self.conversation, self.output, self.interactive = conversation, output, interactive

    def take(self, text: str) -> None:
        """Obey a command, or have a message answered.

        Raises:
            UserError: it cannot be.
            LeaveError: the command to leave.
        """
        conversation = self.conversation
        if text == "/retry":
            before, answered = dict(conversation.messages), False
            try:
                answered = self.ask(conversation.last_question())
            finally:
                if not answered:
                    conversation.messages = before
            return
        said = conversation.command(text)
        if said is None:
            self.ask(text[1:] if text.startswith("//") else text)
        elif self.interactive:
            self.output.write(f"{said}\n")

    def ask(self, question: str) -> bool:
        """Print the answer to one message; an answer that was stopped by Ctrl-C counts as far as it came.

        Returns:
            Whether there is one.
        """
        conversation = self.conversation
        if len(conversation.speakers) == 1:
            answers = [self._answer(conversation.speakers[0], question)]
        elif self.interactive and shutil.get_terminal_size().columns >= _NARROWEST:
            answers = self._compared(question)
        else:
            answers = []
            for speaker in conversation.speakers:
                self.output.write(f"[{speaker}] ")
                answers.append(self._answer(speaker, question))
        for speaker, answer in zip(conversation.speakers, answers, strict=False):
            if answer:
                conversation.said_by(speaker, question, answer)
        return any(answers)

    def _answer(self, speaker: str, question: str) -> str:
        """Print one answer as it comes."""
        pieces: list[str] = []
        reason = ""
        try:
            for piece in (told := _Told(self.conversation, speaker, question)):
                pieces.append(piece)
                self.output.write(shown(piece) if self.interactive else piece)
                self.output.flush()
            reason = told.reason
        except KeyboardInterrupt:
            if not self.interactive:
                raise
        self.output.write("\n")
        if self.interactive and reason == "length":
            self.output.write("(cut at max_new_tokens; /set max_new_tokens allows more)\n")
        self.output.flush()
        return "".join(pieces)

    def _compared(self, question: str) -> list[str]:
        """Print both answers side by side, once both are there; until then how long they are."""
        answers: list[str] = []
        waiting = ""
        try:
            for speaker in self.conversation.speakers:
                answers.append("")
                for piece in _Told(self.conversation, speaker, question):
                    answers[-1] += piece
                    waiting = f"{speaker}: {len(answers[-1])} characters"
                    self.output.write(f"\r{waiting}")
                    self.output.flush()
                self.output.write("\r" + " " * len(waiting) + "\r")
        except KeyboardInterrupt:
            self.output.write("\r" + " " * len(waiting) + "\r")
        one, other = (
            shown(f"[{name}]\n{answer}")
            for name, answer in zip(self.conversation.speakers, [*answers, ""][:2], strict=True)
        )
        self.output.write(side_by_side(one, other, shutil.get_terminal_size().columns - 1))
        self.output.flush()
        return answers


class _Told:
    """The pieces of one answer; ``reason`` says afterwards why it ended."""

    def __init__(self, conversation: Conversation, speaker: str, question: str) -> None:
        self.reason = ""
        messages = [*conversation.messages[speaker], {"role": "user", "content": question}]
        self._pieces = conversation.cast.stream_chat(speaker, messages, conversation.system, conversation.generation)

    def __iter__(self) -> Iterator[str]:
        self.reason = yield from self._pieces


class _Lines:
    """Messages of the input, and the number of the line that was read last."""

    def __init__(self, source: TextIO, output: TextIO, *, interactive: bool) -> None:
        self.source, self.output, self.interactive = source, output, interactive
        self.number = 0

    def messages(self) -> Iterator[str]:
        """One for each line that is not blank; of several lines between two of triple quotes."""
        while (line := self._line("> ")) is not None:
            text = line.strip()
            if text.startswith(_BLOCK):
                text = self._block(text.removeprefix(_BLOCK))
            if text:
                yield text

    def _block(self, first: str) -> str:
        lines = [first]
        while not lines[-1].rstrip().endswith(_BLOCK):
            line = self._line("... ")
            if line is None:
                break
            lines.append(line.rstrip("\r\n"))
        return "\n".join(lines).rstrip().removesuffix(_BLOCK).strip()

    def _line(self, prompt: str) -> str | None:
        """The next line, in a terminal behind a prompt, where Ctrl-C begins a new one; None at the end."""
        while True:
            try:
                line = self._read(prompt)
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                self.output.write("\n(Ctrl-D or /exit leaves)\n")
                continue
            except UnicodeDecodeError:
                line = "\udc80"
            if line is None:
                return None
            self.number += 1
            if all(not "\udc80" <= character <= "\udcff" for character in line):
                return line
            if not self.interactive:
                raise UserError(f"standard input, line {self.number}: not UTF-8 text; save the file in UTF-8")
            self.output.write("That line is not UTF-8 text; set the terminal to UTF-8.\n")

    def _read(self, prompt: str) -> str | None:
        if self.interactive and self.source is sys.stdin:
            try:
                return input(prompt)
            except EOFError:
                self.output.write("\n")
                return None
        if self.interactive:
            self.output.write(prompt)
        return self.source.readline() or None
