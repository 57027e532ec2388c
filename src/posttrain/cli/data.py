"""``posttrain data``: show rows as a model will see them, check data, make data sets with the own generators."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from posttrain.cli.arguments import OverridingParser, add_configured
from posttrain.cli.output import has_colours, say

_NOT_FLAGS = ("directory", "domains", "progress")


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its actions."""
    parser = commands.add_parser("data", help="Show rows as the model will see them, check data, make a data set.")
    actions: Any = parser.add_subparsers(
        dest="action", metavar="ACTION", title="actions", required=True, parser_class=GeneratorParser
    )
    showing = add_configured(
        actions, "show", show_rows, help="Print rows of a run's data token by token, coloured by what trains."
    )
    showing.add_argument("--rows", type=int, default=3, metavar="N", help="how many rows (default: 3)")
    showing.add_argument("--start", type=int, default=1, metavar="K", help="number of the first one (default: 1)")
    showing.add_argument("--held-out", action="store_true", help="rows of val_size or eval_dataset")
    showing.add_argument("--cut", action="store_true", help="only rows that cutoff_len cuts")
    showing.add_argument("--ids", action="store_true", help="token ids below each text")
    showing.add_argument("--plain", action="store_true", help="marks instead of colours, as in a pipe or with NO_COLOR")
    checking = actions.add_parser(
        "check",
        help="Look for what is wrong or odd in data: schema, duplicates, leaks, lengths, labels ...",
        description="Exit status: 0 where nothing or only warnings were found, 2 where a run would stop.",
    )
    checking.add_argument("sources", metavar="CONFIG_OR_FILE", nargs="+", help="configuration, or data files")
    checking.add_argument("overrides", metavar="key=value", nargs="*", help="settings, such as eval_dataset=dev.json")
    checking.add_argument("--json", action="store_true", help="one JSON object on standard output")
    checking.set_defaults(run=check_data)
    text2sql = actions.add_parser(
        "text2sql", help="Make questions, pairs, documents and SQLite databases; or read Spider, BIRD, WikiSQL ..."
    )
    text2sql.generator = text2sql_generator
    text2sql.set_defaults(run=make_text2sql)
    asking = actions.add_parser(
        "question-generation", help="Make passages in Chinese, with questions and pairs of them."
    )
    asking.generator = question_generator
    asking.set_defaults(run=make_questions)
    reviews = actions.add_parser("reviews", help="Make reviews in Chinese that praise and blame, and pairs of them.")
    reviews.generator = review_generator
    reviews.set_defaults(run=make_reviews)


class GeneratorParser(OverridingParser):
    """Imports its generator, and declares the generator's flags, only when it is the one that was asked for."""

    generator: Callable[[], Any] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As the parser's own; the flags are declared first."""
        if self.generator is not None:
            add_flags(self, self.generator())
        if self.generator is text2sql_generator:
            add_benchmark_flags(self)
        return super().parse_known_args(args, namespace)


def show_rows(args: argparse.Namespace) -> int:
    """Print rows as the model will see them."""
    from posttrain.config import load_config
    from posttrain.errors import UserError

    for name, value in (("--rows", args.rows), ("--start", args.start)):
        if value < 1:
            raise UserError(f"{name} {value}: give a number from 1 on")
    config = load_config(args.config, args.overrides, command="data")
    if not config.model.model_name_or_path:
        raise UserError(
            f"{args.config}: `model_name_or_path` is missing: rows are shown as the model's tokenizer makes them; add "
            "it to the file or behind it, such as model_name_or_path=smollm2-135m-instruct"
        )
    from posttrain.diagnose.show import show

    options = {"start": args.start, "held_out": args.held_out, "only_cut": args.cut, "ids": args.ids}
    for line in show(config, args.rows, colours=has_colours() and not args.plain, **options):
        print(line)
    return 0


def check_data(args: argparse.Namespace) -> int:
    """Print what is found in the data; 2 where something would stop a run."""
    from posttrain.diagnose.check import check
    from posttrain.diagnose.findings import has_errors
    from posttrain.diagnose.source import configured

    given = [*args.sources, *args.overrides]
    overrides = [text for text in given if is_override(text)]
    checked = check(configured([text for text in given if text not in overrides], overrides))
    if args.json:
        print(json.dumps(checked.plain(), ensure_ascii=False, indent=2))
    else:
        for line in checked.lines():
            print(line)
    return 2 if has_errors(checked.findings) else 0


def is_override(text: str) -> bool:
    """Whether an argument is ``key=value`` and no path that holds an equals sign."""
    key, equals, _ = text.partition("=")
    return bool(equals) and key.removeprefix("--").isidentifier() and not Path(text).exists()


def make_text2sql(args: argparse.Namespace) -> int:
    """Write the text-to-SQL data set; print how many rows each file has."""
    if args.format or args.input:
        return convert_benchmark(args, Path(args.output).expanduser())
    manifest = _made(args, text2sql_generator())
    say(f"{manifest.num_databases} SQLite databases; use the files with dataset_dir: {manifest.directory}")
    return 0


def make_questions(args: argparse.Namespace) -> int:
    """Write the question-generation data set; print how many rows each file has."""
    manifest = _made(args, question_generator())
    say(f"use the files with dataset_dir: {manifest.directory}")
    return 0


def make_reviews(args: argparse.Namespace) -> int:
    """Write the reviews; print how many rows each file has."""
    manifest = _made(args, review_generator())
    say(f"use the files with dataset_dir: {manifest.directory}")
    return 0


def text2sql_generator() -> Callable[..., Any]:
    """What writes the text-to-SQL data set."""
    from posttrain.data.text2sql import generate

    return generate


def question_generator() -> Callable[..., Any]:
    """What writes the question-generation data set."""
    from posttrain.data.question_generation import generate

    return generate


def review_generator() -> Callable[..., Any]:
    """What writes the reviews."""
    from posttrain.data.reviews import generate

    return generate


def _made(args: argparse.Namespace, generate: Callable[..., Any]) -> Any:
    folder = Path(args.output).expanduser()
    manifest = generate(folder, **{name: getattr(args, name) for name in _flags(generate)})
    for name, count in manifest.counts.items():
        print(f"{count:>8}  {folder / name}")
    return manifest


def add_benchmark_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that read a benchmark instead of making questions."""
    group = parser.add_argument_group("a benchmark instead of made-up questions")
    group.add_argument("--format", metavar="NAME", help="spider, cspider, bird, dusql, wikisql or prompts")
    group.add_argument("--input", metavar="FOLDER", help="the benchmark's folder")
    group.add_argument(
        "--invent-rows",
        type=int,
        default=0,
        metavar="N",
        help="rows to make up for each table of databases that come without content (default: 0, they stay empty)",
    )
    group.add_argument(
        "--sql-dialect",
        choices=("sqlite", "oracle", "postgres", "mysql"),
        default="sqlite",
        help="in which the gold SQL is written (default: sqlite, which is tried on each database)",
    )
    group.add_argument("--max-rows", type=int, default=0, metavar="N", help="at most so many questions of each file")


def convert_benchmark(args: argparse.Namespace, folder: Path) -> int:
    """Write a benchmark as a data set; print how many rows each file has, and what was left out."""
    from posttrain.cli.progress import ProgressLine
    from posttrain.data.text2sql import generate
    from posttrain.data.text2sql.benchmarks import FORMATS, convert
    from posttrain.errors import UserError

    if args.format not in FORMATS or not args.input:
        given = f"--format {args.format}" if args.format not in FORMATS else "--input is missing"
        raise UserError(
            f"{given}: to read a benchmark name both, such as --format spider --input spider/ (formats: "
            f"{', '.join(FORMATS)})"
        )
    for flag in ("invent_rows", "max_rows"):
        if getattr(args, flag) < 0:
            raise UserError(f"--{flag.replace('_', '-')} {getattr(args, flag)}: give a number from 0 on")
    changed = [name for name, default in _flags(generate).items() if getattr(args, name) != default]
    if changed:
        raise UserError(f"--{changed[0].replace('_', '-')} is about made-up questions; remove it beside --format")
    with ProgressLine() as progress:
        made = convert(
            args.format,
            Path(args.input).expanduser(),
            folder,
            invent_rows=args.invent_rows,
            max_rows=args.max_rows,
            dialect=args.sql_dialect,
            progress=lambda done, total: progress("read questions", done, total),
        )
    for name, count in made.counts.items():
        print(f"{count:>8}  {folder / name}")
    for where, why in list(made.left_out.items())[:5]:
        say(f"{where}: left out: {why}")
    if made.left_out:
        say(f"{len(made.left_out)} questions are left out, their gold SQL does not run: {folder / 'left_out.jsonl'}")
    if made.num_empty:
        say(
            f"{made.num_empty} of {made.num_databases} databases hold no row, so almost any SQL gives the gold's "
            "result: get the benchmark's databases, or add --invent-rows 50"
        )
    say(f"{made.num_databases} SQLite databases; use the files with dataset_dir: {folder}")
    return 0


def add_flags(parser: argparse.ArgumentParser, function: Any) -> None:
    """``--output`` and one flag for each keyword argument of a generator, with its type and default."""
    lines = (inspect.getdoc(function) or "").splitlines()
    parser.description = lines[0] if lines else None
    parser.add_argument("--output", metavar="DIR", required=True, help="folder to write, made when missing")
    for name, default in _flags(function).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(default, Sequence) and not isinstance(default, str):
            given = " ".join(map(str, default))
            parser.add_argument(flag, nargs="+", default=default, metavar="NAME", help=f"default: {given}")
        else:
            kind = type(default)
            parser.add_argument(flag, type=kind, default=default, metavar=kind.__name__, help=f"default: {default}")


def _flags(function: Any) -> dict[str, Any]:
    """The keyword arguments that a command line can give, with their defaults."""
    parameters = inspect.signature(function).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name not in _NOT_FLAGS}
