"""Writes the whole text-to-SQL data set: documents, instructions, pairs, prompts, held-out questions, databases."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from posttrain.data.made_files import json_text, make_folder, write_text
from posttrain.data.text2sql.examples import Example, Pool
from posttrain.data.text2sql.mistakes import hasty
from posttrain.data.text2sql.tables import Database, Domain, draw_database, load_domains
from posttrain.errors import UserError

HELDOUT_SHARE = 0.2
JOINED_SHARE = 0.12

_RANKING: dict[str, Any] = {
    "ranking": True,
    "formatting": "sharegpt",
    "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
}
DATASET_INFO: dict[str, dict[str, Any]] = {
    "text2sql_pretrain": {"file_name": "pretrain.jsonl", "columns": {"prompt": "text"}},
    "text2sql_pretrain_heldout": {"file_name": "pretrain_heldout.jsonl", "columns": {"prompt": "text"}},
    "text2sql_sft": {"file_name": "sft.json"},
    "text2sql_pairs": {"file_name": "pairs.json", **_RANKING},
    "text2sql_pairs_heldout": {"file_name": "pairs_heldout.json", **_RANKING},
    "text2sql_prompts": {"file_name": "prompts.json"},
    "text2sql_questions": {"file_name": "questions.json"},
    "text2sql_heldout": {"file_name": "heldout.jsonl"},
}


# File name -> its rows, drawn as they are read, and how many there will be.
Plan = Mapping[str, tuple[Iterable[dict[str, Any]], int]]


@dataclass(frozen=True)
class Manifest:
    """What was written.

    Attributes:
        directory: where. counts: file name -> rows. num_databases: SQLite files.
        training_domains, heldout_domains: disjoint; so are their table names.
        digests: file name -> SHA-256 of the text files, equal for equal arguments.
    """

    directory: Path
    seed: int
    counts: Mapping[str, int]
    num_databases: int
    training_domains: tuple[str, ...]
    heldout_domains: tuple[str, ...]
    digests: Mapping[str, str]


def generate(
    directory: Path,
    *,
    seed: int = 0,
    num_pretrain: int = 400,
    num_pretrain_heldout: int = 60,
    num_sft: int = 400,
    num_pairs: int = 300,
    num_prompts: int = 400,
    num_heldout: int = 100,
    num_heldout_pairs: int = 100,
    num_questions: int = 0,
    hasty_share: float = 0.0,
    languages: Sequence[str] = ("en", "zh"),
    chinese_share: float = 0.3,
    num_tables: int = 240,
    domains: Sequence[Domain] | None = None,
    max_columns: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write the data set under ``directory``; the same arguments give the same bytes.

    A domain (books, loans, ...) lies on one side only: its table names and schemas are in the training files or in
    the held-out ones, never in both.

    Args:
        directory: created when missing; files of an earlier call are replaced. seed: of every choice.
        num_pretrain, num_pretrain_heldout: documents. num_sft, num_prompts, num_heldout: questions.
        num_pairs, num_heldout_pairs: preference pairs. num_questions: for a model to answer, to make pairs of.
        hasty_share: of the SFT answers, ``SELECT *`` where some columns were asked for; preferences can correct that.
        languages: "en", "zh" or both. chinese_share: of all rows when both.
        num_tables: concrete tables, one SQLite file each, a fifth of them held out.
        domains: subjects to draw from; None is all of the package.
        max_columns: at least 3. progress: called with (rows written, rows in all).

    Returns:
        The manifest, also written as ``manifest.json``.

    Raises:
        UserError: languages, counts, shares or max_columns that cannot work.
    """
    domains = tuple(load_domains() if domains is None else domains)
    share = _language_share(languages, chinese_share)
    demonstrate = partial(_demonstration, hasty_share=hasty_share, rng=Random(f"text2sql hasty {seed}"))
    _check(directory, domains, num_tables, max_columns, hasty_share)
    rng = Random(f"text2sql {seed}")
    sides = _split(domains, rng)
    train, test = _pools(sides, num_tables, share, rng, max_columns, directory)
    plan: Plan = {
        "heldout.jsonl": (map(_heldout_row, test.examples(num_heldout)), num_heldout),
        "pairs_heldout.json": (test.pairs(num_heldout_pairs), num_heldout_pairs),
        "pretrain_heldout.jsonl": (test.documents(num_pretrain_heldout), num_pretrain_heldout),
        "sft.json": (map(demonstrate, train.examples(num_sft)), num_sft),
        "pairs.json": (train.pairs(num_pairs), num_pairs),
        "prompts.json": (map(_prompt_row, train.examples(num_prompts)), num_prompts),
        "pretrain.jsonl": (train.documents(num_pretrain), num_pretrain),
        **_only_if_asked("questions.json", map(_prompt_row, train.examples(num_questions)), num_questions),
    }
    counts, digests = _write_files(directory, plan, progress)
    return _write_manifest(Manifest(directory, seed, counts, num_tables, _names(sides[0]), _names(sides[1]), digests))


def _only_if_asked(name: str, rows: Iterable[dict[str, Any]], count: int) -> Plan:
    return {name: (rows, count)} if count else {}


def _names(domains: Sequence[Domain]) -> tuple[str, ...]:
    return tuple(domain.name for domain in domains)


def _write_manifest(manifest: Manifest) -> Manifest:
    content = {key: value for key, value in vars(manifest).items() if key != "directory"}
    write_text(manifest.directory / "manifest.json", json_text(content))
    return manifest


def _write_files(
    directory: Path,
    files: Plan,
    progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, int], dict[str, str]]:
    """Rows written and SHA-256 by file name."""
    total = sum(count for _, count in files.values())
    counts: dict[str, int] = {}
    digests: dict[str, str] = {}
    for name, (rows, _) in files.items():
        written = list(rows)
        digests[name] = _write_rows(directory / name, written)
        counts[name] = len(written)
        if progress:
            progress(sum(counts.values()), total)
    digests["dataset_info.json"] = write_text(directory / "dataset_info.json", json_text(DATASET_INFO))
    return counts, digests


def _pools(
    sides: Sequence[Sequence[Domain]], num_tables: int, share: float, rng: Random, max_columns: int, directory: Path
) -> tuple[Pool, Pool]:
    """Training side and held-out side."""
    num_test = max(2, round(num_tables * HELDOUT_SHARE))
    train = _pool(sides[0], num_tables - num_test, share, rng, max_columns, directory)
    return train, _pool(sides[1], num_test, share, rng, max_columns, directory)


def _pool(domains: Sequence[Domain], count: int, share: float, rng: Random, max_columns: int, directory: Path) -> Pool:
    databases = _databases(domains, count, share, rng, max_columns)
    for database in databases:
        database.write(directory)
    return Pool(databases, directory, share, rng)


def _check(directory: Path, domains: Sequence[Domain], num_tables: int, max_columns: int, hasty_share: float) -> None:
    if not 0 <= hasty_share <= 1:
        raise UserError(f"hasty_share is {hasty_share}: it must lie between 0 and 1")
    make_folder(directory)
    if max_columns < 3:
        raise UserError(f"max_columns is {max_columns}: a table needs at least 3 columns")
    if len(domains) < 2 or num_tables < 10:
        raise UserError("text-to-SQL data need at least 2 domains and num_tables >= 10, or nothing can be held out")


def _language_share(languages: Sequence[str], chinese_share: float) -> float:
    if not languages or not set(languages) <= {"en", "zh"}:
        raise UserError(f'languages is {list(languages)!r}: choose from "en" and "zh"')
    if not 0 <= chinese_share <= 1:
        raise UserError(f"chinese_share is {chinese_share}: it must lie between 0 and 1")
    if len(set(languages)) == 2:
        return chinese_share
    return 1.0 if languages[0] == "zh" else 0.0


def _split(domains: Sequence[Domain], rng: Random) -> tuple[list[Domain], list[Domain]]:
    shuffled = list(domains)
    rng.shuffle(shuffled)
    num_heldout = max(1, round(len(shuffled) * HELDOUT_SHARE))
    return shuffled[num_heldout:], shuffled[:num_heldout]


def _databases(
    domains: Sequence[Domain], count: int, chinese_share: float, rng: Random, max_columns: int
) -> list[Database]:
    """``count`` databases, domains in turn, in each language that is asked for."""
    num_chinese = round(count * chinese_share)
    if 0 < chinese_share < 1:
        num_chinese = min(max(1, num_chinese), count - 1)
    databases = []
    for language, number in (("en", count - num_chinese), ("zh", num_chinese)):
        for i in range(number):
            joined = int((i + 1) * JOINED_SHARE) > int(i * JOINED_SHARE)
            domain = domains[i % len(domains)]
            databases.append(draw_database(domain, language, i, rng, max_columns=max_columns, joined=joined))
    rng.shuffle(databases)
    return databases


def _sft_row(example: Example) -> dict[str, Any]:
    return {"instruction": example.instruction, "input": "", "output": example.query.sql()}


def _demonstration(example: Example, *, hasty_share: float, rng: Random) -> dict[str, Any]:
    query = hasty(example.query) if rng.random() < hasty_share else example.query
    return _sft_row(example) | {"output": query.sql()}


def _prompt_row(example: Example) -> dict[str, Any]:
    return _sft_row(example) | {"db": example.database.file, "gold": example.query.sql()}


def _heldout_row(example: Example) -> dict[str, Any]:
    return _sft_row(example) | {
        "db": example.database.file,
        "language": example.database.language,
        "kind": example.query.kind,
        "hardness": example.query.hardness,
    }


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        text = json_text(rows)
    return write_text(path, text)
