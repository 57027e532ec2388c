import json
import sqlite3
from collections import Counter

import pytest

from posttrain.data.text2sql import DATASET_INFO, examples, generate
from posttrain.data.text2sql.mistakes import MISTAKES
from posttrain.data.text2sql.sampling import WEIGHTS
from posttrain.data.text2sql.tables import load_domains
from posttrain.errors import UserError

SMALL = {
    "num_pretrain": 20,
    "num_pretrain_heldout": 6,
    "num_sft": 20,
    "num_pairs": 15,
    "num_prompts": 20,
    "num_heldout": 12,
    "num_heldout_pairs": 8,
    "num_tables": 20,
}


def read(directory, name):
    text = (directory / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if name.endswith("jsonl") else json.loads(text)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("text2sql")
    return directory, generate(directory, seed=7)


def rows_of(directory, db, sql):
    connection = sqlite3.connect(directory / db)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def test_every_file_holds_the_rows_asked_for(data):
    directory, manifest = data
    assert manifest.counts == {
        "heldout.jsonl": 100,
        "pairs_heldout.json": 100,
        "pretrain_heldout.jsonl": 60,
        "sft.json": 400,
        "pairs.json": 300,
        "prompts.json": 400,
        "pretrain.jsonl": 400,
    }
    for name, count in manifest.counts.items():
        assert len(read(directory, name)) == count
        assert b"\r" not in (directory / name).read_bytes()
    assert len(list((directory / "databases").iterdir())) == manifest.num_databases == 240
    assert read(directory, "manifest.json")["counts"] == manifest.counts


def test_dataset_info_names_every_file(data):
    directory, manifest = data
    info = read(directory, "dataset_info.json")
    assert info == DATASET_INFO
    assert {entry["file_name"] for entry in info.values()} == {*manifest.counts, "questions.json"}
    assert info["text2sql_pairs"]["ranking"] is True


def test_questions_to_make_pairs_of_come_on_top_and_change_nothing_else(tmp_path):
    plain, more = (generate(tmp_path / str(count), seed=7, **SMALL, num_questions=count) for count in (0, 9))
    assert {name: more.digests[name] for name in plain.digests} == plain.digests
    rows = read(tmp_path / "9", "questions.json")
    assert len(rows) == more.counts["questions.json"] == 9
    seen = {row["instruction"] for name in ("sft.json", "prompts.json") for row in read(tmp_path / "9", name)}
    assert not seen & {row["instruction"] for row in rows}
    assert all(rows_of(tmp_path / "9", row["db"], row["gold"]) for row in rows)


def test_annotators_in_a_hurry_ask_for_every_column(tmp_path):
    plain, half, all_of_them = (generate(tmp_path / str(s), seed=7, **SMALL, hasty_share=s) for s in (0.0, 0.5, 1.0))
    assert {name for name in plain.digests if plain.digests[name] != half.digests[name]} == {"sft.json"}
    right, hurried = ([row["output"] for row in read(tmp_path / s, "sft.json")] for s in ("0.0", "1.0"))
    changed = [(a, b) for a, b in zip(right, hurried, strict=True) if a != b]
    assert 0.4 * len(right) < len(changed) < len(right)
    for a, b in changed:
        assert b.startswith("SELECT * FROM ")
        assert b.partition(" FROM ")[2] == a.partition(" FROM ")[2]
    mixed = [row["output"] for row in read(tmp_path / "0.5", "sft.json")]
    assert all(row in pair for row, pair in zip(mixed, zip(right, hurried, strict=True), strict=True))
    assert mixed not in (right, hurried)
    assert all_of_them.counts == plain.counts


def test_shapes_are_those_of_the_formats(data):
    directory, _ = data
    row = read(directory, "sft.json")[0]
    assert set(row) == {"instruction", "input", "output"}
    assert row["instruction"].startswith("<question>:")
    assert "\nCREATE TABLE " in row["instruction"]
    assert row["instruction"].endswith(");")
    pair = read(directory, "pairs.json")[0]
    assert pair["conversations"][0]["from"] == "human"
    assert pair["chosen"]["from"] == pair["rejected"]["from"] == "gpt"
    prompt = read(directory, "prompts.json")[0]
    assert prompt["gold"] == prompt["output"]
    assert (directory / prompt["db"]).is_file()
    assert set(read(directory, "heldout.jsonl")[0]) >= {"instruction", "output", "db", "language", "kind", "hardness"}
    assert all(set(row) == {"text"} for row in read(directory, "pretrain.jsonl"))


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    first = generate(tmp_path / "a", seed=3, **SMALL)
    second = generate(tmp_path / "b", seed=3, **SMALL)
    other = generate(tmp_path / "c", seed=4, **SMALL)
    assert first.digests == second.digests
    assert other.digests["sft.json"] != first.digests["sft.json"]
    for path in (tmp_path / "a" / "databases").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "databases" / path.name).read_bytes()


def test_generating_again_in_place_changes_nothing(tmp_path):
    first = generate(tmp_path, seed=3, **SMALL)
    assert generate(tmp_path, seed=3, **SMALL).digests == first.digests


def test_domains_share_no_table_name():
    owners = Counter(name for domain in load_domains() for name in domain.table_names())
    assert len(load_domains()) >= 40
    assert [name for name, count in owners.items() if count > 1] == []


def test_held_out_domains_and_tables_never_occur_in_training_files(data):
    directory, manifest = data
    training, heldout = set(manifest.training_domains), set(manifest.heldout_domains)
    assert training
    assert heldout
    assert not training & heldout

    def tables(text):
        return {part.split(" (")[0] for part in text.split("CREATE TABLE ")[1:]}

    def shown(*names):
        found = set()
        for name in names:
            for row in read(directory, name):
                found |= tables(row.get("text") or row.get("instruction") or row["conversations"][0]["value"])
        return found

    trained_on = shown("pretrain.jsonl", "sft.json", "pairs.json", "prompts.json")
    tested_on = shown("pretrain_heldout.jsonl", "pairs_heldout.json", "heldout.jsonl")
    assert len(trained_on) > 60
    assert len(tested_on) > 15
    assert not trained_on & tested_on
    owner = {name: domain.name for domain in load_domains() for name in domain.table_names()}
    assert {owner[name] for name in trained_on} <= training
    assert {owner[name] for name in tested_on} <= heldout


def test_gold_answers_run_and_are_not_empty(data):
    directory, _ = data
    for row in read(directory, "heldout.jsonl") + read(directory, "prompts.json"):
        rows = rows_of(directory, row["db"], row["output"])
        assert rows
        assert any(cell is not None for row_ in rows for cell in row_)
        assert len(rows) < 1000


def test_rejected_answers_fail_or_give_something_else(data):
    directory, _ = data
    for row in read(directory, "pairs.json") + read(directory, "pairs_heldout.json"):
        gold = rows_of(directory, row["db"], row["chosen"]["value"])
        try:
            wrong = rows_of(directory, row["db"], row["rejected"]["value"])
        except sqlite3.Error:
            continue
        ordered = row["kind"] == "order"
        # Values, not their types: 5 and 5.0 are the same answer.
        assert (wrong != gold) if ordered else (Counter(wrong) != Counter(gold)), row


def test_every_mistake_and_every_kind_occurs(data):
    directory, _ = data
    pairs = read(directory, "pairs.json")
    mistakes = Counter(row["mistake"] for row in pairs)
    assert set(mistakes) == set(MISTAKES)
    assert max(mistakes.values()) < 0.3 * len(pairs)
    assert {row["kind"] for row in pairs} == {*WEIGHTS, "join"}
    heldout = read(directory, "heldout.jsonl")
    assert {row["hardness"] for row in heldout} == {"easy", "medium", "hard"}
    assert 0.03 < sum(row["kind"] == "join" for row in heldout) / len(heldout) < 0.16


def test_a_missing_cast_is_all_that_is_missing(data):
    directory, _ = data
    rows = [row for row in read(directory, "pairs.json") if row["mistake"] == "missing_cast"]
    assert rows
    for row in rows:
        chosen = row["chosen"]["value"]
        assert "VARCHAR" in row["conversations"][0]["value"]
        bare = chosen.replace("CAST(", "").replace(" AS REAL)", "").replace("date(", "")
        assert bare.replace(")", "") == row["rejected"]["value"].replace(")", "")


def test_questions_do_not_repeat_and_mix_languages_by_share(data):
    directory, _ = data
    instructions = [row["instruction"] for name in ("sft.json", "prompts.json") for row in read(directory, name)]
    instructions += [row["conversations"][0]["value"] for row in read(directory, "pairs.json")]
    assert len(set(instructions)) == len(instructions)
    languages = Counter(row["language"] for row in read(directory, "heldout.jsonl"))
    assert languages == {"en": 70, "zh": 30}


def test_english_prompts_stay_short(data):
    directory, _ = data
    english = [row for row in read(directory, "sft.json") if row["instruction"].isascii()]
    assert len(english) == 280
    # About three characters per token here, so this is some 75 and 30 tokens.
    assert sorted(len(row["instruction"]) for row in english)[int(0.9 * 280)] < 230
    assert sorted(len(row["output"]) for row in english)[int(0.9 * 280)] < 110


@pytest.mark.parametrize(("languages", "ascii_rows"), [(("en",), 20), (("zh",), 0)])
def test_one_language_alone(tmp_path, languages, ascii_rows):
    generate(tmp_path, languages=languages, **SMALL)
    assert sum(row["instruction"].isascii() for row in read(tmp_path, "sft.json")) == ascii_rows


def test_progress_reaches_the_total(tmp_path):
    seen = []
    generate(tmp_path, progress=lambda done, total: seen.append((done, total)), **SMALL)
    total = sum(count for name, count in SMALL.items() if name != "num_tables")
    assert seen[-1] == (total, total)


def test_max_columns_bounds_the_tables(tmp_path):
    generate(tmp_path, max_columns=3, **SMALL)
    for row in read(tmp_path, "sft.json"):
        if row["instruction"].count("CREATE TABLE") == 1:
            assert row["instruction"].count(",\n") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"languages": ("fr",)}, "languages"),
        ({"languages": ()}, "languages"),
        ({"chinese_share": 1.5}, "chinese_share"),
        ({"hasty_share": 1.5}, "between 0 and 1"),
        ({"max_columns": 2}, "max_columns"),
        ({"num_tables": 3}, "num_tables"),
        ({"domains": load_domains()[:1]}, "domains"),
    ],
)
def test_impossible_requests_are_refused(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        generate(tmp_path, **{**SMALL, **arguments})


def test_tables_without_enough_questions_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "draw_query", lambda database, rng: None)
    with pytest.raises(UserError, match="too few different questions"):
        generate(tmp_path, **SMALL)


def test_a_file_in_the_way_is_reported(tmp_path):
    (tmp_path / "taken").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="taken"):
        generate(tmp_path / "taken", **SMALL)


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "dataset_info.json").mkdir()
    with pytest.raises(UserError, match=r"dataset_info\.json cannot be written: "):
        generate(tmp_path, **SMALL)
