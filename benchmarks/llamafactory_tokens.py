"""Token ids and label masks: LLaMA-Factory's own preprocessing against ours, row by row, on its demo data.

    python benchmarks/llamafactory_tokens.py hand WORK --data DATA       with ours: tokenizers and names for their side
    python benchmarks/llamafactory_tokens.py peer WORK --data DATA       with an interpreter that has llamafactory 0.9.5
    python benchmarks/llamafactory_tokens.py compare WORK --data DATA    with ours; status 1 where a row is unexplained

``WORK`` is a folder for what one hands to the other, ``DATA`` LLaMA-Factory's ``data/``. LLaMA-Factory runs through
``get_dataset``, as its trainers call it. ``compare --record`` writes the fixture of
tests/parity/test_llamafactory_tokens.py and the figures in benchmarks/results; ``merges`` learns the tokenizers anew.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.machinery
import io
import json
import platform
import sys
import types
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from llamafactory_inputs import SPECIAL, learned_merges, special_tokens_of, tokenizer, write_own_sets

ROOT = Path(__file__).resolve().parents[1]
FIXTURE = ROOT / "tests" / "parity" / "llamafactory_0_9_5_tokens.json"
RESULTS = ROOT / "benchmarks" / "results" / "llamafactory_tokens.json"
SHORT, LONG = 256, 32768
DIGITS = 6
DEMO = {
    "sft": ("alpaca_en_demo", "alpaca_zh_demo", "identity"),
    "rm": ("dpo_en_demo", "dpo_zh_demo"),
    "dpo": ("dpo_en_demo", "dpo_zh_demo"),
    "kto": ("kto_en_demo",),
    "pt": ("wiki_demo",),
}
OWN = {"sft": ("own_alpaca", "own_chats"), "rm": ("own_pairs",), "dpo": ("own_pairs",), "kto": ("own_judged",)}
CHATS = {
    "chat": [("user", "What is 1 + 1?"), ("assistant", "2"), ("user", "为什么?"), ("assistant", "Counting.\nTwice.")],
    "system": [("system", "Be brief."), ("user", "SELECT 1"), ("assistant", "1")],
}


def scenarios() -> Iterator[dict[str, Any]]:
    """What is compared: family, stage, dataset, cut-off and other settings."""
    for family in SPECIAL:
        for stage, names in DEMO.items():
            for name in names:
                for cutoff in (LONG, SHORT):
                    yield {"family": family, "stage": stage, "dataset": name, "cutoff_len": cutoff, "settings": {}}
        for stage, names in OWN.items():
            for name in names:
                for settings in ({}, {"mask_history": True}, {"train_on_prompt": True}):
                    if stage == "sft" or not settings:
                        place = {"family": family, "stage": stage, "dataset": name, "cutoff_len": LONG}
                        yield {**place, "settings": settings}


# --- their side -----------------------------------------------------------------------------------------------------


def peer(work: Path, data: Path) -> dict[str, Any]:
    """LLaMA-Factory's rows of every scenario, and what its templates make of two chats."""
    if importlib.machinery.PathFinder.find_spec("torchaudio") is None:  # needed for sound only, which no row has
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
        sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    import transformers
    from llamafactory.data.template import TEMPLATES
    from llamafactory.extras.env import VERSION

    handed = json.loads((work / "ours.json").read_text(encoding="utf-8"))
    own = write_own_sets(work / "own")
    found = []
    for scenario in scenarios():
        folder = own if scenario["dataset"].startswith("own_") else data
        found.append({**scenario, "rows": _their_rows(scenario, folder, work, handed["merges"])})
        print(f"{scenario}: {len(found[-1]['rows'])} rows", file=sys.stderr)
    templates = {}
    for name in handed["templates"]:
        if name in TEMPLATES:
            theirs = tokenizer("llama3", handed["merges"], handed["special"])
            templates[name] = {chat: _their_chat(TEMPLATES[name], theirs, turns) for chat, turns in CHATS.items()}
    versions = {"llamafactory": VERSION, "transformers": transformers.__version__, "python": platform.python_version()}
    return {"versions": versions, "names": sorted(TEMPLATES), "templates": templates, "scenarios": found}


def _their_rows(scenario: Mapping[str, Any], folder: Path, work: Path, merges: Sequence[str]) -> list[dict[str, Any]]:
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments, ModelArguments
    from transformers import Seq2SeqTrainingArguments

    stage = scenario["stage"]
    arguments = DataArguments(
        dataset=scenario["dataset"],
        dataset_dir=str(folder),
        template=None if stage == "pt" else scenario["family"],
        cutoff_len=scenario["cutoff_len"],
        overwrite_cache=True,
        packing=stage == "pt",
        preprocessing_batch_size=100_000,
        **scenario["settings"],
    )
    training = Seq2SeqTrainingArguments(output_dir=str(work / "run"), use_cpu=True, report_to="none")
    model = ModelArguments(model_name_or_path=str(work), cache_dir=str(work / "cache"))
    theirs = tokenizer(scenario["family"], merges)
    with redirect_stdout(io.StringIO()):
        template = get_template_and_fix_tokenizer(theirs, arguments)
        called = "rm" if stage == "dpo" else stage
        module = get_dataset(template, model, arguments, training, called, tokenizer=theirs)
    return [_their_row(row) for row in module["train_dataset"]]


def _their_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """One row as their collator gets it: name -> (ids, which of them are labels too)."""
    sides = {"chosen": "chosen_", "rejected": "rejected_"} if "chosen_input_ids" in row else {"row": ""}
    if "kl_input_ids" in row:
        sides["mismatched"] = "kl_"
    made = {}
    for name, prefix in sides.items():
        ids = row[f"{prefix}input_ids"]
        labels = row.get(f"{prefix}labels", ids)
        # The first label is never a target: both programs shift.
        made[name] = [ids, [0, *(int(label != -100) for label in labels[1:])]]
    return made | ({"good": row["kto_tags"]} if "kto_tags" in row else {})


def _their_chat(template: Any, theirs: Any, turns: Sequence[tuple[str, str]]) -> list[int]:
    system = turns[0][1] if turns[0][0] == "system" else ""
    messages = [{"role": role, "content": content} for role, content in turns if role != "system"]
    pieces = template.encode_multiturn(theirs, messages, system or None, None)
    return [token for pair in pieces for piece in pair for token in piece]


# --- our side -------------------------------------------------------------------------------------------------------


def handed_over(merges: Sequence[str]) -> dict[str, Any]:
    """What their side needs to know of ours: the tokenizer and the templates that are shipped."""
    from posttrain.data.chat_formats import shipped_formats

    texts = [form.jinja() for form in shipped_formats().values()]
    return {"merges": list(merges), "special": special_tokens_of(texts), "templates": sorted(shipped_formats())}


def our_rows(scenario: Mapping[str, Any], folder: Path, made: Any) -> dict[int, dict[str, Any]]:
    """Our rows of a scenario by the number of their row in the file; those that we drop are missing."""
    from posttrain.config import DataConfig
    from posttrain.data.datasets import encode_examples, read_examples
    from posttrain.data.encode import Report
    from posttrain.data.template import Template
    from posttrain.errors import UserError

    stage = scenario["stage"]
    data = DataConfig(
        dataset=(scenario["dataset"],),
        dataset_dir=str(folder),
        template=scenario["family"],
        cutoff_len=scenario["cutoff_len"],
        **scenario["settings"],
    )
    examples = read_examples(data.dataset, data, stage, Report())
    template = Template.configured(made, data, stage)
    found = {}
    for example in examples:
        try:
            (row,) = encode_examples([example], made, template, data, stage, Report())
        except UserError:
            continue
        found[int(example.where.rsplit(" ", 1)[1])] = row
    if stage == "kto" and len(found) == len(examples):
        found = dict(zip(found, encode_examples(examples, made, template, data, stage, Report()), strict=True))
    return {number: _our_row(row) for number, row in found.items()}


def _our_row(row: Any) -> dict[str, Any]:
    names = ("chosen", "rejected") if hasattr(row, "chosen") else ("row", "mismatched")
    sides = {name: getattr(row, name) for name in names if hasattr(row, name)} or {"row": row}
    made = {name: [side.input_ids, [int(trains) for trains in side.loss_mask]] for name, side in sides.items()}
    return made | ({"good": row.desirable} if hasattr(row, "desirable") else {})


def digest(row: Mapping[str, Any], *, without: str = "") -> str:
    """A few hexadecimal digits of one row's ids and masks."""
    text = json.dumps({key: value for key, value in sorted(row.items()) if key != without}, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def without_tail(row: Mapping[str, Any], tail: Sequence[int]) -> dict[str, Any]:
    """A row of theirs without what their template writes behind the end of turn, where it ends with that."""
    size = len(tail)

    def cut(side: Any) -> Any:
        ends = isinstance(side, list) and size and side[0][-size:] == list(tail)
        return [side[0][:-size], side[1][:-size]] if ends else side

    return {name: cut(side) for name, side in row.items()}


def our_template_chats(special: Sequence[str], merges: Sequence[str]) -> dict[str, dict[str, list[int]]]:
    """What our formats make of the chats that theirs were given."""
    from posttrain.data.chat_formats import shipped_formats
    from posttrain.data.formats import Message
    from posttrain.data.template import Template

    found = {}
    for name in shipped_formats():
        template = Template(tokenizer("llama3", merges, special), name, train_after_end_of_turn=True)
        chats = {chat: [Message(*turn) for turn in turns] for chat, turns in CHATS.items()}
        found[name] = {chat: template.encode_chat(messages).input_ids for chat, messages in chats.items()}
    return found


def compared(
    theirs: Mapping[str, Any], ours: Mapping[int, Any], uncut: Sequence[Any], tail: Sequence[int]
) -> Counter[str]:
    """Rows by what became of them.

    Args:
        theirs: a scenario with their rows. ours: our rows. uncut: their rows where the cut-off cuts nothing.
        tail: what ChatML writes behind an end of turn, which our reward models leave out.
    """
    counts: Counter[str] = Counter(rows=len(theirs["rows"]))
    limit = theirs["cutoff_len"]
    for number, (row, whole) in enumerate(zip(theirs["rows"], uncut, strict=True), start=1):
        mine = ours.get(number)
        if max(len(side[0]) for name, side in whole.items() if name not in ("good", "mismatched")) <= limit:
            counts["fits"] += 1
            equal = mine is not None and digest(mine, without="mismatched") == digest(row, without="mismatched")
            same = mine is not None and digest(mine) == digest(without_tail(row, tail))
            counts["equal" if equal else "equal_but_line_end" if same else "different"] += 1
            counts["equal_twins"] += int(
                mine is not None and "mismatched" in row and row["mismatched"] == mine.get("mismatched")
            )
        else:
            counts["too_long"] += 1
            counts["theirs_lost_end_of_turn"] += int(_lost_end(row, whole, tail))
            counts["theirs_lost_answer_header"] += int(_lost_header(row, whole))
            counts["ours_dropped"] += int(mine is None)
            counts["ours_lost_end_of_turn"] += int(mine is not None and _lost_end(mine, whole, tail))
    return counts


def _sides(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: side for name, side in row.items() if name not in ("good", "mismatched")}


def _lost_end(row: Mapping[str, Any], whole: Mapping[str, Any], tail: Sequence[int] = ()) -> bool:
    """Whether a side no longer ends as the whole one does (``tail`` is no loss)."""
    ends = {name: without_tail({name: side}, tail)[name][0][-1] for name, side in _sides(whole).items()}
    return any(without_tail({name: side}, tail)[name][0][-1] != ends[name] for name, side in _sides(row).items())


def _lost_header(row: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    """Whether the last answer no longer stands behind the three tokens that open it."""

    def before(side: Any) -> list[int]:
        start = len(side[1]) - next((i for i, trains in enumerate(side[1][::-1]) if not trains), 0)
        return side[0][max(0, start - 3) : start]

    return any(before(side) != before(whole[name]) for name, side in _sides(row).items())


def documents_compared(theirs: Mapping[str, Any], folder: Path, made: Any) -> Counter[str]:
    """Packed documents as one stream of tokens: their blocks are a token shorter, and they drop the last one."""
    from posttrain.config import DataConfig
    from posttrain.data.datasets import load_dataset

    data = DataConfig(dataset=(theirs["dataset"],), dataset_dir=str(folder), cutoff_len=theirs["cutoff_len"])
    mine = [token for row in load_dataset(data, made, "pt").train for token in row.input_ids]
    begun = [token for token in mine if token != made.bos_token_id]
    rows = [token for row in theirs["rows"] for token in row["row"][0]]
    same = next((i for i, pair in enumerate(zip(rows, begun, strict=False)) if pair[0] != pair[1]), len(rows))
    counts = {"tokens": len(rows), "equal": same, "ours_more_at_the_end": len(begun) - len(rows)}
    return Counter({**counts, "ours_begin_of_text": len(mine) - len(begun)})


def compare(work: Path, data: Path, *, record: bool) -> int:
    """Compare, print a table, and write fixture and figures; returns how many rows are unexplained."""
    theirs = json.loads((work / "peer.json").read_text(encoding="utf-8"))
    handed = json.loads((work / "ours.json").read_text(encoding="utf-8"))
    tokenizers = {family: tokenizer(family, handed["merges"]) for family in SPECIAL}
    tails = {family: tokenizers[family]("\n", add_special_tokens=False)["input_ids"] for family in SPECIAL}
    own = write_own_sets(work / "own")
    uncut: dict[tuple[str, ...], Any] = {}
    figures, recorded, unexplained = [], [], 0
    for scenario in theirs["scenarios"]:
        made, family = tokenizers[scenario["family"]], scenario["family"]
        folder = own if scenario["dataset"].startswith("own_") else data
        place = {key: scenario[key] for key in ("family", "stage", "dataset", "cutoff_len", "settings")}
        if scenario["stage"] == "pt":
            counts = documents_compared(scenario, folder, made)
            unexplained += counts["tokens"] - counts["equal"]
        else:
            key = (family, scenario["stage"], scenario["dataset"])
            if scenario["cutoff_len"] == LONG and not scenario["settings"]:
                uncut[key] = scenario["rows"]
            whole = scenario["rows"] if scenario["cutoff_len"] == LONG else uncut[key]
            counts = compared(scenario, our_rows(scenario, folder, made), whole, tails[family])
            unexplained += counts["different"] + counts["ours_lost_end_of_turn"]
            if scenario["cutoff_len"] == LONG:
                full = scenario["dataset"].startswith("own_")
                rows = scenario["rows"] if full else "".join(digest(row) for row in scenario["rows"])
                recorded.append({**place, "full" if full else "digests": rows})
        figures.append({**place, **{name: count for name, count in counts.items() if count}})
        print(" ".join(f"{name}={value}" for name, value in figures[-1].items() if value != {}))
    chats = our_template_chats(handed["special"], handed["merges"])
    differing = [name for name, expected in theirs["templates"].items() if chats[name] != expected]
    print(f"templates: {len(theirs['templates']) - len(differing)} equal, different: {', '.join(differing) or 'none'}")
    if record:
        kept = {key: theirs[key] for key in ("versions", "names", "templates")}
        fixture = {**kept, "merges": handed["merges"], "special": handed["special"], "scenarios": recorded}
        FIXTURE.write_text(json.dumps(fixture, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
        results = {"versions": theirs["versions"], "different_templates": differing, "scenarios": figures}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return unexplained


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("merges", "hand", "peer", "compare"))
    parser.add_argument("work", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    work, data = options.work, options.data
    work.mkdir(parents=True, exist_ok=True)
    if options.command in ("merges", "hand"):
        merges = (
            learned_merges(data) if options.command == "merges" else json.loads(FIXTURE.read_text("utf-8"))["merges"]
        )
        (work / "ours.json").write_text(json.dumps(handed_over(merges), ensure_ascii=False), encoding="utf-8")
    elif options.command == "peer":
        (work / "peer.json").write_text(json.dumps(peer(work, data)), encoding="utf-8")
    elif compare(work, data, record=options.record):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
