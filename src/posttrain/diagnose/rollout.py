"""A real, short iteration of an online run: sample, score, compare with the reference, update."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from posttrain.config import RunConfig
from posttrain.data.batches import collate
from posttrain.data.encode import EncodedPrompt
from posttrain.data.formats import Message
from posttrain.data.template import EncodedRow, Template, pad_token_id
from posttrain.diagnose.findings import Finding, share
from posttrain.diagnose.folder import megabytes
from posttrain.diagnose.trial import judged
from posttrain.train import online
from posttrain.train.failures import explained
from posttrain.train.machine import peak_memory_bytes
from posttrain.train.metrics import duration
from posttrain.train.pace import Pace
from posttrain.train.parts import Parts, make_algorithm, optimizer_rows
from posttrain.train.progress import Progress
from posttrain.train.scoring import scored
from posttrain.train.stages import OnlineStage
from posttrain.types import Role, RolloutBatch

_COMPLETIONS = 4
_NEW_TOKENS = 32
_JUDGED = 16


@dataclass
class Iteration:
    """One iteration as far as it has come.

    Attributes:
        parts: of the real run. small: of the short one. watch: seconds of its phases.
        stage, batch: once they are there.
    """

    parts: Parts
    small: Parts
    watch: Pace = field(default_factory=Pace)
    stage: OnlineStage | None = None
    batch: RolloutBatch | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, parts: Parts) -> Iteration:
        """An iteration of a few completions on the longest prompt and others."""
        config = parts.config
        group = make_algorithm(config).group_size  # type: ignore[attr-defined]
        rows = group * max(1, -(-_COMPLETIONS // group))
        train = replace(
            config.train,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=1,
            disable_shuffling=True,
            disable_tqdm=True,
        )
        generation = replace(
            config.generation,
            max_new_tokens=min(_NEW_TOKENS, config.generation.max_new_tokens),
            min_new_tokens=min(_NEW_TOKENS, config.generation.min_new_tokens),
        )
        loop = replace(config.online, ppo_buffer_size=1, ppo_epochs=1, dynamic_sampling=False)
        small = replace(config, train=train, generation=generation, online=loop)
        prompts = list(parts.splits.train)
        longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
        splits = replace(parts.splits, train=[prompts.pop(longest), *prompts])
        return cls(parts=parts, small=replace(parts, config=small, splits=splits))

    def sources(self) -> Iterator[Finding]:
        """The sources of reward put together; columns that they read are looked for in every row.

        Raises:
            UserError: one of them cannot be had.
        """
        self.stage = OnlineStage(self.small, Progress(1, "doctor", True, stream=io.StringIO()))
        name = type(self.stage.run.reward).__name__
        yield Finding(level="ok", check="reward", message=f"every row has what it reads ({name})")

    def sample(self) -> Iterator[Finding]:
        """Draw completions."""
        run = self._run()
        with explained(self.parts.directory):
            self.batch = online.experience(run, 0, self.watch, _silent)
        self.seconds["generate"] = self.watch.seconds["generate"]
        batch = self.batch
        tokens, count = int(batch.loss_mask.sum()), len(batch)
        ended = int(batch.ended.sum())
        limit = run.sampling.max_new_tokens
        first = batch.completions[0][:60]
        message = (
            f"{count} completions of at most {limit} tokens: {tokens / self.seconds['generate']:.0f} tokens a second, "
            f"{share(ended, count)} ended by themselves; the first: {first!r}"
        )
        yield Finding(level="ok", check="rollout", message=message, details={"ended": ended, "tokens": tokens})

    def score(self) -> Iterator[Finding]:
        """Let the reward look at the completions.

        Raises:
            RunError: it does not answer, or with something else than numbers.
        """
        if self.batch is None:
            return
        batch = self.batch = scored(self._run().reward, self.batch)
        rewards = batch.rewards
        assert rewards is not None
        values = [float(value) for value in rewards]
        distinct = len(set(batch.completions))
        message = f"{len(values)} rewards from {min(values):.3g} to {max(values):.3g}"
        if not all(map(torch.isfinite, rewards)):
            fix = "Mend the reward; a run stops at it"
            yield Finding(level="error", check="reward", message=f"{message}: not all are finite", fix=fix)
        elif len(set(values)) == 1 and distinct > 1:
            fix = "Right where it is rarely earned; else every completion looks alike to it and nothing can be learned"
            text = f"{message}: the same for {distinct} different completions"
            yield Finding(level="warning", check="reward", message=text, fix=fix)
        else:
            yield Finding(level="ok", check="reward", message=message)

    def update(self) -> Iterator[Finding]:
        """Reference, critic and one update, with the gates that a run begins with.

        Raises:
            RunError: a gate does not hold, a loss is no number, or memory ran out.
        """
        if self.batch is None:
            return
        run, before = self._run(), len(self.batch)
        tokens = int(self.batch.attention_mask.sum())
        with explained(self.parts.directory):
            _, stats = online.learn(run, 0, self.batch, self.watch, _silent)
        self.seconds |= {name: stats[f"seconds_{name}"] for name in ("score", "train")}
        peak = peak_memory_bytes()
        message = (
            f"{before} completions, {tokens} tokens: score {self.seconds['score']:.2f} s, update "
            f"{self.seconds['train']:.2f} s, loss {stats['loss']:.3f}, gradient norm {stats['grad_norm']:.3g}, peak "
            f"memory {megabytes(peak)}; before it, policy and reference agree"
        )
        details = {"loss": stats["loss"], "grad_norm": stats["grad_norm"], "peak_memory_bytes": peak}
        yield Finding(level="ok", check="step", message=message, details=details)
        yield self._duration(tokens)

    def _duration(self, tokens: int) -> Finding:
        config, batch = self.parts.config, self.batch
        assert batch is not None
        rows = optimizer_rows(config) * config.online.ppo_buffer_size
        prompt = sum(map(len, self.parts.splits.train)) / len(self.parts.splits.train)
        limit = config.generation.max_new_tokens
        sampled = self.seconds["generate"] / int(batch.loss_mask.sum()) * rows * limit
        each = (self.seconds["score"] + self.seconds["train"] * config.online.ppo_epochs) / tokens
        per_iteration = sampled + each * rows * (prompt + limit)
        total = per_iteration * self.parts.plan.total
        message = (
            f"at most about {duration(total)} for {self.parts.plan.total} iterations of {per_iteration:.1f} s, if each "
            f"completion has max_new_tokens ({limit}); evaluation aside"
        )
        return Finding(level="ok", check="time", message=message, details={"seconds": total})

    def _run(self) -> online.OnlineRun:
        assert self.stage is not None
        return self.stage.run


def scores(parts: Parts) -> Iterator[Finding]:
    """Whether the reward model tells answers of the data apart: its pairs, else own and other rows' answers."""
    if Role.REWARD not in parts.assembly.roles or parts.splits.template is None:
        return
    pairs = answers(parts.splits.train, parts.splits.template, parts.config)
    if not pairs:
        return
    rows = [row for pair in pairs for row in pair]
    batch = collate(rows, pad_token_id(parts.tokenizer)).to(parts.engine.device)
    found = parts.engine.scores(batch).float().cpu()
    yield judged(found[0::2], found[1::2], trained=True)


def answers(
    prompts: Sequence[EncodedPrompt], template: Template, config: RunConfig
) -> list[tuple[EncodedRow, EncodedRow]]:
    """(better, worse): ``chosen`` and ``rejected`` of a row; or its answer, and the answer of another row."""
    found = []
    own = [(prompt, prompt.extras.get("reference")) for prompt in prompts[: _JUDGED * 4]]
    for i, (prompt, reference) in enumerate(own):
        better, worse = _text(prompt.extras.get("chosen")), _text(prompt.extras.get("rejected"))
        if better is None or worse is None:
            other = own[(i + 1) % len(own)][1]
            better, worse = _text(reference), _text(other)
        if not better or not worse or better == worse:
            continue
        sides = (_row(template, prompt.messages, better), _row(template, prompt.messages, worse))
        if max(map(len, sides)) <= config.data.cutoff_len + config.generation.max_new_tokens:
            found.append(sides)
        if len(found) == _JUDGED:
            break
    return found


def _row(template: Template, messages: Sequence[Message], answer: str) -> EncodedRow:
    return template.encode_chat([*messages, Message("assistant", answer)])


def _text(value: Any) -> str | None:
    """The text of an answer column: text, or a message in either form."""
    if isinstance(value, list) and value:
        value = value[-1]
    if isinstance(value, dict):
        value = value.get("content", value.get("value"))
    return value if isinstance(value, str) else None


def _silent(name: str, done: int, total: int) -> None:
    """Nobody watches."""
