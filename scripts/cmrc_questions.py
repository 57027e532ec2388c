"""CMRC 2018 as data for question generation: passages with people's questions, and pairs with bad ones.

    python scripts/cmrc_questions.py cmrc2018_dev.json --output data/cmrc

The file is the SQuAD-style one of https://github.com/ymcui/cmrc2018 (CC BY-SA 4.0). Of each article a passage is taken
around an answer, whole sentences of up to ``--length`` characters; its question is the one that was answered there.
Articles are held out, not questions: no text of a held-out one is trained on.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from posttrain.errors import UserError

_SENTENCE = re.compile(r"[^。！？；]*[。！？；]?")
_EMPTY = ("这段文字讲了什么？", "它是什么？", "文中提到了什么？", "是什么时候？", "为什么？")
INFO: dict[str, Any] = {
    "cmrc_sft": {"file_name": "sft.jsonl", "columns": {"prompt": "content", "response": "query"}},
    "cmrc_prompts": {"file_name": "prompts.jsonl", "columns": {"prompt": "content", "response": "query"}},
    "cmrc_heldout": {"file_name": "heldout.jsonl", "columns": {"prompt": "content", "response": "query"}},
    **{
        name: {
            "file_name": file,
            "ranking": True,
            "columns": {"prompt": "content", "chosen": "chosen", "rejected": "rejected"},
        }
        for name, file in (("cmrc_pairs", "pairs.jsonl"), ("cmrc_pairs_heldout", "pairs_heldout.jsonl"))
    },
}

Row = dict[str, Any]


def passage(text: str, start: int, end: int, length: int) -> str:
    """Whole sentences of ``text`` around [start, end), up to ``length`` characters where the answer leaves a choice."""
    sentences = [match.span() for match in _SENTENCE.finditer(text) if match.group()]
    first = next(i for i, span in enumerate(sentences) if span[1] > start)
    last = next(i for i, span in enumerate(sentences) if span[1] >= end)
    grown = True
    while grown:
        grown = False
        for low, high in ((first - 1, last), (first, last + 1)):
            if low >= 0 and high < len(sentences) and sentences[high][1] - sentences[low][0] <= length:
                first, last, grown = low, high, True
    return text[sentences[first][0] : sentences[last][1]].lstrip("。！？；").strip()


def rows_of(document: Row, length: int) -> Iterator[Row]:
    """``content`` and ``query`` of every question whose passage is no longer than twice ``length``."""
    for article in document["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answer = question["answers"][0]
                start = paragraph["context"].find(answer["text"])
                if start < 0:
                    continue
                content = passage(paragraph["context"], start, start + len(answer["text"]), length)
                if len(content) <= 2 * length:
                    query = question["question"].strip().replace("?", "？")
                    query = query if query.endswith("？") else query + "？"
                    yield {"content": content, "query": query, "article": paragraph["id"], "id": question["id"]}


def worse(row: Row, others: list[Row], rng: random.Random) -> tuple[str, str]:
    """(kind of mistake, a question that is worse than the row's own)."""
    query = row["query"]
    makers: dict[str, Callable[[], str]] = {
        "of_another": lambda: str(rng.choice(others)["query"]),
        "cut_off": lambda: query[: rng.randrange(max(2, len(query) // 3), max(3, len(query) - 1))],
        "hollow": lambda: query[: rng.randrange(2, max(3, len(query) - 3))].rstrip("？") + "？",
        "garbled": lambda: _garbled(query, str(rng.choice(others)["query"]), rng),
        "stuttered": lambda: _stuttered(query, rng),
        "empty": lambda: rng.choice(_EMPTY),
        "statement": lambda: rng.choice([part for part in re.split("[。，；]", row["content"]) if part]) + "。",
    }
    while True:
        kind = rng.choices(list(makers), weights=(4, 1, 3, 5, 3, 1, 1))[0]
        found = makers[kind]()
        if found != query:
            return kind, found


def _stuttered(query: str, rng: random.Random) -> str:
    start = rng.randrange(0, max(1, len(query) - 4))
    part = query[start : start + rng.randint(2, 5)].rstrip("？")
    return query[:start] + part * rng.randint(1, 3) + query[start:]


def _garbled(query: str, other: str, rng: random.Random) -> str:
    """Some characters in its middle are those of a question about something else."""
    length = rng.randint(2, 5)
    start, there = rng.randrange(0, max(1, len(query) - length)), rng.randrange(0, max(1, len(other) - length))
    return query[:start] + other[there : there + length].rstrip("？") + query[start + length :].rstrip("？") + "？"


def main() -> None:
    """Write the files; print how many rows each has."""
    parser = argparse.ArgumentParser(description="CMRC 2018 as data for question generation.")
    parser.add_argument("source", type=Path, help="cmrc2018_dev.json or cmrc2018_train.json, SQuAD-style")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--length", type=int, default=90, help="characters of a passage")
    parser.add_argument("--sft", type=int, default=2600)
    parser.add_argument("--pairs", type=int, default=2600)
    parser.add_argument("--prompts", type=int, default=600)
    parser.add_argument("--heldout", type=int, default=100, help="articles that are held out")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        rows = list(rows_of(json.loads(args.source.read_text(encoding="utf-8")), args.length))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise SystemExit(
            f"{args.source}: not a SQuAD-style file of CMRC 2018 ({type(error).__name__}: {error})"
        ) from None
    rng = random.Random(args.seed)
    articles = sorted({row["article"] for row in rows})
    if len(articles) <= args.heldout:
        raise SystemExit(f"--heldout {args.heldout}: the file has {len(articles)} articles")
    rng.shuffle(articles)
    held_out = set(articles[: args.heldout])
    rng.shuffle(rows)
    train = [row for row in rows if row["article"] not in held_out]
    first = {row["article"]: row for row in rows if row["article"] in held_out}
    test = [row for row in rows if row["article"] in held_out]
    files: dict[str, list[Row]] = {
        "sft.jsonl": train[: args.sft],
        "pairs.jsonl": [_pair(row, train, rng) for row in train[-args.pairs :]],
        "prompts.jsonl": train[: args.prompts],
        "heldout.jsonl": [first[article] for article in sorted(first)],
        "pairs_heldout.jsonl": [_pair(row, test, rng) for row in test[:200]],
    }
    args.output.mkdir(parents=True, exist_ok=True)
    for name, of_file in files.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in of_file)
        (args.output / name).write_text(text, encoding="utf-8", newline="\n")
        print(f"{len(of_file):>8}  {args.output / name}")
    text = json.dumps(INFO, ensure_ascii=False, indent=2) + "\n"
    (args.output / "dataset_info.json").write_text(text, encoding="utf-8", newline="\n")


def _pair(row: Row, others: list[Row], rng: random.Random) -> Row:
    elsewhere = [other for other in rng.sample(others, min(8, len(others))) if other["article"] != row["article"]]
    if not elsewhere:
        raise UserError("the questions are all of one article; there is no other to take one from")
    mistake, rejected = worse(row, elsewhere, rng)
    return {"content": row["content"], "chosen": row["query"], "rejected": rejected, "mistake": mistake}


if __name__ == "__main__":
    main()
