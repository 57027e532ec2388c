"""The one thread that owns the models: requests come in at any time, every step carries all that have slots."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from posttrain.errors import PosttrainError, is_out_of_memory
from posttrain.models.adapters import wear
from posttrain.rollout import Prompt, SlotSampler
from posttrain.rollout.decoder import Decoder
from posttrain.rollout.in_progress import Sample, Watcher
from posttrain.serve.server.jobs import Job, ScoreJob, TextJob
from posttrain.serve.server.metrics import Metrics
from posttrain.serve.server.models import Served
from posttrain.serve.server.refusals import RequestRefusedError, failed, queue_full, shutting_down

PREFILL_TOKENS = 512
"""Prompt tokens of one step: more would let those that are being answered wait longer for their next token."""

FIRST_ROOM = 256
"""Tokens of each slot that there is memory for at first."""

REST_SECONDS = 60.0
"""Idle for so long, a server gives back the memory of keys and values, and with it what lies there of conversations."""

_SCORED_AT_ONCE = 16
_LONGEST_PAUSE = 60


class Worker:
    """Runs jobs in a thread of its own: those of one voice side by side, those of several voices in turn, step by step.

    Attributes:
        served: what is asked. metrics: what has been done.
    """

    def __init__(
        self,
        served: Served,
        *,
        slots: int,
        max_queue: int,
        notify: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        """Take what is served; nothing runs before ``start``.

        Args:
            served: models that nobody else uses meanwhile.
            slots: completions of each voice that are decoded side by side.
            max_queue: jobs that may wait for a slot.
            notify: receives sentences for who runs the server.
        """
        self.served = served
        self.metrics = Metrics(self._gauges)
        self._slots, self._max_queue, self._notify = slots, max_queue, notify
        self._decoders: dict[str, Decoder] = {}  # of each voice that has been asked
        self._answering: dict[str, list[TextJob]] = {}
        self._worn: tuple[str, ...] | None = None
        self._scoring: deque[ScoreJob] = deque()
        self._wake = threading.Condition()  # guards what follows
        self._mail: deque[Callable[[], None]] = deque()
        self._jobs: dict[Job, None] = {}
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="posttrain-decoder", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Let a job wait for its turn; any thread may.

        Raises:
            RequestRefusedError: too many wait already, or the server was told to stop.
        """
        with self._wake:
            if self._is_stopping:
                raise shutting_down()
            waiting = self._num_waiting()
            if waiting >= self._max_queue:
                raise queue_full(waiting, self._pause())
            self._jobs[job] = None
            self._post(lambda: self._begin(job))

    def cancel(self, job: Job) -> None:
        """Forget a job, its slots free for the next step; any thread may, and where it is over nothing happens."""
        with self._wake:
            if job in self._jobs and not job.is_over:
                job.is_over = True
                self._post(lambda: self._drop(job))
                self.metrics.add("cancelled_total")

    def stop(self) -> None:
        """Take no more jobs, and end those there are with an error after the step that is under way."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()

    def join(self) -> None:
        """Return when the thread has ended, after ``stop``."""
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether jobs are done."""
        return self._thread.is_alive() and not self._is_stopping

    @property
    def num_jobs(self) -> int:
        """Jobs that wait or are under way."""
        return len(self._jobs)

    def _post(self, act: Callable[[], None]) -> None:
        self._mail.append(act)
        self._wake.notify()

    def _num_waiting(self) -> int:
        return sum(not job.begun for job in self._jobs)

    def _pause(self) -> int:
        """Seconds after which somebody who was refused may come again: as long as the oldest job has taken so far."""
        oldest = max((time.monotonic() - job.arrived for job in self._jobs), default=0.0)
        return max(1, min(round(oldest), _LONGEST_PAUSE))

    def _gauges(self) -> Mapping[str, float]:
        decoders = list(self._decoders.values())
        with self._wake:
            waiting = self._num_waiting()
        return {
            "queue_length": waiting,
            "live_slots": sum(decoder.num_live for decoder in decoders),
            "slots": self._slots * len(self.served.voices),
            "cache_bytes": sum(decoder.cache.num_bytes for decoder in decoders),
        }

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._mail or self._is_stopping or self._has_work()):
                    if not self._wake.wait(REST_SECONDS if self._decoders else None):
                        self._decoders.clear()
                if self._is_stopping:
                    break
                mail, self._mail = self._mail, deque()
            for act in mail:
                act()
            for name in list(self._decoders):
                self._step(name)
            if self._scoring:
                self._score(self._scoring[0])
        self._end(list(self._jobs), shutting_down())

    def _has_work(self) -> bool:
        return bool(self._scoring) or any(decoder.busy for decoder in self._decoders.values())

    def _begin(self, job: Job) -> None:
        if job.is_over:
            return
        if isinstance(job, ScoreJob):
            self._scoring.append(job)
        elif isinstance(job, TextJob):
            decoder = self._decoder(job.voice.name)
            self._answering[job.voice.name].append(job)
            for number, ids in enumerate(job.prompts):
                prompt = Prompt(input_ids=tuple(ids), index=number, samples=job.samples)
                job.groups.append(decoder.submit(prompt, job.params, self._watcher(job, number)))

    def _decoder(self, name: str) -> Decoder:
        if name not in self._decoders:
            context = self.served.context
            sampler = SlotSampler(self.served.model, num_slots=self._slots, prefill_tokens=PREFILL_TOKENS)
            self._decoders[name] = sampler.decoder(self._slots, min(context, FIRST_ROOM), context, keeps=True)
            self._answering[name] = []
        return self._decoders[name]

    def _watcher(self, job: TextJob, number: int) -> Watcher:
        """Who hears of the tokens of a job's prompt; what goes wrong there is the job's own failure."""

        def watch(sample: Sample, logits: Tensor) -> bool:
            if not job.begun:
                job.begun = True
                self.metrics.observe("first_token_seconds", time.monotonic() - job.arrived)
                self.metrics.add("prompt_tokens_total", sum(map(len, job.prompts)))
            self.metrics.add("completion_tokens_total")
            try:
                return job.take(number * job.samples + sample.sample_index, sample, logits)
            except Exception as error:
                job.end(self._excuse(error))
                with self._wake:
                    self._post(lambda: self._drop(job))
                return False

        return watch

    def _step(self, name: str) -> None:
        """One token for everything that a voice has in its slots."""
        decoder = self._decoders[name]
        if not decoder.busy:
            return
        wears, reused = self.served.voices[name].wears, decoder.counters.reused_tokens
        try:
            with torch.no_grad():
                if len(self.served.voices) > 1 and self._worn != wears:
                    wear(self.served.model, wears)
                    self._worn = wears
                decoder.step()
        except Exception as error:
            del self._decoders[name]  # what is in its slots is not to be relied on
            self._end(self._answering[name], self._excuse(error))
            return
        self.metrics.add("prompt_tokens_reused_total", decoder.counters.reused_tokens - reused)
        self._end([job for job in self._answering[name] if job.is_over])

    def _score(self, job: ScoreJob) -> None:
        """The next rows of a job, so that those who are being answered need not wait for all of them."""
        job.begun = True
        assert self.served.scorer is not None
        rows = job.rows[len(job.scores) : len(job.scores) + _SCORED_AT_ONCE]
        try:
            job.scores += self.served.scorer.row_scores(rows)
        except Exception as error:
            self._end([job], self._excuse(error))
            return
        self.metrics.add("texts_scored_total", len(rows))
        if len(job.scores) == len(job.rows):
            self._end([job])

    def _drop(self, job: Job) -> None:
        """Take a job out of the slots."""
        if isinstance(job, TextJob) and job.voice.name in self._decoders:
            for group in job.groups:
                self._decoders[job.voice.name].cancel(group)
        self._end([job])

    def _end(self, jobs: Sequence[Job], error: RequestRefusedError | None = None) -> None:
        """Jobs that are over, or are now."""
        for job in list(jobs):
            job.end(error)
            if isinstance(job, ScoreJob) and job in self._scoring:
                self._scoring.remove(job)
            elif isinstance(job, TextJob) and job in self._answering.get(job.voice.name, ()):
                self._answering[job.voice.name].remove(job)
            with self._wake:
                self._jobs.pop(job, None)

    def _excuse(self, error: Exception) -> RequestRefusedError:
        """What a client is told of an error of ours; who runs the server is told more."""
        if isinstance(error, PosttrainError):
            said = str(error)
        elif is_out_of_memory(error):
            said = "out of memory; lower max_num_seqs or max_model_len"
        else:
            said = f"{type(error).__name__}: {error}"
            if os.environ.get("POSTTRAIN_DEBUG"):
                traceback.print_exception(error)
        self._notify(f"a request failed: {said}")
        return failed(said)
