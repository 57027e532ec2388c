"""A judge's verdicts on the disk, each as soon as it is there: a repeated evaluation asks nothing twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from posttrain.errors import RunError, UserError
from posttrain.evaluate.bench import Bench
from posttrain.rewards.judge import Judge, Opinion
from posttrain.rewards.judge_client import side_by_side
from posttrain.rewards.verdicts import Verdict

FILE = "verdicts.jsonl"
_REFUSALS = 5
Unit = TypeVar("Unit", bound=Hashable)
Question = tuple[str, str, str]
"""What was asked, the answer shown first, the answer shown second."""


def opinions(bench: Bench, judge: Judge, questions: Mapping[Unit, Question]) -> dict[Unit, Opinion[Verdict]]:
    """What the judge says to each question; those that it answered before, into the same ``output_dir``, are not asked.

    Raises:
        RewardError: the server gives no answer.
        UserError: the server refuses the token, the model or every question.
    """
    settings = bench.config.judge
    store = VerdictStore(bench.folder and bench.folder / FILE, judge, settings.judge_temperature)
    known = {unit: store.known(question) for unit, question in questions.items()}
    found = {unit: opinion for unit, opinion in known.items() if opinion is not None}
    if found:
        bench.notify(f"{len(found)} of {len(questions)} questions are answered in {store.path}")
    pending, refusals, asked = [unit for unit in questions if unit not in found], [], 0
    try:
        for unit, opinion in side_by_side(
            pending, lambda unit: judge.compare(*questions[unit]), limit=settings.judge_concurrency
        ):
            found[unit], asked = opinion, asked + 1
            refusals += [opinion.refusal] if opinion.refusal else []
            store.add(questions[unit], opinion)
            if len(refusals) == asked == min(_REFUSALS, len(questions)):
                raise UserError(f"judge: the server refuses every question; the last time it said {refusals[-1]}")
            bench.progress("ask the judge", len(found), len(questions))
    finally:
        store.close()
    if refusals:
        bench.notify(f"the server refused {len(refusals)} questions, the first with {refusals[0]}")
    return found


class VerdictStore:
    """Verdicts by what was asked of whom.

    Attributes:
        path: the file; None keeps nothing. num_known: verdicts that were there already.
    """

    def __init__(self, path: Path | None, judge: Judge, temperature: float | None) -> None:
        """Read what is there; a line that a kill cut off, or that is no verdict, is passed over.

        Args:
            path: the file.
            judge: who is asked; its server, its model and its prompt are part of a question, as is ``temperature``.

        Raises:
            RunError: the file cannot be opened.
        """
        self.path = path
        self.num_known = 0
        self._asker = [judge.client.url, judge.client.model, judge.prompt.text, temperature]
        self._known: dict[str, Opinion[Verdict]] = {}
        self._file: Any = None
        if path is None:
            return
        try:
            if path.is_file():
                self._read(path.read_text(encoding="utf-8", errors="replace"))
            self._file = path.open("a", encoding="utf-8", newline="\n")
            self._file.write("\n")  # ends a line that was cut off
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror or error}") from error
        self.num_known = len(self._known)

    def known(self, asked: Question) -> Opinion[Verdict] | None:
        """What was said to this question; None where it was not asked yet."""
        return self._known.get(self._key(asked))

    def add(self, asked: Question, opinion: Opinion[Verdict]) -> None:
        """Keep a verdict; refusals and answers without one are asked again another time.

        Raises:
            RunError: it cannot be written.
        """
        if self._file is None or opinion.value is None:
            return
        record = {"key": self._key(asked), "verdict": opinion.value, "said": opinion.text}
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise RunError(f"{self.path} cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()

    def _read(self, text: str) -> None:
        for line in text.split("\n"):
            try:
                record = json.loads(line)
                if record["verdict"] in ("A", "B", "tie"):
                    self._known[record["key"]] = Opinion(value=record["verdict"], text=str(record.get("said", "")))
            except (ValueError, KeyError, TypeError):
                continue

    def _key(self, asked: Question) -> str:
        return hashlib.sha256(json.dumps([*self._asker, *asked]).encode("ascii")).hexdigest()
