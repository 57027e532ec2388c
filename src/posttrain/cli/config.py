"""``posttrain config``: explain what a file will do, and turn set-ups of other programs into one of ours."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, get_args

from posttrain.cli.arguments import OverridingParser, add_configured
from posttrain.cli.output import say, shown_value
from posttrain.errors import UserError


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its actions."""
    from posttrain.config.run import Command

    parser = commands.add_parser("config", help="Explain what a file will do, or convert one of another program.")
    actions: Any = parser.add_subparsers(
        dest="action", metavar="ACTION", title="actions", required=True, parser_class=OverridingParser
    )
    check = add_configured(
        actions, "check", check_config, help="Explain a file: values and where they come from, notes, steps, memory."
    )
    which = [name for name in get_args(Command) if name not in ("loop", "data")]
    check.add_argument("--for", dest="command_checked", choices=which, help="the command; default: goes by the keys")
    check.add_argument("--keys-only", action="store_true", help="look at the keys alone, not at data and models")
    check.add_argument("--json", action="store_true", help="one JSON object on standard output")
    convert = actions.add_parser(
        "convert",
        help="Write a set-up of LLaMA-Factory, TRL or a script's flags as a file of ours.",
        description="Options stand before the set-up: posttrain config convert --output ppo.yaml trl ppo --config "
        "old.yaml; posttrain config convert old.yaml; posttrain config convert train.py --device 0 --max_len 768",
    )
    convert.add_argument("--output", metavar="FILE", help="file to write; default: standard output")
    convert.add_argument("source", metavar="SET-UP", nargs=argparse.REMAINDER, help="file, or command line as it was")
    convert.set_defaults(run=convert_config)


def check_config(args: argparse.Namespace) -> int:
    """Print what the file will do; 2 where something would stop it."""
    from posttrain.config.explain import command_of, explained
    from posttrain.config.loader import load_config

    if _is_pipeline(args.config):
        return _check_pipeline(args)
    command = args.command_checked or command_of(args.config, args.overrides)
    config = load_config(args.config, args.overrides, command=command)
    facts: dict[str, Any] = explained(config, command)
    found = None
    if command == "train" and not args.keys_only:
        from posttrain.train.preview import preview

        found = preview(config)
        facts |= _numbers(found)
    problems = list(found.problems) if found else []
    facts["problems"] = problems
    if args.json:
        print(json.dumps(facts, ensure_ascii=False, indent=2))
    else:
        _print(facts, args.config, found)
    if problems:
        listed = problems[0] if len(problems) == 1 else "\n" + "\n".join(f"  - {problem}" for problem in problems)
        raise UserError(listed)
    return 0


def convert_config(args: argparse.Namespace) -> int:
    """Write the set-up as a file of ours; 2 where that file lacks something that only the user can add."""
    from posttrain.config.convert import converted
    from posttrain.config.loader import load_config

    found = converted(args.source)
    written_file(args.output, found.text())
    for written, why in found.lost:
        say(f"not carried over: {written}: {why}")
    exports = found.values.get("export_dir") and not found.values.get("do_train")
    trains = found.values.get("dataset") or "output_dir" in found.values
    try:
        load_config(found.values, command="export" if exports else "train" if trains else "chat")
    except UserError as error:
        raise UserError(f"what came out is not complete: {str(error).removeprefix('configuration: ')}") from error
    if args.output:
        say(f"written to {args.output}; `posttrain config check {args.output}` explains it")
    return 0


def _is_pipeline(path: str) -> bool:
    from posttrain.config.documents import read_document

    return "stages" in read_document(path).data


def _check_pipeline(args: argparse.Namespace) -> int:
    """Each stage with the keys that it sets; stages read what earlier ones write, so nothing else is looked at."""
    from posttrain.config.pipeline import load_pipeline

    pipeline = load_pipeline(args.config, args.overrides)
    if args.json:
        stages = [{"name": s.name, "command": s.command, "values": dict(s.values)} for s in pipeline.stages]
        facts = {"pipeline": pipeline.name, "stages": stages, "notes": list(pipeline.warnings), "problems": []}
        print(json.dumps(facts, ensure_ascii=False, indent=2, default=str))
        return 0
    print(f"{args.config}: posttrain run, {len(pipeline.stages)} stages into {pipeline.output_dir}")
    for stage in pipeline.stages:
        print(f"\n{stage.name}: posttrain {stage.command}, {stage.kind}")
        _print_rows([(key, _written(value)) for key, value in stage.values.items()])
    _print_notes(pipeline.warnings)
    return 0


def _numbers(found: Any) -> dict[str, Any]:
    """The preview as plain numbers."""
    facts: dict[str, Any] = {
        "rows": found.num_rows,
        "rows_held_out": found.num_held_out,
        "tokens": found.num_tokens,
        "longest_row": found.longest,
        "account": found.account,
    }
    if found.steps is not None:
        facts["steps"] = {
            "total": found.steps.total,
            "per_epoch": found.steps.per_epoch,
            "warmup": found.steps.warmup,
            "rows_per_step": found.rows_per_step,
            "optimizer_steps": found.optimizer_steps,
        }
    if found.memory is not None:
        plan = found.memory
        models = [
            {name: getattr(model, name) for name in ("name", "roles", "num_parameters", "num_trained", "total")}
            | {f"{part}_bytes": getattr(model, part) for part in ("weights", "adapters", "gradients", "optimizer")}
            for model in plan.models
        ]
        parts = ("activations", "logits", "merged", "kv_cache", "lower_states", "peak", "checkpoint")
        facts["memory"] = {"device": plan.device, "models": models, "free_bytes": found.free_memory}
        facts["memory"] |= {f"{part}_bytes": getattr(plan, part) for part in parts}
        facts["disk"] = {"checkpoints": found.num_checkpoints, "free_bytes": found.free_disk}
    return facts


def _print(facts: dict[str, Any], name: str, found: Any) -> None:
    print(f"{name}: posttrain {facts['command']}, {facts['about']}")
    for title, rows in (("Set", facts["set"]), ("Follows", facts["derived"])):
        if rows:
            print(f"\n{title}")
            _print_rows([(key, _written(row["value"]), row["source"]) for key, row in rows.items()])
    _print_notes(facts["notes"])
    if found is None:
        return
    if found.account:
        print(f"\nData\n  {found.account}")
        print(f"  {found.num_tokens} tokens, the longest row {found.longest}; {found.num_held_out} rows held out")
    if found.steps is not None:
        print("\nSteps")
        _print_rows(_step_rows(facts, found))
    if found.memory is not None:
        _print_memory(found)
    sys.stdout.flush()


def _step_rows(facts: dict[str, Any], found: Any) -> list[tuple[str, str]]:
    steps, sampled = found.steps, found.optimizer_steps != found.steps.total
    unit = facts["unit"]
    rows = [
        ("steps", f"{steps.total}, {steps.per_epoch} an epoch" + (", each an iteration" if facts["samples"] else "")),
        ("each takes", f"{found.rows_per_step} {unit}"),
        ("learning rate rises", f"over {steps.warmup} steps"),
    ]
    if sampled:
        rows.append(("optimizer steps", str(found.optimizer_steps)))
    return rows


def _print_memory(found: Any) -> None:
    plan = found.memory
    print(f"\nMemory on {plan.device}, planned from config.json")
    for model in plan.models:
        parts = [
            f"{_size(getattr(model, part))} {part}"
            for part in ("weights", "adapters", "gradients", "optimizer")
            if getattr(model, part)
        ]
        trains = f", {model.num_trained:,} of them train" if model.num_trained else ""
        print(f"  {model.name} ({', '.join(model.roles)}): {model.num_parameters:,} numbers{trains}")
        print(f"    {' + '.join(parts)}")
    rows = [
        ("largest micro-batch", f"{_size(plan.activations)} for {plan.num_tokens} tokens"),
        ("logits", _size(plan.logits)),
    ]
    if plan.kv_cache:
        rows += [("keys and values", _size(plan.kv_cache)), ("merged copies", _size(plan.merged))]
    if plan.lower_states:
        rows.append(("kept states", f"{_size(plan.lower_states)}, behind the layers beneath all training"))
    rows.append(
        ("at most", f"{_size(plan.peak)}, and 0.5 to 1 GB for the libraries; {_size(found.free_memory)} are free")
    )
    kept = f"{found.num_checkpoints} kept" if found.num_checkpoints else "none is written"
    rows.append(("a checkpoint", f"{_size(plan.checkpoint)} on disk, {kept}; {_size(found.free_disk)} are free"))
    _print_rows(rows)


def _size(count: int) -> str:
    return str(shown_value("_bytes", count)) if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _print_notes(notes: Any) -> None:
    if notes:
        print("\nNotes")
        for note in notes:
            print(f"  - {note}")


def _print_rows(rows: list[Any]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print(("  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))).rstrip())


def _written(value: Any) -> str:
    """A value as a file would have it, on one line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 70 else text[:67] + "..."


def written_file(path: str | None, text: str) -> None:
    """Put text into a file that is not there yet, or on standard output.

    Raises:
        UserError: the file is there, or cannot be written.
    """
    if path is None:
        print(text, end="")
        return
    place = Path(path).expanduser()
    if place.exists():
        raise UserError(f"{place} is there already; give another --output, or remove it.")
    try:
        place.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"{place} cannot be written: {error.strerror or error}.") from error
