"""The tables of docs/results/question-generation.md, recomputed from the questions that are kept beside this file.

    python benchmarks/question_generation.py                            prints them
    python benchmarks/question_generation.py --check docs/results/question-generation.md  fails if it differs
    python benchmarks/question_generation.py --write docs/results/question-generation.md  puts them in
    python benchmarks/question_generation.py --keep outputs/question-generation --as scratch
    python benchmarks/question_generation.py --keep outputs/question-generation-cmrc --as cmrc

``--keep`` takes what a run of recipes/question_generation asked about its held-out texts before and after PPO, and
scores it with the run's own reward model. The rules by which questions are judged beside it are run again each time, on
passages that are made anew from the seed. Texts of ``cmrc`` are not kept, so what the rules said of them is.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from posttrain.config.pipeline import load_pipeline
from posttrain.data.question_generation import generate, verdict
from posttrain.evaluate.intervals import bootstrap_interval, paired_difference_interval

ROOT = Path(__file__).resolve().parent
RECIPES = ROOT.parent / "recipes" / "question_generation"
KEPT = ROOT / "results" / "question_generation"
SIDES = ("before", "after")
SEED = 0
RULES: Mapping[str, Mapping[str, str]] = {
    "scratch": {
        "good": "good by all rules",
        "ends": "one question, closed by its only question mark",
        "names": "names the text's subject",
        "answerable": "asks for what the text states",
        "well_formed": "worded as a question of its kind",
    },
    "cmrc": {
        "good": "good by all rules",
        "ends": "one question, closed by its only question mark",
        "fluent": "nothing said twice in a row",
        "grounded": "three characters in a row, or more, from the text",
    },
}
NAMES = {"scratch": "made-up passages, GPT-2 from scratch", "cmrc": "CMRC 2018, MiniMind2-Small"}
_REPEATED = re.compile(r"(.{2,})\1|(.)\2\2")

Row = dict[str, Any]


def main() -> None:
    """Print the tables; check a page against them, put them into it, or keep what a run asked."""
    parser = argparse.ArgumentParser(description="Recompute the question-generation results from kept questions.")
    parser.add_argument("--kept", type=Path, default=KEPT, help="folder with scratch.json and cmrc.json")
    parser.add_argument("--check", type=Path, help="a page that must hold the tables as they are printed")
    parser.add_argument("--write", type=Path, help="a page whose tables are replaced")
    parser.add_argument("--keep", type=Path, help="output_dir of a finished run of a recipe")
    parser.add_argument("--as", dest="name", choices=RULES, default="scratch")
    args = parser.parse_args()
    if args.keep:
        print(f"kept {keep(args.keep, args.name, args.kept)}")
        return
    names = [name for name in RULES if (args.kept / f"{name}.json").is_file()]
    if not names:
        sys.exit(f"{args.kept} holds no scratch.json: run the recipe, then --keep its output_dir")
    for name in names:
        table = markdown(name, read(name, args.kept))
        print(table)
        for page in filter(None, (args.check, args.write)):
            text = page.read_text(encoding="utf-8")
            if page == args.write:
                page.write_text(with_table(text, name, table), encoding="utf-8", newline="\n")
            elif table.strip() not in text:
                sys.exit(f"{page} does not hold this table")


def with_table(page: str, name: str, table: str) -> str:
    """The page with this table between its marks."""
    begin, end = f"<!-- {name}: written by `python benchmarks/question_generation.py` -->", f"<!-- end of {name} -->"
    before, found, rest = page.partition(begin)
    if not found:
        sys.exit(f"the page has no line {begin}")
    return f"{before}{begin}\n\n{table}\n\n{end}{rest.partition(end)[2]}"


def keep(run: Path, name: str, folder: Path) -> Path:
    """Take a run's questions, score them, and write one file."""
    from posttrain.config import load_config
    from posttrain.data.formats import Message
    from posttrain.serve.scoring import FolderScorer

    config = load_config(run / "configs" / "reward.yaml", command="chat")
    scorer = FolderScorer.configured(config, str(run / "reward"), notify=lambda note: print(note, file=sys.stderr))
    asked = {side: _jsonl(run / side) for side in SIDES}
    rows: list[Row] = []
    for index, (before, after) in enumerate(zip(*asked.values(), strict=True)):
        content = before["messages"][-1]["content"]
        if after["messages"] != before["messages"]:
            sys.exit(f"row {index}: {run}/before and {run}/after are about different texts")
        texts = {"before": before["predict"], "after": after["predict"], "people": [before["label"]]}
        prompt = (Message("user", content),)
        scores = {side: scorer.scores([(prompt, text) for text in said]) for side, said in texts.items()}
        row: Row = {"index": index, **{side: texts[side] for side in SIDES}, "reward": scores}
        if name == "scratch":
            row["gold"] = before["label"]
        else:
            row |= {"id": before["id"], "begins": content[:36]}
            row["rules"] = {side: [rules_of_text(text, content) for text in said] for side, said in texts.items()}
        rows.append(row)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    text = json.dumps({"run": _run(run), "rows": rows}, ensure_ascii=False, indent=1) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


def rules_of_text(question: str, text: str) -> dict[str, bool]:
    """What rules say of a question about any text."""
    asked = "".join(question.split())
    body = asked.removesuffix("？")
    plain = "".join(text.split())
    found = {
        "ends": asked.endswith("？") and asked.count("？") == 1 and "。" not in asked,
        "fluent": _REPEATED.search(body) is None and 3 < len(body) < 60,
        "grounded": any(body[i : i + 3] in plain for i in range(len(body) - 2)),
    }
    return {"good": all(found.values()), **found}


def read(name: str, folder: Path = KEPT) -> Row:
    """A kept file, each row with what the rules say: side -> rule -> share of its questions.

    Those of ``scratch`` are run again, on passages that the generator makes anew.
    """
    kept: Row = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    judged = _judged_scratch(kept) if name == "scratch" else [row["rules"] for row in kept["rows"]]
    for row, rules in zip(kept["rows"], judged, strict=True):
        row["shares"] = {
            side: {rule: fmean(found[rule] for found in said) for rule in RULES[name]} for side, said in rules.items()
        }
    return kept


def _judged_scratch(kept: Row) -> list[dict[str, list[dict[str, bool]]]]:
    prepared = load_pipeline(RECIPES / "pipeline.yaml").prepare[0]
    with tempfile.TemporaryDirectory() as temporary:
        generate(Path(temporary), seed=kept["run"]["seed"], **prepared.options)
        lines = (Path(temporary) / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    held_out = [json.loads(line) for line in lines]
    if [row["gold"] for row in kept["rows"]] != [row["query"] for row in held_out]:
        sys.exit("scratch.json: its texts are not those that the generator makes from its seed today")
    judged = []
    for row, passage in zip(kept["rows"], held_out, strict=True):
        row["text"] = passage["content"]
        about = {key: passage[key] for key in ("kind", "subject", "stated")}
        said = {"before": row["before"], "after": row["after"], "people": [row["gold"]]}
        judged.append({side: [_flags(verdict(text, **about)) for text in texts] for side, texts in said.items()})
    return judged


def _flags(found: Any) -> dict[str, bool]:
    return {rule: bool(getattr(found, rule)) for rule in RULES["scratch"]}


def markdown(name: str, kept: Row) -> str:
    """Rewards and rules before and after, then questions side by side."""
    rows = kept["rows"]
    questions = len(rows[0]["before"])
    head = f"{NAMES[name]}: {len(rows)} held-out texts × {questions}"
    lines = [
        f"| {head} | SFT | PPO | difference [95 %] | people's |",
        "| --- | ---: | ---: | ---: | ---: |",
        _line("reward", rows, lambda row, side: fmean(row["reward"][side]), lambda x: f"{x:.2f}", 1, ""),
    ]
    for rule, words in RULES[name].items():
        lines.append(_line(words, rows, _share_of(rule), lambda x: f"{100 * x:.1f} %", 100, " points"))
    lines += ["", "| text | SFT asks | PPO asks |", "| --- | --- | --- |"]
    for row in rows[:: max(1, len(rows) // 8)][:8]:
        text = row["text"] if "text" in row else f"{row['begins']} … ({row['id']})"
        cells = [text, "<br>".join(row["before"]), "<br>".join(row["after"])]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines)


def _share_of(rule: str) -> Callable[[Row, str], float]:
    return lambda row, side: float(row["shares"][side][rule])


def _line(
    words: str,
    rows: Sequence[Row],
    value: Callable[[Row, str], float],
    shown: Callable[[float], str],
    factor: float,
    unit: str,
) -> str:
    """One measure: both sides with intervals over texts, their difference text by text, and people's questions."""
    sides = {side: [value(row, side) for row in rows] for side in (*SIDES, "people")}
    cells = []
    for side in SIDES:
        low, high = bootstrap_interval(sides[side], seed=SEED)
        cells.append(
            f"{shown(fmean(sides[side]))} [{shown(low)}, {shown(high)}]".replace(" %,", ",").replace(" %]", "]")
        )
    low, high = paired_difference_interval(sides["after"], sides["before"], seed=SEED)
    places = 1 if factor == 100 else 2
    change = fmean(sides["after"]) - fmean(sides["before"])
    difference = f"{factor * change:+.{places}f} [{factor * low:+.{places}f}, {factor * high:+.{places}f}]{unit}"
    return f"| {words} | {cells[0]} | {cells[1]} | {difference} | {shown(fmean(sides['people']))} |"


def _jsonl(folder: Path) -> list[Row]:
    """The questions of a stage."""
    names = ("questions.jsonl", "generated_predictions.jsonl")
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        sys.exit(f"{folder} holds none of {', '.join(names)}: did the run come to its end?")
    return [json.loads(line) for line in found.read_text(encoding="utf-8").splitlines()]


def _run(run: Path) -> Row:
    """What the run says of itself: seed of the data, accuracy of the reward model, course of PPO, time and memory."""
    manifest = run / "data" / "manifest.json"
    results = json.loads((run / "reward" / "all_results.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (run / "ppo" / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()]
    keys = ("current_steps", "reward_mean", "kl", "response_length", "ended_share", "eval_reward")
    records = json.loads((run / "pipeline_state.json").read_text(encoding="utf-8"))["records"]
    return {
        "seed": json.loads(manifest.read_text(encoding="utf-8"))["seed"] if manifest.is_file() else None,
        "pair_accuracy": results.get("eval_accuracy"),
        "ppo": [{key: line[key] for key in keys if key in line} for line in log],
        "stages": {
            name: {"seconds": round(record["seconds"], 1), "peak_gb": round(record["peak_memory_bytes"] / 1e9, 2)}
            for name, record in records.items()
            if not name.startswith("prepare.")
        },
    }


if __name__ == "__main__":
    main()
