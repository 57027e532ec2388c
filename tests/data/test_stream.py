"""Streamed rows: the rows of a run that has them all, in an order that follows from the seed and the place."""

import json
from dataclasses import replace
from itertools import chain, islice

import pytest

from posttrain.config import DataConfig
from posttrain.data import stream
from posttrain.data.datasets import load_dataset
from posttrain.data.stream import buffered, stream_dataset
from posttrain.errors import UserError

from .test_cache import CHATS, JUDGED, PAIRS, RANKED, TEXTS

STAGES = {"sft": CHATS, "rm": PAIRS, "dpo": PAIRS, "kto": JUDGED, "ppo": CHATS, "pt": TEXTS}


@pytest.fixture
def rows(write_rows):
    def make(rows, name="rows.jsonl", **options):
        return DataConfig(dataset=(str(write_rows(rows, name)),), **{"cutoff_len": 64, "buffer_size": 8, **options})

    return make


def opened(data, tokenizer, stage="sft", *, seed=1, **options):
    return stream_dataset(data, tokenizer, stage, seed=seed, **{"order_seed": seed, **options})


@pytest.mark.parametrize(
    ("stage", "table"), [*STAGES.items(), ("rm", RANKED), ("dpo", RANKED)], ids=[*STAGES, "ranked rm", "ranked dpo"]
)
def test_unshuffled_an_epoch_is_what_is_read_at_once(rows, tokenizer, stage, table):
    data = rows(table)
    whole = load_dataset(data, tokenizer, stage)
    splits = opened(data, tokenizer, stage, shuffle=False)
    count = len(whole.train)
    assert splits.train.take(0, count) == whole.train
    assert splits.train.take(count, count) == whole.train  # the second epoch
    assert replace(splits.report, sequences=whole.report.sequences) == whole.report
    assert splits.report.sequences == whole.report.sequences


@pytest.mark.parametrize("options", [{"packing": True}, {"neat_packing": True}, {"packing": False}])
def test_documents_are_cut_as_all_of_them_would_be(rows, tokenizer, options):
    data = rows(TEXTS, **options)
    whole = load_dataset(data, tokenizer, "pt").train
    assert opened(data, tokenizer, "pt", shuffle=False).train.take(0, len(whole)) == whole


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_goes_on_takes_the_same_rows(rows, tokenizer, stage):
    data = rows(STAGES[stage])

    def stream_of(seed=1):
        return opened(data, tokenizer, stage, seed=seed).train

    at_once, stepwise, late = stream_of(), stream_of(), stream_of()
    rows_of_run = at_once.take(0, 90)
    assert list(chain.from_iterable(stepwise.take(start, 9) for start in range(0, 90, 9))) == rows_of_run
    assert late.take(63, 27) == rows_of_run[63:]
    assert late.take(9, 9) == rows_of_run[9:18]  # back, as when a run falls back to a checkpoint
    assert list(late.first(5)) == rows_of_run[:5]
    assert stream_of(seed=2).take(0, 90) != rows_of_run
    assert late.reseeded(2).take(0, 90) == stream_of(seed=2).take(0, 90)


def test_every_epoch_has_every_row_once_in_another_order(rows, tokenizer):
    data = rows(CHATS)
    count = len(load_dataset(data, tokenizer, "sft").train)
    found = opened(data, tokenizer).train
    epochs = [[tuple(row.input_ids) for row in found.take(i * count, count)] for i in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_buffer_mixes_as_far_as_it_reaches():
    order = list(buffered(range(1000), 50, seed="s"))
    assert sorted(order) == list(range(1000))
    assert order[0] < 50
    assert all(item < place + 50 for place, item in enumerate(order))
    assert sum(abs(item - place) for place, item in enumerate(order)) / 1000 > 15
    assert list(buffered(range(5), 1, seed="s")) == [0, 1, 2, 3, 4]
    assert list(buffered([], 5, seed="s")) == []


def test_no_more_is_read_than_a_step_needs(rows, tokenizer, monkeypatch):
    read = []
    monkeypatch.setattr(stream, "LOOKED_AT", 10)
    rows_of = stream.rows_of

    def counted(*args, **options):
        for row in rows_of(*args, **options):
            read.append(row)
            yield row

    monkeypatch.setattr(stream, "rows_of", counted)
    found = opened(rows([{"prompt": f"q{i}", "response": "a"} for i in range(500)]), tokenizer).train
    read.clear()
    found.take(0, 20)
    assert 20 <= len(read) <= 20 + 8 + 10
    found.take(20, 5)
    assert len(read) <= 25 + 8 + 10


def texts(rows, tokenizer):
    return [tokenizer.decode(row.input_ids) for row in rows]


@pytest.mark.parametrize("key", [None, "doc"])
def test_held_out_rows_are_never_trained_on(rows, tokenizer, key):
    table = [{"prompt": f"q{i}", "response": "a", "doc": i % 10} for i in range(60)]
    splits = opened(rows(table, val_size=6, split_key=key, buffer_size=30), tokenizer)
    trained, held_out = set(texts(splits.train.take(0, 300), tokenizer)), texts(splits.validation, tokenizer)
    assert not trained & set(held_out)
    assert len(held_out) == 6  # of 30 that are looked at, 3 to each value of the column
    assert len(trained) == (54 if key is None else 48)
    assert splits.validation_report.rows_read == 6
    again = opened(rows(table, val_size=6, split_key=key, buffer_size=30), tokenizer, order_seed=5)
    assert texts(again.validation, tokenizer) == held_out


def test_an_evaluation_dataset_is_read_whole(rows, tokenizer, write_rows):
    other = write_rows(CHATS[1:9], "other.json")
    splits = opened(rows(CHATS, eval_dataset=(str(other),)), tokenizer)
    assert len(splits.validation) == 8


def test_datasets_take_turns_in_a_stream(rows, tokenizer, write_rows):
    first = write_rows([{"prompt": f"a{i}", "response": "x"} for i in range(3)], "a.jsonl")
    second = write_rows([{"prompt": f"b{i}", "response": "x"} for i in range(5)], "b.jsonl")
    data = DataConfig(dataset=(str(first), str(second)), cutoff_len=64, mix_strategy="interleave_over")
    found = opened(data, tokenizer, shuffle=False)
    whole = load_dataset(data, tokenizer, "sft").train
    assert found.train.take(0, 25) == (whole * 3)[:25]
    assert found.report.rows_read == 8


def test_twins_have_other_prompts_across_windows(rows, tokenizer, monkeypatch):
    monkeypatch.setattr(stream, "_TWINS", 6)
    found = opened(rows(JUDGED), tokenizer, "kto").train.take(0, 40)  # 6, 6 and 8 of each epoch
    for answer in found:
        start = answer.row.loss_mask.index(True)
        assert answer.mismatched.input_ids[:start] == answer.row.input_ids[:start]
        assert answer.mismatched.input_ids != answer.row.input_ids


def test_the_reference_is_added_by_place(rows, tokenizer):
    found = opened(rows(PAIRS), tokenizer, "dpo").train
    plain = found.take(0, 6)
    told = found.with_ref_logps([(float(i), -float(i)) for i in range(6)])
    assert told.take(2, 3) == [replace(plain[i], ref_logps=(float(i), -float(i))) for i in (2, 3, 4)]


@pytest.mark.parametrize(
    ("table", "stage", "options", "words"),
    [
        ([*CHATS[1:3], {"prompt": "a"}], "sft", {}, ["rows.jsonl, row 3", "'response'"]),
        ([{"title": "a"}], "sft", {}, ["rows.jsonl, row 1", "title"]),
        (CHATS, "sft", {"cutoff_len": 4}, ["no row is left", "now 4"]),
        ([{**row, "kto_tag": True} for row in JUDGED], "kto", {}, ["answers are good"]),
        (CHATS, "sft", {"val_size": 40, "buffer_size": 50}, ["val_size 40", "nothing to train on"]),
    ],
)
def test_bad_rows_are_said_when_they_are_met(rows, tokenizer, table, stage, options, words):
    with pytest.raises(UserError) as caught:
        opened(rows(table, **options), tokenizer, stage).train.take(0, 200)
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_breaks_off_is_said_where_it_does(rows, tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    data = rows([{"prompt": f"q{i}", "response": "a"} for i in range(1200)])
    with path.open("a") as file:
        file.write("\n{broken")
    found = opened(data, tokenizer).train
    assert len(found.take(0, 1000)) == 1000
    with pytest.raises(UserError, match=r"rows\.jsonl, line 1201: malformed JSON"):
        found.take(1000, 200)


def test_rows_of_a_hub_are_downloaded_as_they_are_needed(tokenizer, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(path, **options):
        asked.append(options["streaming"])
        return datasets.IterableDataset.from_generator(lambda: iter(json.loads(json.dumps(CHATS[1:8]))))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("posttrain.data.hub._answers", lambda repo: True)
    found = opened(DataConfig(dataset=("owner/name",), cutoff_len=64), tokenizer, shuffle=False).train
    assert len(list(islice(found.first(7), 7))) == 7
    assert set(asked) == {True}


def test_both_sides_of_a_held_out_pair_are_held_out(rows, tokenizer):
    pairs = [{"prompt": f"q{i}", "chosen": "yes", "rejected": f"no {i}"} for i in range(40)]
    data = rows(pairs, val_size=4, buffer_size=40)
    found = opened(data, tokenizer, "kto")
    assert sorted(answer.desirable for answer in found.validation) == [False] * 4 + [True] * 4


def test_judged_answers_of_one_kind_are_said_before_the_run(rows, tokenizer, monkeypatch):
    good = [{"prompt": f"q{i}", "response": f"a{i}", "kto_tag": True} for i in range(40)]
    bad = [{**row, "kto_tag": False} for row in good]
    with pytest.raises(UserError, match=r"all 40 answers are good \(true\)"):
        opened(rows(good), tokenizer, "kto")
    monkeypatch.setattr(stream, "LOOKED_AT", 20)
    found = opened(rows(good + bad, buffer_size=10), tokenizer, "kto")
    assert any("the first 20 answers are all good" in note for note in found.notes)
    assert {answer.desirable for answer in found.train.take(0, 80)} == {True, False}
