"""Several datasets in turns, and rows that stay on one side of a split."""

import json
import random
from itertools import chain, islice

import pytest

from posttrain.config import DataConfig
from posttrain.data.datasets import load_dataset
from posttrain.data.formats import TextExample
from posttrain.data.mixing import mixed
from posttrain.data.splits import held_out_places
from posttrain.errors import UserError

NAMES = {"interleave_under": "first_exhausted", "interleave_over": "all_exhausted"}
NAMES["interleave_once"] = "all_exhausted_without_replacement"


def tables(*lengths):
    return [[f"{number}.{i}" for i in range(length)] for number, length in enumerate(lengths)]


@pytest.mark.parametrize(
    ("strategy", "order"),
    [
        ("concat", "0.0 0.1 1.0 1.1 1.2 1.3 2.0 2.1 2.2"),
        ("interleave_under", "0.0 1.0 2.0 0.1 1.1 2.1"),
        ("interleave_over", "0.0 1.0 2.0 0.1 1.1 2.1 0.0 1.2 2.2 0.1 1.3 2.0"),
        ("interleave_once", "0.0 1.0 2.0 0.1 1.1 2.1 1.2 2.2 1.3"),
    ],
)
def test_turns_without_chances(strategy, order):
    assert " ".join(mixed(tables(2, 4, 3), strategy)) == order


@pytest.mark.parametrize("strategy", NAMES)
@pytest.mark.parametrize("lengths", [(3, 4, 5), (5, 1, 3), (4, 4), (1, 6, 2)])
def test_turns_are_those_of_the_library_that_llamafactory_uses(strategy, lengths):
    datasets = pytest.importorskip("datasets")
    sources = [datasets.Dataset.from_dict({"row": rows}) for rows in tables(*lengths)]
    theirs = datasets.interleave_datasets(sources, stopping_strategy=NAMES[strategy])
    assert list(mixed(tables(*lengths), strategy)) == theirs["row"]


@pytest.mark.parametrize("strategy", NAMES)
@pytest.mark.parametrize("seed", range(5))
def test_drawn_turns_end_where_their_name_says(strategy, seed):
    rows = list(mixed(tables(20, 60), strategy, (0.5, 0.5), seed=seed))
    counts = [sum(row.startswith(f"{number}.") for row in rows) for number in (0, 1)]
    # one dataset ends exactly with the last row, the other is before its end (under) or past it (over)
    if strategy == "interleave_once":
        assert sorted(rows) == sorted(chain.from_iterable(tables(20, 60)))
    elif strategy == "interleave_under":
        assert counts[0] == 20
        assert rows[-1] == "0.19"
        assert counts[1] < 60
    else:
        assert counts[1] == 60
        assert rows[-1] == "1.59"
        assert counts[0] > 20
        assert rows.count("0.0") == -(-counts[0] // 20)
    for number in (0, 1):  # each dataset in its own order
        own = [int(row[2:]) for row in rows if row.startswith(f"{number}.")]
        assert own == [i % (20, 60)[number] for i in range(len(own))]


def test_draws_follow_their_chances_and_the_seed():
    def draw(seed):
        return list(islice(mixed(tables(5000, 5000), "interleave_over", (0.8, 0.2), seed=seed), 4000))

    share = sum(row.startswith("0.") for row in draw(1)) / 4000
    assert 0.77 < share < 0.83
    assert draw(1) == draw(1) != draw(2)


def test_a_dataset_without_rows_cannot_take_turns():
    with pytest.raises(UserError, match="dataset 'b' has no usable row"):
        list(mixed([["x"], []], "interleave_over", names=("a", "b")))


def write(folder, name, rows):
    path = folder / name
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def questions(splits, tokenizer, side="train"):
    texts = [tokenizer.decode(row.input_ids) for row in getattr(splits, side)]
    return [text.split("user\n")[1].split("<|im_end|>")[0] for text in texts]


def test_a_run_reads_mixed_datasets_and_says_so(tmp_path, tokenizer):
    a = write(tmp_path, "a.json", [{"prompt": f"a{i}", "response": "x"} for i in range(3)])
    b = write(tmp_path, "b.json", [{"prompt": f"b{i}", "response": "x"} for i in range(8)])
    data = DataConfig(dataset=(a, b), cutoff_len=64, mix_strategy="interleave_over", max_samples=5)
    splits = load_dataset(data, tokenizer, "sft")
    assert questions(splits, tokenizer) == ["a0", "b0", "a1", "b1", "a2", "b2", "a0", "b3", "a1", "b4"]
    assert str(splits.report).startswith("read 8 rows, mixed to 10, kept 10")


def test_a_held_out_row_is_never_drawn(tmp_path, tokenizer):
    a = write(tmp_path, "a.json", [{"prompt": f"a{i}", "response": "x"} for i in range(6)])
    b = write(tmp_path, "b.json", [{"prompt": f"b{i}", "response": "x"} for i in range(60)])
    options = {"dataset": (a, b), "cutoff_len": 64, "val_size": 20}
    plain = load_dataset(DataConfig(**options), tokenizer, "sft", seed=2)
    drawn = load_dataset(
        DataConfig(**options, mix_strategy="interleave_over", interleave_probs=(0.7, 0.3)), tokenizer, "sft", seed=2
    )
    assert questions(drawn, tokenizer, "validation") == questions(plain, tokenizer, "validation")
    assert set(questions(drawn, tokenizer)) == set(questions(plain, tokenizer))
    assert len(drawn.train) > len(plain.train)


ROWS = [{"prompt": f"q{i}", "response": "x", "doc": f"d{i % 12}"} for i in range(60)]


@pytest.mark.parametrize("size", [0.25, 10])
def test_rows_with_one_key_stay_on_one_side_whatever_else_changes(tmp_path, tokenizer, size):
    def sides(rows, seed):
        path = write(tmp_path, "rows.json", rows)
        data = DataConfig(dataset=(path,), cutoff_len=64, val_size=size, split_key="doc")
        splits = load_dataset(data, tokenizer, "sft", seed=seed)
        doc = {row["prompt"]: row["doc"] for row in rows}
        return [{doc[q] for q in questions(splits, tokenizer, side)} for side in ("train", "validation")]

    train, validation = sides(ROWS, 1)
    assert not train & validation
    assert validation
    shuffled = random.Random(0).sample(ROWS, len(ROWS))
    assert sides(shuffled, 2) == [train, validation]
    if size < 1:  # a share goes by the hash alone; a number of rows is filled anew
        more = sides([*ROWS, {"prompt": "new", "response": "x", "doc": "new"}], 1)
        assert more[1] - {"new"} == validation
    else:
        assert 10 <= 5 * len(validation) < 15


def test_a_share_of_many_keys_is_about_that_share():
    from hashlib import sha256

    examples = [TextExample(text="a", group=sha256(str(i).encode()).hexdigest()) for i in range(4000)]
    assert 0.08 < len(held_out_places(examples, 0.1, 1)) / 4000 < 0.12


@pytest.mark.parametrize(
    ("rows", "size", "words"),
    [
        ([*ROWS[:3], {"prompt": "a", "response": "b"}], 0.5, ["row 4", "no column 'doc'", "split_key"]),
        (ROWS[::12], 0.5, ["val_size 0.5", "only 1 values in 5"]),
        (ROWS, 60, ["val_size 60", "leaves nothing", "only 12 values in 60"]),
        (ROWS, 0.0001, ["val_size 0.0001", "holds out none"]),
    ],
)
def test_a_key_that_cannot_split_is_said(tmp_path, tokenizer, rows, size, words):
    data = DataConfig(dataset=(write(tmp_path, "rows.json", rows),), cutoff_len=64, val_size=size, split_key="doc")
    with pytest.raises(UserError) as caught:
        load_dataset(data, tokenizer, "sft")
    for word in words:
        assert word in str(caught.value)
