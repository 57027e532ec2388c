"""A Python function of the user as the reward."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from posttrain.config import RunConfig
from posttrain.config.own_code import load_own, said
from posttrain.errors import RewardError, UserError
from posttrain.rewards.limits import Loop, gathered, within
from posttrain.rewards.scores import OnError, Strict
from posttrain.types import RolloutBatch

_BATCH = ("prompts", "completions", "completion_ids", "messages")
_ROW = ("prompt", "completion", "completion_ids", "messages")


@dataclass(frozen=True, kw_only=True)
class Signature:
    """How a function wants to be asked.

    Attributes:
        per_row: about one completion at a time. is_async: it gives a coroutine.
        names: of its arguments. needed: those without a default. takes_all: it also takes any other (``**columns``).
    """

    per_row: bool
    is_async: bool
    names: tuple[str, ...]
    needed: tuple[str, ...]
    takes_all: bool

    @classmethod
    def of(cls, function: Callable[..., Any], source: str) -> Signature:
        """The signature of a function.

        Raises:
            UserError: it asks for nothing that could be scored, or takes its arguments by position only.
        """
        parameters = inspect.signature(function).parameters.values()
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        names = tuple(p.name for p in named)
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        if any(p.kind is p.POSITIONAL_ONLY and p.default is p.empty for p in parameters):
            raise UserError(f"{source} takes arguments by position only; it is called with names: remove the `/`")
        about_one = "completion" in names and "completions" not in names
        if not (about_one or "completions" in names or takes_all):
            raise UserError(
                f"{source} takes {', '.join(names) or 'no arguments'}, no completions. Write it as f(completions, "
                "**columns), a list of numbers for a list of texts, or as f(completion, **columns), one number for one"
            )
        called = function if inspect.isroutine(function) else type(function).__call__
        return cls(
            per_row=about_one,
            is_async=inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called),
            names=names,
            needed=tuple(p.name for p in named if p.default is p.empty),
            takes_all=takes_all,
        )


class FunctionReward:
    """What a function says of completions.

    ``f(prompts, completions, **columns)`` gets lists and gives a list of numbers or a tensor; the columns are those of
    the prompts' data rows, beside ``completion_ids`` and ``messages``. It may name only some of them. A function that
    takes ``completion`` is asked about one at a time. Either may be ``async``; rows of the second kind then run at the
    same time.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        source: str | None = None,
        time_limit_s: float | None = None,
        at_once: int = 32,
        on_error: OnError = "stop",
        notify: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        """Take a function.

        Args:
            function: see above.
            source: what messages call it.
            time_limit_s: of one call; of each row where it is asynchronous and about one completion.
            at_once: rows that run at the same time.
            on_error, notify: see ``Strict``.

        Raises:
            UserError: its arguments are not those of a reward.
        """
        name = source or f"the reward {getattr(function, '__name__', type(function).__name__)}"
        self._function, self._limit_s, self._at_once = function, time_limit_s, at_once
        self._signature = Signature.of(function, name)
        self._strict = Strict(name, on_error=on_error, notify=notify)
        self._loop = Loop()

    @classmethod
    def configured(
        cls, config: RunConfig, file: str, function: str, notify: Callable[[str], None] = lambda sentence: None
    ) -> FunctionReward:
        """The function of a file, with the limits that the configuration names.

        Raises:
            UserError: the file cannot be imported, or has no such function.
        """
        keys = config.reward
        return cls(
            load_function(Path(file).expanduser(), function),
            source=f"the reward {file}:{function}",
            time_limit_s=keys.reward_time_limit,
            at_once=keys.reward_batch_size,
            on_error=keys.reward_on_error,
            notify=notify,
        )

    @property
    def is_apart(self) -> bool:
        """Whether another thread may ask it: without a time limit a function is called in the main one, as ever."""
        return self._limit_s is not None or self._signature.is_async

    def check(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Refuse rows that lack a column which the function cannot do without.

        Args:
            rows: the columns of each prompt's row, in order.

        Raises:
            UserError: names the first such row.
        """
        given = _ROW if self._signature.per_row else _BATCH
        wanted = [name for name in self._signature.needed if name not in given]
        for number, row in enumerate(rows, start=1):
            for name in wanted:
                if name not in row:
                    raise UserError(
                        f"{self._strict.source} takes `{name}`, but row {number} of the data has no such column "
                        f"(found: {', '.join(sorted(row)) or 'none'}); give it a default, or name a column"
                    )

    def __call__(self, batch: RolloutBatch) -> Tensor:
        """[B] rewards.

        Raises:
            RewardError: the function fails, takes too long, or gives anything but one finite number for each row.
        """
        size = len(batch)
        values = self._of_rows(batch) if self._signature.per_row else self._of_batch(batch)
        return self._strict.rewards(self._strict.listed(values, size), batch)

    def _of_batch(self, batch: RolloutBatch) -> Any:
        arguments = self._arguments(_columns(batch), batch.extras)
        try:
            return self._answer(arguments)
        except TimeoutError as error:
            raise RewardError(f"{self._strict.source} {said(error)} for {len(batch)} completions.") from error
        except (Exception, SystemExit) as error:
            if self._strict.on_error == "stop" or len(batch) == 1:
                raise RewardError(f"{self._strict.source} {said(error)}.{_hint(error)}") from error
            return [self._alone(batch, row) for row in range(len(batch))]

    def _answer(self, arguments: Mapping[str, Any]) -> Any:
        """What one call gives, the coroutine that it may give awaited."""
        call = partial(self._function, **arguments)
        answer = call() if self._signature.is_async else within(self._limit_s, call)
        return self._loop.run(answer, self._limit_s) if inspect.iscoroutine(answer) else answer

    def _alone(self, batch: RolloutBatch, row: int) -> object:
        """What the function says of one row where it fails for all together, or why it fails."""
        columns = {name: values[row : row + 1] for name, values in _columns(batch).items()}
        arguments = self._arguments(columns, batch.extras[row : row + 1])
        try:
            return self._strict.listed(self._answer(arguments), 1)[0]
        except (Exception, SystemExit) as error:
            return error

    def _of_rows(self, batch: RolloutBatch) -> list[object]:
        columns = _columns(batch)
        singular = {"prompts": "prompt", "completions": "completion"}
        asked = []
        for row in range(len(batch)):
            one = {singular.get(name, name): values[row] for name, values in columns.items()}
            extras = batch.extras[row] if batch.extras else {}
            asked.append(self._chosen(one, extras))
        if not self._signature.is_async:
            return self._one_by_one(asked)
        coroutines = [_coroutine(self._function, arguments) for arguments in asked]
        rounds = math.ceil(len(asked) / self._at_once)
        limit = None if self._limit_s is None else self._limit_s * rounds
        try:
            return list(
                self._loop.run(gathered(coroutines, at_once=self._at_once, seconds=self._limit_s), limit and limit + 1)
            )
        except TimeoutError as error:
            raise RewardError(f"{self._strict.source} {said(error)} for {len(batch)} completions.") from error

    def _one_by_one(self, asked: Sequence[Mapping[str, Any]]) -> list[object]:
        values: list[object] = []
        for arguments in asked:
            try:
                values.append(self._answer(arguments))
            except (Exception, SystemExit) as error:
                values.append(error)
        return values

    def _arguments(self, given: Mapping[str, Any], extras: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Of a call about several rows; a column that a row lacks is None there."""
        names = {name for row in extras for name in row} | set(self._signature.needed)
        columns = {name: [row.get(name) for row in extras] for name in names}
        return self._chosen(given, columns)

    def _chosen(self, given: Mapping[str, Any], columns: Mapping[str, Any]) -> dict[str, Any]:
        everything = {**columns, **given}
        if self._signature.takes_all:
            return everything
        return {name: everything[name] for name in self._signature.names if name in everything}


async def _coroutine(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """A call that fails, where it does, when it is awaited."""
    return await function(**arguments)


def _columns(batch: RolloutBatch) -> dict[str, list[Any]]:
    """What a function can ask for beside the columns of the data."""
    rows = zip(batch.input_ids, batch.loss_mask, strict=True)
    return {
        "prompts": list(batch.prompts),
        "completions": list(batch.completions),
        "completion_ids": [ids[mask].tolist() for ids, mask in rows],
        "messages": [list(chat) for chat in batch.messages] or [[] for _ in range(len(batch))],
    }


def _hint(error: BaseException) -> str:
    """Functions that were written for chats take a completion for a list of messages."""
    if isinstance(error, TypeError) and "string indices must be integers" in str(error):
        return ' Completions are texts here, not lists of messages: write completion, not completion[0]["content"].'
    return ""


def load_function(file: Path, name: str) -> Callable[..., Any]:
    """A function of a Python file; functions of one file share its module.

    Raises:
        UserError: the file is missing or cannot be imported, or has no such function.
    """
    return load_own(file, name, key="reward_funcs")  # type: ignore[no-any-return]
