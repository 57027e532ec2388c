"""What is kept of encoded rows is what would be encoded again, and only where nothing it depends on has changed."""

import json
import multiprocessing
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from posttrain.config import DataConfig
from posttrain.data import cache
from posttrain.data.batches import lengths_of
from posttrain.data.cache import code_fingerprint, fingerprint
from posttrain.data.datasets import load_dataset
from posttrain.data.stored import StoredRows, load_rows, save_rows
from posttrain.data.template import EncodedRow, Template
from posttrain.errors import UserError

CHATS = [{"prompt": f"q{i} 老师", "response": f"a{i}" * (i % 9), "n": [i, 0.1 * i]} for i in range(40)]
PAIRS = [{"prompt": f"q{i}", "chosen": f"yes {i}", "rejected": "no"} for i in range(30)]
PAIRS += [{"prompt": "p", "chosen": "a", "rejected": "b", "margin": 0.1}]
RANKED = [{"prompt": f"q{i}", "output": [f"a{i}", "b", "c"][: 2 + i % 2]} for i in range(20)]
JUDGED = [{"prompt": f"q{i}", "response": f"a{i}", "kto_tag": bool(i % 2)} for i in range(20)]
TEXTS = [{"text": f"document {i} " * (i + 1)} for i in range(20)]
STAGES = {"sft": CHATS, "rm": PAIRS, "dpo": PAIRS, "kto": JUDGED, "ppo": CHATS, "pt": TEXTS}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache of its own, into which everything goes however small."""
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cache, "SMALLEST", 0)
    return tmp_path / "home" / "datasets"


@pytest.fixture
def rows(write_rows):
    """Write rows and give the configuration that reads them."""

    def make(rows, name="rows.json", **options):
        return DataConfig(dataset=(str(write_rows(rows, name)),), **{"cutoff_len": 64, **options})

    return make


def entries(home):
    return sorted(home.glob("*.safetensors"))


def alone(monkeypatch, load):
    """What is loaded without a cache."""
    with monkeypatch.context() as patch:
        patch.setattr(cache, "SMALLEST", 10**12)
        return load()


@pytest.mark.parametrize(
    ("stage", "table"), [*STAGES.items(), ("rm", RANKED), ("dpo", RANKED)], ids=[*STAGES, "ranked rm", "ranked dpo"]
)
def test_kept_rows_are_the_encoded_ones(home, rows, tokenizer, monkeypatch, stage, table):
    data = rows(table, val_size=0.2)

    def load():
        return load_dataset(data, tokenizer, stage, seed=3)

    plain, first, second = alone(monkeypatch, load), load(), load()
    assert isinstance(second.train, StoredRows)
    assert isinstance(plain.train, list)
    for found in (first, second):
        assert list(found.train) == plain.train
        assert list(found.validation) == plain.validation
        assert found.report == plain.report
        assert found.validation_report == plain.validation_report
    assert [type(row) for row in second.train] == [type(row) for row in plain.train]
    assert lengths_of(second.train) == lengths_of(plain.train)
    assert first.notes == plain.notes == ()
    assert "overwrite_cache: true" in second.notes[0]
    assert str(entries(home)[0]) in second.notes[0]
    if stage == "ppo":
        assert [asdict(prompt) for prompt in second.train] == [asdict(prompt) for prompt in plain.train]


def test_rows_are_mapped_not_read(tmp_path):
    psutil = pytest.importorskip("psutil")
    path = tmp_path / "big.safetensors"
    row = EncodedRow(list(range(4000)), [True] * 4000)
    save_rows(path, {"train": [row] * 5000, "validation": []}, {})
    assert path.stat().st_size > 90_000_000
    before = psutil.Process().memory_info().rss
    found = load_rows(path)[0]["train"]
    assert found[-1] == row
    assert found[2:4] == [row, row]
    assert psutil.Process().memory_info().rss - before < 30_000_000
    with pytest.raises(IndexError):
        found[5000]


def test_changed_inputs_are_encoded_anew(home, rows, tokenizer, make_tokenizer, tmp_path):
    data = rows(CHATS)
    load_dataset(data, tokenizer, "sft")
    other = make_tokenizer(tokenizer.chat_template, eos_token="<|end|>")
    for count, (changed, options) in enumerate(
        [
            (replace(data, cutoff_len=63), {}),
            (replace(data, mask_history=True), {}),
            (replace(data, val_size=5), {}),
            (replace(data, val_size=5), {"seed": 7}),
            (replace(data, default_system="Be brief."), {}),
            (replace(data, template="empty"), {}),
            (data, {"tokenizer": other}),
            (rows(CHATS[:-1]), {}),
        ],
        start=2,
    ):
        load_dataset(changed, options.pop("tokenizer", tokenizer), "sft", **options)
        assert len(entries(home)) == count
    for same in (replace(data, preprocessing_batch_size=3), replace(data, overwrite_cache=True, group_by_length=True)):
        rows(CHATS)
        load_dataset(same, tokenizer, "sft")
        assert len(entries(home)) == count


def test_tokenizers_that_differ_have_other_fingerprints(tokenizer, make_tokenizer):
    assert fingerprint(tokenizer) == fingerprint(make_tokenizer(None))  # the chat template is the template's own
    assert fingerprint(tokenizer) != fingerprint(make_tokenizer(None, eos_token="<|end|>"))
    assert Template(tokenizer).fingerprint != Template(tokenizer, "alpaca").fingerprint


def test_a_change_of_the_code_makes_kept_rows_worthless(home, rows, tokenizer, monkeypatch):
    data = rows(CHATS)
    load_dataset(data, tokenizer, "sft")
    assert code_fingerprint() == code_fingerprint()
    monkeypatch.setattr(cache, "code_fingerprint", lambda: "other")
    assert load_dataset(data, tokenizer, "sft").notes == ()


@pytest.mark.parametrize("damage", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ", None])
def test_a_damaged_entry_is_made_again(home, rows, tokenizer, damage):
    data = rows(CHATS)
    plain = load_dataset(data, tokenizer, "sft")
    (entry,) = entries(home)
    entry.write_bytes(entry.read_bytes()[:-100] if damage is None else damage)
    again = load_dataset(data, tokenizer, "sft")
    assert again.notes == ()
    assert again.train == plain.train
    assert load_dataset(data, tokenizer, "sft").notes


def test_overwriting_encodes_anew(home, rows, tokenizer):
    data = rows(CHATS)
    load_dataset(data, tokenizer, "sft")
    before = entries(home)[0].stat().st_mtime_ns
    assert load_dataset(replace(data, overwrite_cache=True), tokenizer, "sft").notes == ()
    assert entries(home)[0].stat().st_mtime_ns > before


def test_small_datasets_are_not_kept(tmp_path, rows, tokenizer, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path / "home"))
    load_dataset(rows(CHATS), tokenizer, "sft")
    assert not (tmp_path / "home").exists()
    monkeypatch.setattr(cache, "SMALLEST", 2000)
    load_dataset(rows(CHATS), tokenizer, "sft")
    assert (tmp_path / "home").exists()


def test_a_cache_that_cannot_be_written_is_said_and_done_without(rows, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SMALLEST", 0)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path / "file"))
    splits = load_dataset(rows(CHATS), tokenizer, "sft")
    assert len(splits.train) == splits.report.kept > 0
    assert "POSTTRAIN_HOME" in splits.notes[0]


def test_what_nobody_used_for_a_month_is_forgotten(home, rows, tokenizer):
    load_dataset(rows(CHATS), tokenizer, "sft")
    (old,) = entries(home)
    os.utime(old, (time.time() - 40 * 86400,) * 2)
    load_dataset(rows(CHATS[:9]), tokenizer, "sft")
    assert old not in entries(home)
    assert len(entries(home)) == 1


def test_malformed_rows_are_said_as_without_a_cache(home, rows, tokenizer):
    with pytest.raises(UserError, match=r"rows\.json, row 3"):
        load_dataset(rows([*CHATS[:2], {"prompt": "a"}]), tokenizer, "sft")
    assert entries(home) == []


class Worker:
    """Loads in a process of its own."""

    def __init__(self, data, folder):
        self.data, self.folder = data, folder

    def __call__(self, number):
        from transformers import AutoTokenizer

        cache.SMALLEST = 0
        splits = load_dataset(self.data, AutoTokenizer.from_pretrained(self.folder), "sft")
        return [row.input_ids for row in splits.train], len(splits.notes)


def test_several_processes_encode_once(home, write_rows, tiny_llama):
    data = DataConfig(dataset=(str(write_rows(CHATS * 20)),), cutoff_len=64, overwrite_cache=True)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.map(Worker(data, str(tiny_llama)), range(3), chunksize=1)
    assert found[0][0] == found[1][0] == found[2][0]
    assert len(entries(home)) == 1
    assert not list(home.glob(".*.partial"))


def test_any_number_of_workers_gives_the_same_rows(rows, tokenizer):
    long = [*CHATS, {"prompt": "x " * 300, "response": "y", "n": 0}]
    data = rows(long)
    plain = load_dataset(data, tokenizer, "sft")
    shared = load_dataset(replace(data, preprocessing_num_workers=2, preprocessing_batch_size=7), tokenizer, "sft")
    assert shared.train == plain.train
    assert shared.report == plain.report
    assert plain.report.truncated == 1
    assert plain.report.dropped


def test_documents_are_shared_out_too(rows, tokenizer):
    data = rows(TEXTS, packing=True)
    shared = replace(data, preprocessing_num_workers=2, preprocessing_batch_size=4)
    assert load_dataset(shared, tokenizer, "pt").train == load_dataset(data, tokenizer, "pt").train


def refusing(make_tokenizer):
    return make_tokenizer(
        "{% if messages[0]['content'] == 'bad' %}{{ raise_exception('no') }}{% endif %}"
        "{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
    )


def test_what_a_worker_refuses_is_named(rows, make_tokenizer):
    data = rows(
        [*CHATS[1:9], {"prompt": "bad", "response": "b"}], preprocessing_num_workers=2, preprocessing_batch_size=3
    )
    with pytest.raises(UserError, match=r"rows\.json, row 9: the chat template refuses"):
        load_dataset(data, refusing(make_tokenizer), "sft")


class TestTokenizedPath:
    def test_rows_are_written_once_and_taken_from_there(self, rows, tokenizer, tmp_path):
        data = rows(PAIRS, tokenized_path=str(tmp_path / "kept"), val_size=3)
        first = load_dataset(data, tokenizer, "rm")
        Path(data.dataset[0]).unlink()
        second = load_dataset(replace(data, dataset=()), tokenizer, "rm")
        assert list(second.train) == first.train
        assert list(second.validation) == first.validation
        assert second.report == first.report
        assert str(tmp_path / "kept") in first.notes[0]
        assert "made with" not in second.notes[0]

    def test_other_settings_are_said(self, rows, tokenizer, tmp_path):
        data = rows(PAIRS, tokenized_path=str(tmp_path / "kept"))
        load_dataset(data, tokenizer, "rm")
        (note,) = load_dataset(replace(data, cutoff_len=32), tokenizer, "rm", seed=9).notes
        assert "cutoff_len 64 (now 32)" in note
        assert "seed 42 (now 9)" in note

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"stage": "dpo"}, ["rows for another stage (rm, now dpo)"]),
            ({"tokenizer": True}, ["rows for another tokenizer"]),
            ({"template": "alpaca"}, ["rows for another template"]),
            ({"damage": True}, ["cannot be read"]),
            ({"foreign": True}, ["written by LLaMA-Factory", "another folder"]),
            ({"file": True}, ["cannot be written"]),
        ],
    )
    def test_what_cannot_be_used_is_refused(self, rows, tokenizer, make_tokenizer, tmp_path, change, words):
        folder = tmp_path / "kept"
        data = rows(PAIRS, tokenized_path=str(folder))
        if "foreign" in change:
            folder.mkdir()
            (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
        elif "file" in change:
            folder.write_text("")
        else:
            load_dataset(data, tokenizer, "rm")
        if "damage" in change:
            (folder / cache.FILE).write_bytes(b"nothing")
        if "tokenizer" in change:
            tokenizer = make_tokenizer(tokenizer.chat_template, pad_token="<|end|>")
        with pytest.raises(UserError) as caught:
            load_dataset(
                replace(data, template=change.get("template")),
                tokenizer,
                change.get("stage", "rm"),
                margin_column="margin",
            )
        for word in ("tokenized_path: ", *words):
            assert word in str(caught.value)


def test_the_same_files_as_other_lists_are_other_rows(home, write_rows, tokenizer):
    first, second = (str(write_rows(CHATS[start : start + 9], f"{start}.json")) for start in (0, 9))
    template = Template(tokenizer)
    one = DataConfig(dataset=(first, second, second), cutoff_len=64)
    two = DataConfig(dataset=(first, second), eval_dataset=(second,), cutoff_len=64)
    assert len(load_dataset(one, tokenizer, "sft", template=template).train) == 24
    found = load_dataset(two, tokenizer, "sft", template=template)
    assert (len(found.train), len(found.validation)) == (16, 8)
    assert len(entries(home)) == 2
