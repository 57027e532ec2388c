"""`report.md` of a pipeline: what each model can do, how sure that is, how the stages went and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import posttrain
from posttrain.config import PipelineConfig, is_online
from posttrain.errors import RunError
from posttrain.evaluate.intervals import wilson_interval
from posttrain.pipeline.report_plots import plot_report
from posttrain.pipeline.results import StageResults, called, read_results, sql_evaluation
from posttrain.pipeline.state import State
from posttrain.pipeline.tables import Table, block, code, number, share, signed
from posttrain.train.metrics import duration

FILE = "report.md"
NUM_EXAMPLES = 10
_METRICS = {"execution_accuracy": "execution accuracy", "reward": "reward"}


def write_report(pipeline: PipelineConfig, state: State, notify: Callable[[str], None]) -> Path:
    """Write the report and its pictures into the pipeline's folder, and its tables to ``notify``.

    What a pipeline did not do leaves its part out.

    Returns:
        The path of ``report.md``.

    Raises:
        RunError: it cannot be written.
    """
    stages = read_results(pipeline, state)
    folder = Path(pipeline.output_dir).expanduser()
    evaluation = sql_evaluation(stages)
    parts = [f"# {pipeline.name}", _opening(pipeline, stages)]
    tables: list[Table] = []
    if evaluation is not None:
        comparison = comparison_table(evaluation.numbers)
        tables.append(comparison)
        parts += ["## What the models can do", comparison.markdown(), *_reading(evaluation.numbers)]
    steps = training_table(stages)
    if steps.rows:
        tables.append(steps)
        parts += ["## How training went", steps.markdown()]
    try:
        pictures = plot_report(stages, folder)
    except OSError as error:
        raise RunError(f"the pictures of the report cannot be written to {folder}: {error}") from error
    parts += [f"![{title}]({path.name})" for path, title in pictures]
    alarms = alarm_sentences(stages)
    if alarms:
        parts += ["## Alarms", "\n".join(f"- {sentence}" for sentence in alarms)]
    cost = cost_table(stages)
    tables.append(cost)
    parts += ["## Time and memory", cost.markdown(), _COST]
    phases = pace_table(stages)
    if phases.rows:
        tables.append(phases)
        parts += [phases.markdown(), _PACE]
    if evaluation is not None:
        parts += _breakdown(evaluation.numbers) + _examples(evaluation)
    path = folder / FILE
    try:
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8", newline="\n")
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error
    for table in tables:
        notify("\n" + table.terminal())
    for sentence in alarms:
        notify(f"\nalarms: {sentence}")
    notify(f"\nreport: {path}")
    return path


def comparison_table(numbers: Mapping[str, Any]) -> Table:
    """One column for each variant of an SQL evaluation, one row for each thing that was measured."""
    variants = numbers["variants"]
    level = f"{100 * numbers.get('confidence', 0.95):g} %"
    measures: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        (
            f"execution accuracy [{level}]",
            lambda m: share(m["execution_accuracy"], m["execution_accuracy_interval"]),
        ),
        ("valid SQL", lambda m: share(m["valid_rate"])),
        ("exact match", lambda m: share(m["exact_match"])),
    ]
    if any("reward" in metrics for metrics in variants.values()):
        measures.append((f"reward [{level}]", lambda m: _optional(m, "reward")))
    if any("kl" in metrics for metrics in variants.values()):
        measures.append(("KL to its reference", lambda m: _optional(m, "kl")))
    measures += [
        ("response length", lambda m: number(m["response_length"], places=1)),
        ("ended by itself", lambda m: share(m["ended_share"])),
    ]
    rows = tuple((title, *(show(metrics) for metrics in variants.values())) for title, show in measures)
    return Table(("", *(called(name) for name in variants)), rows)


def training_table(stages: Sequence[StageResults]) -> Table:
    """Held-out measures of the training stages, before and after where both are known."""
    rows: list[tuple[str, str, str, str]] = []
    for stage in stages:
        found = stage.numbers
        if stage.kind == "pt" and "eval_perplexity" in found:
            before = found.get("eval_perplexity_before")
            rows.append((stage.name, "perplexity", _shown(before), _shown(found["eval_perplexity"])))
        elif stage.kind == "rm" and "eval_accuracy" in found:
            rows.append((stage.name, "pairs ranked correctly", _MISSING, _pair_accuracy(found)))
        elif is_online(stage.kind) and "eval_reward" in found:
            before = found.get("eval_reward_before")
            rows.append((stage.name, "reward, greedy", _shown(before), _shown(found["eval_reward"])))
        elif stage.kind == "sft" and "eval_loss" in found:
            rows.append((stage.name, "loss", _shown(found.get("eval_loss_before")), _shown(found["eval_loss"], 4)))
        for task, metric in (("reward", "accuracy"), ("perplexity", "perplexity"), ("loss", "loss")):
            if found.get("task") == task:
                measured = found.get("variants", {}).items()
                rows += [
                    (f"{stage.name}: {called(name)}", metric, _MISSING, _shown(m[metric], 3)) for name, m in measured
                ]
    return Table(("stage", "on held-out rows", "before", "after"), tuple(rows))


def cost_table(stages: Sequence[StageResults]) -> Table:
    """Seconds and peak memory of each stage's process, from its start to its end."""
    known = [(stage, stage.record) for stage in stages if stage.record is not None]
    rows = [
        (stage.name, _steps(stage), duration(record.seconds), f"{record.peak_memory_bytes / 1e9:.2f} GB")
        for stage, record in known
    ]
    if known:
        most = max(record.peak_memory_bytes for _, record in known)
        total = sum(record.seconds for _, record in known)
        rows.append(("all", "", duration(total), f"{most / 1e9:.2f} GB"))
    return Table(("stage", "steps", "time", "peak memory"), tuple(rows))


def pace_table(stages: Sequence[StageResults]) -> Table:
    """Each phase of the training stages against the least that it could compute and the least time that needs."""
    rows = [
        (
            stage.name,
            phase,
            _shown(stage.numbers.get(f"{phase}_tokens_per_second"), 0),
            _shown(stage.numbers.get(f"{phase}_flops_of_ideal")),
            _shown(stage.numbers.get(f"{phase}_padding_ratio")),
            _shown(stage.numbers.get(f"{phase}_x_of_limit")),
        )
        for stage in stages
        for phase in ("prefill", "decode", "score", "train")
        if f"{phase}_flops_of_ideal" in stage.numbers
    ]
    head = ("stage", "phase", "live tokens/s", "operations / fewest", "positions / tokens", "time / least")
    return Table(head, tuple(rows))


def differences(numbers: Mapping[str, Any]) -> list[str]:
    """A sentence for each pair of neighbouring variants and metric; it says when the interval includes 0."""
    sentences = []
    for item in numbers.get("differences", ()):
        low, high = item["interval"]
        metric = item["metric"]
        shown = signed(item["difference"], item["interval"], percent=metric == "execution_accuracy")
        verdict = (
            "the interval includes 0, so these questions do not tell the two apart"
            if low <= 0 <= high
            else "the interval lies above 0"
            if low > 0
            else "the interval lies below 0: it got worse"
        )
        sentences.append(
            f"{called(item['of'])} − {called(item['minus'])}, {_METRICS.get(metric, metric)}: {shown}; {verdict}."
        )
    return sentences


def alarm_sentences(stages: Sequence[StageResults]) -> list[str]:
    """A sentence for each stage in which alarms were raised: which, from which step on, and what became of it."""
    sentences = []
    for stage in stages:
        raised = stage.numbers.get("alarms")
        if not isinstance(raised, Mapping) or not raised:
            continue
        names = ", ".join(f"{name} from step {step}" for name, step in sorted(raised.items(), key=lambda item: item[1]))
        back = stage.numbers.get("rolled_back_to")
        end = "" if back is None else f"; it went back to step {back} and ended there"
        sentences.append(f"{stage.name}: {names}{end}. What each saw is in its trainer_log.jsonl.")
    return sentences


_MISSING = "–"
_COST = "Each stage is a process of its own: time from its start to its end, memory the most it held in RAM."

_PACE = "Operations, positions and time of each phase over the least that would do; see docs/limits.md."


def _shown(value: Any, places: int = 2) -> str:
    return number(float(value), places=places) if isinstance(value, int | float) else _MISSING


def _optional(metrics: Mapping[str, Any], name: str) -> str:
    return number(metrics[name], metrics[f"{name}_interval"]) if name in metrics else _MISSING


def _pair_accuracy(found: Mapping[str, Any]) -> str:
    """With Wilson's interval; the number of pairs follows from rate and time."""
    accuracy = float(found["eval_accuracy"])
    count = round(float(found.get("eval_samples_per_second", 0)) * float(found.get("eval_runtime", 0)))
    interval = wilson_interval(round(accuracy * count), count) if count else None
    return share(accuracy, interval) + (f" of {count}" if count else "")


def _steps(stage: StageResults) -> str:
    steps = stage.numbers.get("stopped_at_step")
    return str(steps) if isinstance(steps, int) else ""


def _opening(pipeline: PipelineConfig, stages: Sequence[StageResults]) -> str:
    models = list(dict.fromkeys(str(stage.stage.values.get("model_name_or_path", "")) for stage in stages))
    steps = " → ".join(f"{stage.name} ({stage.kind})" if stage.name != stage.kind else stage.name for stage in stages)
    return f"Model: `{models[0]}`. Stages: {steps}. Written by posttrain {posttrain.__version__}."


def _reading(numbers: Mapping[str, Any]) -> list[str]:
    """How to read the comparison, and what it does and does not show."""
    level = f"{100 * numbers.get('confidence', 0.95):g} %"
    lines = [
        f"{numbers.get('eval_num_rows', 0)} held-out questions. Execution accuracy: the SQL ran and gave the rows of "
        f"the reference query. Brackets are {level} intervals over questions (shares: Wilson; means: bootstrap)."
    ]
    if any("kl" in metrics for metrics in numbers["variants"].values()):
        lines[0] += (
            " KL to its reference: Σ log π − log π_ref over a completion, in nats; the reference is the model that PPO "
            "started from."
        )
    found = differences(numbers)
    if found:
        heading = "The same questions, compared one by one (bootstrap over questions):"
        lines.append("\n".join([heading, "", *(f"- {sentence}" for sentence in found)]))
    return lines


def _breakdown(numbers: Mapping[str, Any]) -> list[str]:
    variants = numbers["variants"]
    groups = next(iter(variants.values())).get("groups") or {}
    rows = []
    for group, values in groups.items():
        for value, scores in values.items():
            cells = [metrics["groups"][group][value] for metrics in variants.values()]
            shares = (share(cell["execution_accuracy"], cell["interval"]) for cell in cells)
            rows.append((f"{group}: {value}", str(scores["num_questions"]), *shares))
    if not rows:
        return []
    table = Table(("questions", "number", *(called(name) for name in variants)), tuple(rows))
    return ["## Execution accuracy by kind of question", table.markdown()]


def _examples(evaluation: StageResults) -> list[str]:
    """Questions at even distances, whatever their results, with every variant's answer."""
    by_question: dict[int, dict[str, Mapping[str, Any]]] = {}
    for row in evaluation.predictions:
        by_question.setdefault(int(row["index"]), {})[str(row["variant"])] = row
    indices = sorted(by_question)
    count = min(NUM_EXAMPLES, len(indices))
    if not count:
        return []
    chosen = [indices[i * len(indices) // count] for i in range(count)]
    parts = [
        "## Completions side by side",
        f"{count} of {len(indices)} questions, at even distances and not chosen by result.",
    ]
    for place, index in enumerate(chosen, start=1):
        rows = by_question[index]
        first = next(iter(rows.values()))
        labels = ", ".join(str(first[key]) for key in ("language", "kind", "hardness") if key in first)
        lines = [("reference", "", code(first["gold"]))]
        lines += [(called(name), _verdict(row), code(row["completion"])) for name, row in rows.items()]
        parts += [f"### {place}. {labels or f'question {index + 1}'}", block(str(first["prompt"]))]
        parts.append(_answers(lines))
    return parts


def _answers(lines: Sequence[tuple[str, str, str]]) -> str:
    rows = [("", "", "SQL"), ("---", "---", "---"), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _verdict(row: Mapping[str, Any]) -> str:
    if row["correct"]:
        return "✓ correct"
    reason = str(row.get("error_class") or "wrong_result").replace("_", " ")
    return f"✗ {reason}"
