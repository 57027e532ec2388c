"""What happens around optimizer steps: the log, evaluation, checkpoints, early stopping, and being told to stop."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType

from posttrain.config import TrainConfig
from posttrain.config.defaults import BETTER_WHEN_LOWER
from posttrain.engine import DamagedError, Processes
from posttrain.errors import RunError
from posttrain.train.alarms import Alarm, Alarms
from posttrain.train.checkpoints import NAME, checkpoint_step
from posttrain.train.metrics import Meter, MetricsLog
from posttrain.train.pace import Pace
from posttrain.train.progress import Progress
from posttrain.train.run_directory import RunDirectory

STATE = "monitor.json"


@dataclass
class Best:
    """The best evaluation so far.

    Attributes:
        value: of the metric. step: when. waited: evaluations since without improvement.
    """

    value: float | None = None
    step: int | None = None
    waited: int = 0


@dataclass
class Totals:
    """Sums over a run, its interrupted attempts included as far as their last checkpoint.

    Attributes:
        steps: done. loss: of all of them. seconds: from the start of an attempt on, evaluation and saving included.
    """

    steps: int = 0
    loss: float = 0.0
    seconds: float = 0.0


class Monitor:
    """Called once after every step; decides what is due and does it in the order log, evaluate, save.

    Attributes:
        best: the best evaluation so far; one that raises an alarm which ends the run is no candidate.
        evaluations: the latest ones. stopped_by: names of the alarms that have ended the run.
        pace: time and work of the phases of a step; the loop opens them.
    """

    def __init__(
        self,
        config: TrainConfig,
        directory: RunDirectory,
        log: MetricsLog,
        progress: Progress,
        *,
        steps_per_epoch: int,
        save: Callable[[Path], None],
        evaluate: Callable[[], Mapping[str, float]] | None,
        default_metric: str = "eval_loss",
        alarms: Alarms | None = None,
        processes: Processes | None = None,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Watch one run.

        Args:
            config: intervals and policies.
            directory: where checkpoints go.
            log, progress: where numbers go.
            steps_per_epoch: for strategies by epoch.
            save: fills a checkpoint folder.
            evaluate: measures the held-out rows (names start with ``eval_``); None when there are none.
            default_metric: what "best" means where ``metric_for_best_model`` is not set.
            alarms: told of every step and evaluation; None where nothing is watched.
            processes: that share the run and stop together.
            pace: time and work of the phases, whose sums are kept in checkpoints.
            clock: seconds that only grow.
        """
        self._processes = processes or Processes()
        self.pace = pace or Pace(processes=self._processes)
        self._config = config
        self._directory = directory
        self._log = log
        self._progress = progress
        self._steps_per_epoch = steps_per_epoch
        self._save = save
        self._evaluate = evaluate
        self._metric = metric_name(config.metric_for_best_model) if config.metric_for_best_model else default_metric
        rises = config.greater_is_better
        self._rises = not self._metric.endswith(BETTER_WHEN_LOWER) if rises is None else rises
        self._alarms, self._policy = alarms, alarms.config.on_alarm if alarms else "log"
        self._keeps_best = config.load_best_model_at_end or self._policy == "rollback"
        self._meter = Meter()
        self._clock, self._began = clock, clock()
        self._earlier = Totals()
        self._step: int | None = None
        self._saved: int | None = None
        self._evaluated: int | None = None
        self._interrupted = False
        self.best = Best()
        self.stopped_by: list[str] = []
        self.evaluations: dict[str, float] = {}

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self._log.total_steps

    @property
    def totals(self) -> Totals:
        """Up to now."""
        return replace(self._earlier, seconds=self._earlier.seconds + self._clock() - self._began)

    @property
    def out_of_patience(self) -> bool:
        """Whether ``early_stopping_steps`` evaluations in a row were no better; a run that resumes so has ended."""
        patience = self._config.early_stopping_steps
        return patience is not None and self.best.waited >= patience

    @property
    def has_ended(self) -> bool:
        """Whether no further step is to be taken: the run is out of patience, or an alarm has ended it."""
        return self.out_of_patience or bool(self.stopped_by)

    @property
    def ends_with(self) -> int | None:
        """Step of the checkpoint that the run ends with instead of its last weights; None where it keeps those."""
        return self.best.step if self._config.load_best_model_at_end or self.rolled_back_to is not None else None

    @property
    def rolled_back_to(self) -> int | None:
        """Step of the best checkpoint where an alarm has sent the run back to it."""
        return self.best.step if self.stopped_by and self._policy == "rollback" else None

    def after_step(self, step: int, stats: Mapping[str, float]) -> bool:
        """Log, evaluate and save as due after ``step``.

        Returns:
            True when the run should stop early.

        Raises:
            KeyboardInterrupt: after a checkpoint, on Ctrl-C or SIGTERM.
            RunError: on a non-finite loss; as ``end_if_stopped``.
        """
        self._log.check(step, stats)
        self._step = step
        self._earlier.steps += 1
        self._earlier.loss += stats.get("loss", 0.0)
        self._meter.add(stats)
        shown = ("loss", "reward_mean", "kl", "tokens_per_second", "x_of_limit")
        self._progress.update(1, **{name: stats[name] for name in shown if name in stats})
        last = step == self.total
        if self._logs(step, last):
            self._log.log(step, self._meter.take(), step / self._steps_per_epoch)
        if self._alarms is not None:
            self._raise(step, self._alarms.after_step(step, stats))
        every = self._config.eval_steps or self._config.logging_steps
        if not self.stopped_by and self._due(step, self._config.eval_strategy, every) and self._waited_for(step):
            self.evaluate(step)
            if self._keeps_best and self.best.step == step:
                self.save(step)
        stop = self.has_ended
        saves = self._due(step, self._config.save_strategy, self._config.save_steps) or stop
        interrupted = self._processes.any(self._interrupted)
        if saves or interrupted or (last and self._config.save_strategy != "no"):
            self.save(step)
        if interrupted or (self._interrupted and self._processes.size == 1):
            raise KeyboardInterrupt
        self.end_if_stopped(step)
        return stop

    def end_if_stopped(self, step: int) -> None:
        """Nothing, unless an alarm has stopped the run and there is no best checkpoint to end with instead.

        Raises:
            RunError: it has; after a checkpoint.
        """
        if not self.stopped_by or self.rolled_back_to is not None:
            return
        self.save(step)
        names = ", ".join(self.stopped_by)
        why = "" if self._policy == "stop" else ", with no evaluation before it whose checkpoint to go back to"
        changes = " and ".join(f"another alarm_{name} (null turns it off)" for name in self.stopped_by)
        raise RunError(
            f"stopped by alarm {names} at step {step} of {self.total}{why}. The same run goes on from "
            f"checkpoint-{step} with on_alarm: log, or {changes}; to try other settings, continue from an earlier "
            "checkpoint in a new output_dir"
        )

    def evaluate(self, step: int) -> dict[str, float]:
        """Measure the held-out rows now, log it, and remember whether it is the best."""
        if self._evaluate is None:
            return {}
        if self._evaluated == step:
            return self.evaluations
        self._progress.phase("evaluate")
        # clocks differ from process to process; what is decided from evaluations must not
        self.evaluations, self._evaluated = dict(self._processes.from_first(dict(self._evaluate()))), step
        self._log.log(step, self.evaluations, step / self._steps_per_epoch)
        if self._alarms is not None:
            self._raise(step, self._alarms.after_evaluation(step, self.evaluations))
        value = self.evaluations.get(self._metric)
        if value is not None and step > 0 and not self.stopped_by:
            better = self.best.value is None or (value > self.best.value if self._rises else value < self.best.value)
            self.best = Best(value, step) if better else Best(self.best.value, self.best.step, self.best.waited + 1)
        return self.evaluations

    def save(self, step: int) -> None:
        """Write ``checkpoint-{step}`` unless it was just written."""
        if self._saved == step:
            return
        self._progress.phase("save")

        def write(folder: Path) -> None:
            self._save(folder)
            state = {
                "best": asdict(self.best),
                "meter": self._meter.state(),
                "totals": asdict(self.totals),
                "work": self.pace.state(),
                "evaluated": self._evaluated,
                "evaluations": self.evaluations,
            }
            if self._alarms is not None:
                state["alarms"] = self._alarms.state()
            (folder / STATE).write_text(json.dumps(state), encoding="utf-8")

        self._directory.save_checkpoint(step, write, total_limit=self._config.save_total_limit, keep=self._kept)
        self._saved = step

    def resume(self, folder: Path, step: int) -> None:
        """Take up evaluations, the averages under way and the sums over the run; cut off what was logged later.

        Args:
            folder: a checkpoint. step: that it was written after.

        Raises:
            DamagedError: if they cannot be read.
        """
        try:
            state = json.loads((folder / STATE).read_text(encoding="utf-8"))
            self.best = Best(**state["best"])
            self._meter.restore(state["meter"])
            self._earlier = Totals(**state.get("totals", {}))
            self.pace.restore(state.get("work", {}))
            self._evaluated, self.evaluations = state.get("evaluated"), dict(state.get("evaluations", {}))
            if self._alarms is not None and "alarms" in state:
                self._alarms.restore(state["alarms"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedError(f"{folder / STATE} cannot be read as part of a checkpoint ({error}).") from error
        if folder.parent.resolve() == self._directory.path.resolve() and NAME.fullmatch(folder.name):
            self._saved = checkpoint_step(folder)
            if folder == self._directory.latest_checkpoint():  # the run may have been cut off before it came to this
                self._directory.prune(step, self._config.save_total_limit, self._kept)
        if self._alarms is not None and self._policy != "log":
            self.stopped_by = self._alarms.standing()
        if self._keeps_best and self.best.step is not None:
            best = self._directory.path / f"checkpoint-{self.best.step}"
            if not best.is_dir():
                self._progress.note(f"The best checkpoint so far, {best}, is not there: the best is looked for anew.")
                self.best = Best(waited=self.best.waited)
        ends_here = step >= self.total or self.has_ended
        self._directory.truncate_log(step, evaluated=self._evaluated == step or not ends_here)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let the first Ctrl-C or SIGTERM finish the step and write a checkpoint; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def request_stop(signum: int, frame: FrameType | None) -> None:
            if self._interrupted or self._processes.lost():
                raise KeyboardInterrupt
            self._interrupted = True
            self._progress.note("Stopping after this step, with a checkpoint. Press Ctrl-C again to stop at once.")

        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, request_stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._processes.any(self._interrupted):  # after the last step had looked
            if self._step is not None:
                self.save(self._step)
            raise KeyboardInterrupt

    @property
    def _kept(self) -> int | None:
        """Step of the checkpoint that stays whatever ``save_total_limit`` is."""
        return self.best.step if self._keeps_best or self._config.save_total_limit else None

    def _raise(self, step: int, alarms: list[Alarm]) -> None:
        """Say and log alarms; unless that is all, the run ends here."""
        # as with evaluations: all processes must come to the same end
        raised = [Alarm(**found) for found in self._processes.from_first([asdict(alarm) for alarm in alarms])]
        if not raised:
            return
        goes_on = not self.stopped_by
        if self._policy != "log":
            self.stopped_by += [alarm.name for alarm in raised if alarm.name not in self.stopped_by]
        more = {} if self.rolled_back_to is None else {"rolled_back_to": self.rolled_back_to}
        for alarm in raised:
            self._progress.note(f"alarm {alarm.name} at step {step}: {alarm.sentence}")
            self._log.alarm(alarm, step / self._steps_per_epoch, **more)
        if more and goes_on:
            best = f"{self._metric} {self.best.value:.4g}"
            self._progress.note(f"Going back to checkpoint-{self.best.step}, the best before ({best}).")

    def _logs(self, step: int, last: bool) -> bool:
        strategy = self._config.logging_strategy
        if strategy == "no":
            return False
        first = step == 1 and self._config.logging_first_step
        return last or first or self._due(step, strategy, self._config.logging_steps)

    def _waited_for(self, step: int) -> bool:
        """Whether ``eval_delay`` is over."""
        passed = step / self._steps_per_epoch if self._config.eval_strategy == "epoch" else step
        return passed >= self._config.eval_delay

    def _due(self, step: int, strategy: str, every: int) -> bool:
        if strategy == "epoch":
            return step % self._steps_per_epoch == 0 or step == self.total
        return strategy == "steps" and step % every == 0


def metric_name(name: str) -> str:
    """``metric_for_best_model`` with its ``eval_`` in front, as users may leave it out."""
    return name if name.startswith("eval_") else f"eval_{name}"
