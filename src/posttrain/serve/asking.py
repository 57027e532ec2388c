"""Every question to a judge once: verdicts and scores into a journal, those that stand there left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from posttrain.config import RunConfig
from posttrain.data.answers import AnswersExample
from posttrain.errors import UserError
from posttrain.rewards.judge import Judge, Opinion
from posttrain.rewards.judge_client import side_by_side
from posttrain.rewards.verdicts import Verdict, transcript, with_system
from posttrain.serve.journal import Journal
from posttrain.serve.outcomes import pairs_of
from posttrain.serve.scoring import FolderScorer

Progress = Callable[[str, int, int], None]
Unit = TypeVar("Unit")

_TOO_MANY_REFUSALS = 5


class Asking:
    """Puts the questions of a dataset to a judge.

    Attributes:
        examples: prompts with their answers. journal: what has been answered.
        refusals: what the server said to questions that it refused, in this process; they are asked again next time.
    """

    def __init__(
        self,
        config: RunConfig,
        examples: Sequence[AnswersExample],
        journal: Journal,
        *,
        notify: Callable[[str], None],
        progress: Progress,
    ) -> None:
        """Take the work; nothing is asked yet."""
        self.examples = examples
        self.journal = journal
        self.refusals: list[str] = []
        self._config = config
        self._notify, self._progress = notify, progress

    def verdicts(self, judge: Judge) -> dict[tuple[int, int, int], Verdict | None]:
        """(row, answer shown first, answer shown second) -> verdict, None where the judge gave none.

        Raises:
            RewardError: the server gave no answer.
            UserError: the server refuses the token, the model or every question.
        """
        settings = self._config.judge
        wanted = [
            (row, *shown)
            for row, example in enumerate(self.examples)
            for first, second in pairs_of(len(example.answers), settings.judge_max_pairs)
            for shown in ([(first, second), (second, first)] if settings.judge_swap else [(first, second)])
        ]
        found = {(int(r["row"]), int(r["first"]), int(r["second"])): r["verdict"] for r in self.journal.records}

        def ask(unit: tuple[int, int, int]) -> Opinion[Verdict]:
            row, first, second = unit
            answers = self.examples[row].answers
            return judge.compare(self._shown(row, judge), answers[first], answers[second])

        def record(unit: tuple[int, int, int], opinion: Opinion[Verdict]) -> dict[str, Any]:
            found[unit] = opinion.value
            row, first, second = unit
            return {"row": row, "first": first, "second": second, "verdict": opinion.value, "said": opinion.text}

        self._ask([unit for unit in wanted if unit not in found], len(wanted), ask, record)
        return {unit: found[unit] for unit in wanted if unit in found}

    def ratings(self, judge: Judge) -> dict[tuple[int, int], float | None]:
        """(row, answer) -> score, None where the judge gave none.

        Raises:
            RewardError, UserError: as ``verdicts``.
        """
        wanted = [(row, place) for row, example in enumerate(self.examples) for place in range(len(example.answers))]
        found = {(int(r["row"]), int(r["answer"])): r["score"] for r in self.journal.records}

        def ask(unit: tuple[int, int]) -> Opinion[float]:
            row, place = unit
            return judge.rate(self._shown(row, judge), self.examples[row].answers[place])

        def record(unit: tuple[int, int], opinion: Opinion[float]) -> dict[str, Any]:
            found[unit] = opinion.value
            return {"row": unit[0], "answer": unit[1], "score": opinion.value, "said": opinion.text}

        self._ask([unit for unit in wanted if unit not in found], len(wanted), ask, record)
        return found

    def folder_ratings(self, folder: str) -> dict[tuple[int, int], float | None]:
        """(row, answer) -> score by a reward model's folder, None where the prompt does not fit into ``cutoff_len``.

        Rows are scored in groups that are the same in every process, so that a resumed one finds the same numbers.

        Raises:
            UserError: the folder is no reward model, or what it was trained on cannot be had.
            RunError: a score is no number.
        """
        size = self._config.train.per_device_eval_batch_size
        count = len(self.examples)
        groups = [range(start, min(start + size, count)) for start in range(0, count, size)]
        done = {(int(record["from"]), int(record["to"])): record["scores"] for record in self.journal.records}
        scorer: FolderScorer | None = None
        found: dict[tuple[int, int], float | None] = {}
        for group in groups:
            scores = done.get((group.start, group.stop))
            if scores is None:
                if scorer is None:
                    self._progress("load the reward model", 0, 0)
                    scorer = FolderScorer.configured(self._config, folder, notify=self._notify)
                scores = self._group_scores(scorer, group)
                self.journal.add({"from": group.start, "to": group.stop, "scores": scores})
            for row, of_row in zip(group, scores, strict=True):
                found.update({(row, place): score for place, score in enumerate(of_row)})
            self._progress("score answers", group.stop, count)
        return found

    def _group_scores(self, scorer: FolderScorer, group: range) -> list[list[float | None]]:
        asked = [(self.examples[row].prompt, text) for row in group for text in self.examples[row].answers]
        scores = iter(scorer.scores(asked))
        return [[next(scores) for _ in self.examples[row].answers] for row in group]

    def _ask(
        self,
        pending: Sequence[Unit],
        total: int,
        ask: Callable[[Unit], Opinion[Any]],
        record: Callable[[Unit, Opinion[Any]], dict[str, Any]],
    ) -> None:
        """Ask what is pending, several questions at a time, and write each answer down as it comes."""
        if len(pending) < total:
            self._notify(f"{total - len(pending)} of {total} questions are answered in {self.journal.path}")
        answered = 0
        for unit, opinion in side_by_side(pending, ask, limit=self._config.judge.judge_concurrency):
            if opinion.refusal:
                self.refusals.append(opinion.refusal)
            else:
                answered += 1
                self.journal.add(record(unit, opinion))
            if not self.journal.records and len(self.refusals) >= min(_TOO_MANY_REFUSALS, len(pending)):
                raise UserError(f"judge: the server refuses every question; the last time it said {self.refusals[-1]}")
            self._progress("ask the judge", total - len(pending) + answered + len(self.refusals), total)

    def _shown(self, row: int, judge: Judge) -> str:
        """The prompt of a row as the judge reads it, with the system message that every row has."""
        chat = with_system(self.examples[row].prompt, self._config.data.default_system)
        return transcript(chat, judge.prompt.language)
