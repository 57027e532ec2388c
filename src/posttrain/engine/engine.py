"""The engine: runs roles over batches, turns unreduced losses into exact optimizer steps, saves and resumes itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.algorithms import Algorithm
from posttrain.engine import state as stored
from posttrain.engine.asked import Asked
from posttrain.engine.lower_states import lower_parts, piece_states, row_states
from posttrain.engine.microbatches import DEFAULT_MAX_TOKENS
from posttrain.engine.numbered import Numbered, numbered, widened
from posttrain.engine.optimizer import OptimizerSettings, clip_gradients, drop_early_gradients, parameter_groups
from posttrain.engine.optimizers import make_optimizer, paging_note
from posttrain.engine.processes import Processes
from posttrain.engine.shares import OutOfMemory, Piece, Shares, attempted
from posttrain.engine.tally import Tally, unit_counts
from posttrain.engine.task import Task
from posttrain.errors import RunError
from posttrain.models.forward import is_packed
from posttrain.models.roles import Roles
from posttrain.types import AlgorithmState, Batch, LossTerm, Role, RolloutBatch

B = TypeVar("B", bound=Batch)
T = TypeVar("T")


class NonFiniteError(RunError):
    """A loss or a gradient norm that is no number."""


class Engine:
    """Consult frozen roles, accumulate gradients, step the optimizer, evaluate, checkpoint.

    A minibatch is one optimizer step's worth of rows. It is cut into micro-batches by token count, and every loss is
    divided by one count over the whole minibatch, so the cut cannot change a result beyond summation order. Where
    memory runs out, the cut gets finer and what had been computed of the step is computed again.

    Processes that share a run hold equal weights and are given equal batches. Each computes its share of the
    micro-batches; gradients and metrics are summed once per optimizer step, columns at the end of each call.
    """

    def __init__(
        self,
        roles: Roles,
        algorithm: Algorithm,
        settings: OptimizerSettings,
        schedule: Callable[[int], float],
        *,
        temperature: float = 1.0,
        max_tokens: int | None = None,
        seed: int = 0,
        processes: Processes | None = None,
    ) -> None:
        """Build the optimizer over what the algorithm's roles train.

        Args:
            roles: the role table over a backbone.
            algorithm: names the roles that train.
            settings: of the optimizer.
            schedule: optimizer step (from 0) -> factor on the learning rate.
            temperature: the sampling policy's, for log-probabilities.
            max_tokens: packed tokens a micro-batch may hold; None chooses.
            seed: of dropout.
            processes: that share the run; None is this one alone.
        """
        self.roles = roles
        self.algorithm_state: AlgorithmState = getattr(algorithm, "initial_state", AlgorithmState)()
        self.step = 0
        self.iteration = 0
        self.trained_tokens = 0
        self.computed_seconds = 0.0
        self.device = next(roles.parameters()).device
        self.processes = processes or Processes()
        self.shares = Shares(max_tokens or DEFAULT_MAX_TOKENS, self.processes)
        self._temperature = temperature
        self._seed = seed
        self._schedule = schedule
        self._settings = settings
        self._parameters = {role: roles.parameters_of(role) for role in algorithm.trains}
        self.optimizer = make_optimizer(parameter_groups(self._parameters, settings), settings, self.device)
        note = paging_note(settings.name, self.device)
        self.notes = (note,) if note else ()
        self._pending = Tally()
        self._tasks: list[Task] = []
        self._micro_step = 0
        self._asked = Asked(roles)
        roles.train()

    @property
    def max_tokens(self) -> int:
        """Tokens that a micro-batch may hold now."""
        return self.shares.max_tokens

    # -- roles that only answer -----------------------------------------------------------------------------------

    def with_lower_states(self, batch: B) -> B:
        """The batch with its states behind the frozen lower layers, if there are such; for roles without dropout."""
        if not (parts := lower_parts(self.roles, self._parameters)):
            return batch
        self._asked.add_lower(batch, parts)
        own = list(self._answers(numbered(batch), tuple(parts.values()), partial(piece_states, self.roles, parts)))
        self.shares.agree()
        return batch.with_columns(lower_states=row_states(parts, batch, own, self.processes))

    def consult(
        self, consults: tuple[Role, ...], batch: RolloutBatch, *, temperature: float | None = None
    ) -> RolloutBatch:
        """Fill ``ref_logprobs`` and ``values`` (and ``logprobs``, from the actor) without gradients.

        Args:
            consults: roles to ask; those with equal costumes answer from one forward.
            batch: the sampler's columns filled.
            temperature: of the log-probabilities; None is the engine's.
        """
        for group in self.roles.together(consults):
            self._asked.add(batch, group)
            names = {Role.ACTOR: "logprobs", Role.REFERENCE: "ref_logprobs", Role.CRITIC: "values"}
            columns: dict[str, list[Tensor]] = {names[role]: [] for role in group if role in names}
            pieces = []
            ask = partial(self.roles, roles=group, temperature=temperature or self._temperature)
            for piece, out in self._answers(numbered(batch), group, ask):
                answers = {"logprobs": out.logprobs, "ref_logprobs": out.logprobs, "values": out.values}
                pieces.append(piece)
                for name, parts in columns.items():
                    parts.append(widened(answers[name], batch))
            batch = batch.with_columns(**{name: self._whole(parts, pieces, batch) for name, parts in columns.items()})
        self.shares.agree()
        return batch

    def scores(self, batch: Batch, member: int = 0) -> Tensor:
        """[B] the reward role's score of each sequence, or that of a member of its ensemble, without gradients."""

        def score(piece: Batch) -> Tensor:
            if member:
                return self.roles.member_scores(piece, member)
            scores: Tensor = self.roles(piece, (Role.REWARD,)).scores
            return scores

        self._asked.add(batch, (Role.REWARD,))
        answers = list(self._answers(numbered(batch), (Role.REWARD,), score))
        self.shares.agree()
        return self._whole([found for _, found in answers], [piece for piece, _ in answers], batch, width=())

    def sequence_logps(self, batch: Batch) -> Tensor:
        """[B] log-probability of each row's trained tokens under the actor as it is, without gradients or dropout."""
        self._asked.add(batch, (Role.ACTOR,))
        batch = batch.to(self.device)
        ask = partial(self.roles, roles=(Role.ACTOR,), temperature=self._temperature)
        self.roles.eval()
        try:
            answers = list(self._answers(numbered(batch), (Role.ACTOR,), lambda piece: ask(piece).logprobs.sum(dim=1)))
        finally:
            self.roles.train()
        self.shares.agree()
        return self._whole([found for _, found in answers], [piece for piece, _ in answers], batch, width=())

    def gathered(self, batch: RolloutBatch) -> RolloutBatch:
        """The rows of all processes, which ``credit`` takes its statistics over: each holds them all already."""
        return batch

    def weights(self, role: Role) -> AbstractContextManager[PreTrainedModel]:
        """A context in which the backbone carries the role's merged weights, for a sampler in this process."""
        return self.roles.sampling_as(role)

    # -- training --------------------------------------------------------------------------------------------------

    def accumulate(self, algorithm: Algorithm, minibatch: Batch, *, temperature: float | None = None) -> None:
        """Forward, loss and backward of one optimizer step's rows; gradients add up until ``optimizer_step``.

        Args:
            algorithm: names the roles and their losses. minibatch: its rows.
            temperature: of the log-probabilities; None is the engine's.
        """
        began = time.perf_counter()
        self._asked.add(minibatch, *self.roles.together(algorithm.trains), trains=True)
        task = Task(algorithm, minibatch.to(self.device), temperature or self._temperature, self.max_tokens)
        self._tasks.append(task)
        todo = [task]
        while (failed := self._first_failure(todo)) is not None:
            of, rows, why = failed
            self.shares.lower(rows, why, together=of.algorithm.rows_together, padded=self._padded(of.algorithm.trains))
            self.optimizer.zero_grad(set_to_none=True)
            self._pending, self._micro_step, todo = Tally(), 0, self._tasks
        self.trained_tokens += int(task.minibatch.attention_mask.sum())
        self.computed_seconds += time.perf_counter() - began

    def _first_failure(self, tasks: Sequence[Task]) -> tuple[Task, Batch, OutOfMemory] | None:
        """Add the gradients of these tasks; the micro-batch that memory ran out for, None if it sufficed."""
        for task in tasks:
            algorithm, minibatch = task.algorithm, task.minibatch
            pieces, count = self.shares.own(
                minibatch,
                together=algorithm.rows_together,
                padded=self._padded(algorithm.trains),
                max_tokens=task.max_tokens,
                first=self._micro_step,
            )
            counts = unit_counts(minibatch)
            for piece in pieces:
                failure = attempted(partial(self._backpropagate, task, piece, counts))
                if failure is not None:
                    return task, piece.rows, failure
            self._micro_step += count
        return None

    def _backpropagate(self, task: Task, piece: Piece[Batch], counts: dict[str, float]) -> None:
        """Forward, loss and backward of one micro-batch."""
        algorithm, rows = task.algorithm, piece.rows
        dropout = (self._seed * 1_000_003 + self.step) * 1009 + piece.number + 15_485_863 * piece.part
        torch.manual_seed(dropout)
        for group in self.roles.together(algorithm.trains):
            with self.roles.wearing(group[0]):
                out = self.roles(rows, group, temperature=task.temperature)
                total = torch.zeros((), device=rows.input_ids.device)
                for role in group:
                    term = algorithm.loss(role, out, rows)
                    total = total + self._reduced(term, counts, rows, _loss_name(algorithm, role), self._pending)
                total.backward()

    def pending(self) -> dict[str, float]:
        """The metrics of what was accumulated since the last optimizer step."""
        return self._of_all(self._pending).means()

    def optimizer_step(self) -> dict[str, float]:
        """Clip, step and clear the gradients.

        Returns:
            The minibatch's metrics with ``loss``, ``grad_norm`` and ``learning_rate`` (as used).

        Raises:
            NonFiniteError: on a non-finite loss or gradient; weights are left as they were.
        """
        began = time.perf_counter()
        stats = self.pending()
        stats["loss"] = sum(value for name, value in stats.items() if name.startswith("loss/"))
        self.processes.sum_gradients(self._named().values())
        drop_early_gradients(self._parameters, self._settings, self.step)
        stats["grad_norm"] = float(clip_gradients(self._parameters, self._settings))
        for name in ("loss", "grad_norm"):
            if not math.isfinite(stats[name]):
                raise NonFiniteError(
                    f"{name} became {stats[name]} at step {self.step + 1}; the weights were not changed by it. "
                    "Lower learning_rate, check the data for empty or very long rows, or train in float32."
                )
        factor = self._schedule(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        stats["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._micro_step = 0
        self._pending = Tally()
        self._tasks = []
        self.shares.agree()
        self.computed_seconds += time.perf_counter() - began
        return {name: value for name, value in stats.items() if not name.startswith("loss/")}

    def evaluate(self, algorithm: Algorithm, batches: Iterable[Batch]) -> dict[str, float]:
        """Mean loss and metrics over held-out batches, without gradients or dropout."""
        tally, loads = Tally(), [0] * self.processes.size

        def measure(piece: Batch) -> Tally:
            found, ones = Tally(), dict.fromkeys(unit_counts(piece), 1.0)
            for group in self.roles.together(algorithm.trains):
                out = self.roles(piece, group, temperature=self._temperature)
                for role in group:
                    term = algorithm.loss(role, out, piece)
                    self._reduced(term, ones, piece, _loss_name(algorithm, role), found)
            return found

        self.roles.eval()
        try:
            for batch in batches:
                whole, together = batch.to(self.device), algorithm.rows_together
                for _, found in self._answers(whole, algorithm.trains, measure, together=together, loads=loads):
                    tally.join(found)
        finally:
            self.roles.train()
        self.shares.agree()
        means = self._of_all(tally).means()
        means["loss"] = sum(value for name, value in means.items() if name.startswith("loss/"))
        return {name: value for name, value in means.items() if not name.startswith("loss/")}

    @staticmethod
    def _reduced(term: LossTerm, counts: dict[str, float], piece: Batch, name: str, tally: Tally) -> Tensor:
        """The term's share of the minibatch loss; its sums go into the tally, the loss's under ``name``."""
        weighted = term.loss if term.weights is None else term.loss * term.weights
        here = unit_counts(piece)[term.unit]
        tally.add(name, weighted.sum(), here)
        for metric, values in term.metrics.items():
            absent = float(values.isnan().sum()) if term.unit in ("sequence", "pair") else 0.0
            tally.add(metric, values.nansum() if absent else values.sum(), here - absent)
        return weighted.sum() / counts[term.unit]

    # -- the share of this process -----------------------------------------------------------------------------------

    def _answers(
        self,
        batch: B,
        roles: tuple[Role, ...],
        compute: Callable[[B], T],
        *,
        together: int = 1,
        loads: list[int] | None = None,
    ) -> Iterator[tuple[B, T]]:
        """This process's micro-batches of a batch with what ``compute`` finds for each, without gradients."""
        padded = self._padded(roles)
        pieces, _ = self.shares.own(batch, together=together, padded=padded, loads=loads)
        yield from self.shares.answers(pieces, torch.no_grad()(compute), together=together, padded=padded)

    def _padded(self, roles: tuple[Role, ...]) -> bool:
        """Whether one of these roles lives on a model that computes padding too."""
        return not all(is_packed(self.roles.backbone_of(role)) for role in roles)

    def _whole(
        self, parts: Sequence[Tensor], pieces: Sequence[Numbered], batch: Batch, width: tuple[int, ...] | None = None
    ) -> Tensor:
        """[B, T] (or [B, *width]) from what each process found for its rows."""
        shape = (len(batch), *(batch.input_ids.shape[1:] if width is None else width))
        dtype = parts[0].dtype if parts and self.processes.size == 1 else torch.float32
        column = torch.zeros(shape, dtype=dtype, device=batch.input_ids.device)
        for part, piece in zip(parts, pieces, strict=True):
            column[piece.rows_of] = part.to(dtype)
        return self.processes.sum(column)

    def _of_all(self, tally: Tally) -> Tally:
        return tally if self.processes.size == 1 else Tally.of(self.processes.gather(tally.plain()))

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write all that resuming needs: trained weights, optimizer, counters, algorithm state."""
        self.save_weights(folder)
        stored.write(folder, self.optimizer, self._named(), self._counters())

    def save_weights(self, folder: Path) -> None:
        """Write the trained weights alone, which ``load_weights`` takes."""
        stored.write_weights(folder, self._named())

    def resume(self, folder: Path) -> None:
        """Continue exactly where ``save`` left off.

        Raises:
            UserError: if the checkpoint cannot be read, or was written by another program or configuration.
        """
        counters = stored.read(folder, self.optimizer, self._named())
        try:
            self.step = int(counters["step"])
            self.iteration = int(counters["iteration"])
            self.shares.reset(int(counters["max_tokens"]))
            self.trained_tokens = int(counters["trained_tokens"])
            self.computed_seconds = float(counters["computed_seconds"])
            self.algorithm_state = AlgorithmState(**counters["algorithm_state"])
        except (KeyError, TypeError, ValueError) as error:
            raise stored.unreadable(folder / stored.COUNTERS, error) from error

    def load_weights(self, folder: Path) -> None:
        """Take the trained weights of a checkpoint and nothing else.

        Raises:
            UserError: as ``resume``.
        """
        stored.read_weights(folder, self._named())

    def _named(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for owned in self._parameters.values() for name, p in owned.items()}

    def _counters(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "iteration": self.iteration,
            "max_tokens": self.max_tokens,
            "trained_tokens": self.trained_tokens,
            "computed_seconds": self.computed_seconds,
            "algorithm_state": vars(self.algorithm_state),
        }


def _loss_name(algorithm: Algorithm, role: Role) -> str:
    return f"loss/{type(algorithm).__name__}/{role}"
