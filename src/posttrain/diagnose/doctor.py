"""`posttrain doctor`: whether a run can work, one check after the other, none of which hides the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.config import RunConfig, is_online
from posttrain.data.datasets import Splits, load_dataset
from posttrain.data.formats import Example
from posttrain.data.stream import looked_at
from posttrain.diagnose import rendering, trial
from posttrain.diagnose import rollout as short
from posttrain.diagnose.course import course
from posttrain.diagnose.findings import Finding
from posttrain.diagnose.folder import disk, output_dir
from posttrain.diagnose.installed import installed
from posttrain.diagnose.memory import memory, planned
from posttrain.diagnose.paint import Paint
from posttrain.errors import PosttrainError
from posttrain.models.fetch import resolve_model
from posttrain.models.load import first_line, load_tokenizer, read_json
from posttrain.models.trunks import reward_folder
from posttrain.train.memory import MemoryPlan
from posttrain.train.parts import Parts, make_plan
from posttrain.train.run import read_folders
from posttrain.train.schedule import StepsPlan

# Of larger data sets so many rows are encoded, evenly spread, and the longest.
SAMPLE = 2000
_LONGEST = 32
Check = Callable[[], Iterator[Finding]]


class AbsentError(Exception):
    """A check needs what an earlier one could not find."""


@dataclass
class Doctor:
    """The checks of one configuration, with what the earlier ones found for the later ones.

    Attributes:
        config: loaded with ``command="train"``. paint: for the row whose labels are shown.
        num_rows: of the training set, of which ``splits`` may hold some.
    """

    config: RunConfig
    paint: Paint = field(default_factory=lambda: Paint(colours=False))
    num_rows: int = 0
    _found: dict[str, Any] = field(default_factory=dict)

    def findings(self, *, fast: bool = False) -> Iterator[Finding]:
        """Every finding, as soon as it is known.

        Args:
            fast: without what loads a model.
        """
        online = is_online(self.config.method.stage)
        checks: list[tuple[str, Check]] = [
            ("configuration", self._configuration),
            ("versions", lambda: installed(self.config)),
            ("output_dir", lambda: output_dir(self.config, read_folders(self.config))),
            ("tokenizer", self._tokenizer),
            ("rows", self._rows),
            ("template", self._template),
            ("special tokens", self._special_tokens),
            ("labels", self._labels),
            ("learning rate", self._course),
            ("reward model", self._reward_model),
            ("memory", self._memory),
            ("disk", self._disk),
        ]
        if not fast:
            checks += [("weights", self._weights)]
            checks += self._online_checks() if online else self._offline_checks()
        waiting: list[str] = []
        said: set[str] = set()
        for name, check in checks:
            try:
                for finding in isolated(name, check):
                    if finding.level == "error" and finding.message in said:
                        waiting.append(name)
                        continue
                    said.add(finding.message)
                    yield finding
            except AbsentError:
                waiting.append(name)
        if waiting:
            message = f"not looked at, for want of what failed above: {', '.join(dict.fromkeys(waiting))}"
            yield Finding(level="warning", check="doctor", message=message, fix="Mend that and ask again")

    def _offline_checks(self) -> list[tuple[str, Check]]:
        checks: list[tuple[str, Check]] = [("step", lambda: trial.longest_batch(self._get("parts")))]
        if self.config.method.stage == "rm":
            checks.insert(0, ("scores", lambda: trial.scores(self._get("parts"))))
        return checks

    def _online_checks(self) -> list[tuple[str, Check]]:
        return [
            ("scores", lambda: short.scores(self._get("parts"))),
            ("reward", self._sources),
            ("rollout", lambda: self._iteration().sample()),
            ("reward", lambda: self._drawn().score()),
            ("step", lambda: self._drawn().update()),
        ]

    # -- without the model -----------------------------------------------------------------------------------------

    def _configuration(self) -> Iterator[Finding]:
        config = self.config
        for sentence in config.warnings:
            yield Finding(level="warning", check="configuration", message=sentence)
        model, method = config.model, config.method
        message = f"stage {method.stage}, finetuning_type {method.finetuning_type}, model {model.model_name_or_path}"
        yield Finding(level="ok", check="configuration", message=message)

    def _tokenizer(self) -> Iterator[Finding]:
        model = self.config.model
        folder = Path(resolve_model(model.model_name_or_path, revision=model.model_revision, cache_dir=model.cache_dir))
        self._found["folder"] = folder
        self._found["tokenizer"] = load_tokenizer(
            folder, use_fast=model.use_fast_tokenizer, trust_remote_code=model.trust_remote_code
        )
        config = read_json(folder / "config.json")
        kind = ", ".join(config.get("architectures") or [str(config.get("model_type"))])
        limit = (config.get("text_config") or config).get("max_position_embeddings", config.get("n_positions"))
        message = f"{kind} in {folder}, {len(self._found['tokenizer'])} tokens, positions up to {limit}"
        longest = self.config.data.cutoff_len
        if is_online(self.config.method.stage):
            longest += self.config.generation.max_new_tokens
        if isinstance(limit, int) and longest > limit:
            fix = f"cutoff_len (with max_new_tokens in stages that sample) of at most {limit}, if rows are that long"
            text = f"{message}; rows may have {longest}"
            yield Finding(level="warning", check="model", message=text, fix=fix)
        else:
            yield Finding(level="ok", check="model", message=message)

    def _rows(self) -> Iterator[Finding]:
        config = self.config
        counts: list[int] = []

        def some(examples: list[Example]) -> list[Example]:
            counts.append(len(examples))
            return sample(examples)

        splits = load_dataset(
            looked_at(config.data),
            self._get("tokenizer"),
            config.method.stage,
            seed=config.train.seed,
            margin_column=config.reward_model.margin_column,
            choose=None if config.data.tokenized_path else some,  # encoded already, and so read in no time
        )
        looked = splits.report.kept + sum(splits.report.dropped.values())
        self._found["splits"] = splits
        # of a sample, in proportion; documents become more or fewer rows than they are
        given = counts[0] if counts else len(splits.train)
        self.num_rows = round(len(splits.train) * max(1.0, given / max(looked, 1)))
        yield from rendering.account(splits, given, config)
        for note in splits.notes:
            yield Finding(level="ok", check="rows", message=note)

    def _template(self) -> Iterator[Finding]:
        splits: Splits = self._get("splits")
        if splits.template is not None:
            yield from rendering.template(splits.template, splits, self.config)
        if (finding := rendering.end_of_turn(splits, self.config)) is not None:
            yield finding

    def _special_tokens(self) -> Iterator[Finding]:
        splits: Splits = self._get("splits")
        yield from rendering.special_tokens(
            self._get("tokenizer"), splits.template, self._get("folder"), splits.train[:SAMPLE]
        )

    def _labels(self) -> Iterator[Finding]:
        yield from rendering.labels(self._get("splits"), self.config, self._get("tokenizer"), self.paint)

    def _course(self) -> Iterator[Finding]:
        self._get("splits")
        self._found["plan"] = make_plan(self.config, self.num_rows)
        yield from course(self.config, self._found["plan"])

    def _reward_model(self) -> Iterator[Finding]:
        if not is_online(self.config.method.stage):
            return
        reward = reward_folder(self.config)
        if reward is not None:
            message = f"{reward.folder}: {reward.layout}, head {reward.found.module} in {reward.found.path.name}"
            yield Finding(level="ok", check="reward model", message=message)

    def _memory(self) -> Iterator[Finding]:
        rows = self._found["splits"].train if "splits" in self._found else []
        plan: MemoryPlan = planned(self.config, rows)
        self._found["memory"] = plan
        yield from memory(self.config, plan, rows)

    def _disk(self) -> Iterator[Finding]:
        plan: StepsPlan = self._get("plan")
        memory_plan: MemoryPlan = self._get("memory")
        trained = sum(model.num_trained for model in memory_plan.models)
        whole = self.config.method.finetuning_type != "lora"
        model = memory_plan.models[0].weights if whole else 4 * trained
        yield disk(self.config, plan, memory_plan.checkpoint, model)

    # -- with it ---------------------------------------------------------------------------------------------------

    def _weights(self) -> Iterator[Finding]:
        began = time.perf_counter()
        parts = trial.loaded(self.config, self._get("tokenizer"), self._get("splits"), self._get("plan"))
        self._found["parts"] = parts
        yield from trial.weights(parts, time.perf_counter() - began)

    def _sources(self) -> Iterator[Finding]:
        parts: Parts = self._get("parts")
        iteration = short.Iteration.of(parts)
        yield from iteration.sources()
        self._found["iteration"] = iteration

    def _iteration(self) -> short.Iteration:
        found: short.Iteration = self._get("iteration")
        return found

    def _drawn(self) -> short.Iteration:
        iteration = self._iteration()
        if iteration.batch is None:
            raise AbsentError
        return iteration

    def _get(self, name: str) -> Any:
        if name not in self._found:
            raise AbsentError
        return self._found[name]


def isolated(name: str, check: Check) -> Iterator[Finding]:
    """The findings of a check; what it raises becomes a finding too."""
    try:
        yield from check()
    except AbsentError:
        raise
    except PosttrainError as error:
        yield Finding(level="error", check=name, message=str(error))
    except Exception as error:
        message = f"unexpected {type(error).__name__}: {first_line(error)}"
        fix = "POSTTRAIN_DEBUG=1 posttrain train shows where; please report it"
        yield Finding(level="error", check=name, message=message, fix=fix)


def sample(examples: list[Example]) -> list[Example]:
    """All of them where they are few, else an even draw and those that are longest in characters, in their order."""
    if len(examples) <= SAMPLE:
        return examples
    chosen = {i * len(examples) // SAMPLE for i in range(SAMPLE)}
    chosen |= set(sorted(range(len(examples)), key=lambda i: -len(repr(examples[i])))[:_LONGEST])
    return [examples[i] for i in sorted(chosen)]
