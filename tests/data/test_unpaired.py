"""Answers judged one by one: rows in the shapes in which users have them, labels, mismatched twins, batches."""

import json
from dataclasses import replace

import pytest

from posttrain.config import DataConfig
from posttrain.data.batches import collate_unpaired
from posttrain.data.datasets import load_dataset
from posttrain.data.template import EncodedRow
from posttrain.data.unpaired import EncodedAnswer, require_both_kinds, with_mismatched
from posttrain.errors import UserError

ALPACA = [
    {"instruction": "Name a fruit.", "input": "", "output": "fig", "kto_tag": True},
    {"instruction": "Name a tree.", "input": "A big one.", "output": "no idea", "kto_tag": False},
    {"instruction": "Name a bird.", "input": "", "output": "owl", "kto_tag": True},
]


@pytest.fixture
def read(tmp_path, tokenizer):
    """Splits of rows for stage kto; ``info`` is their entry of dataset_info.json."""

    def read(rows, *, info=None, **keys):
        (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
        name = str(tmp_path / "rows.json")
        if info is not None:
            entry = {"judged": {"file_name": "rows.json", **info}}
            (tmp_path / "dataset_info.json").write_text(json.dumps(entry), encoding="utf-8")
            name = "judged"
        data = DataConfig(dataset=(name,), dataset_dir=str(tmp_path), **{"cutoff_len": 256, **keys})
        return load_dataset(data, tokenizer, "kto")

    return read


@pytest.fixture
def texts(tokenizer):
    """(whole text, text that trains, label) of each answer."""

    def texts(answers):
        return [
            (
                tokenizer.decode(answer.row.input_ids),
                tokenizer.decode([t for t, on in zip(answer.row.input_ids, answer.row.loss_mask, strict=True) if on]),
                answer.desirable,
            )
            for answer in answers
        ]

    return texts


def test_alpaca_rows_with_the_column_that_llamafactory_has(read, texts):
    splits = read(ALPACA)
    asked = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert texts(splits.train) == [
        (asked.format("Name a fruit.") + "fig<|im_end|>", "fig<|im_end|>", True),
        (asked.format("Name a tree.\nA big one.") + "no idea<|im_end|>", "no idea<|im_end|>", False),
        (asked.format("Name a bird.") + "owl<|im_end|>", "owl<|im_end|>", True),
    ]
    assert (splits.report.rows_read, splits.report.kept, splits.report.end_of_turn_kept) == (3, 3, 3)


def sharegpt(label, column="label"):
    turns = [("user", "Hi."), ("assistant", "Hello."), ("user", "Name a fruit."), ("assistant", "fig")]
    return {"messages": [{"role": role, "content": content} for role, content in turns], column: label}


def test_chats_whose_label_is_mapped(read, texts):
    """Only the last answer is judged: earlier ones are part of its prompt."""
    columns = {"messages": "messages", "kto_tag": "verdict"}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    rows = [sharegpt(True, "verdict"), sharegpt(False, "verdict")]
    splits = read(rows, info={"formatting": "sharegpt", "columns": columns, "tags": tags})
    (whole, trained, good), (_, _, bad) = texts(splits.train)
    assert whole.count("<|im_start|>") == 4
    assert trained == "fig<|im_end|>"
    assert (good, bad) == (True, False)


def test_the_column_label_is_found_and_a_mapped_one_goes_before_it(read):
    assert [answer.desirable for answer in read([sharegpt(True), sharegpt(False)]).train] == [True, False]
    rows = [{**row, "label": row["kto_tag"], "verdict": not row["kto_tag"]} for row in ALPACA]
    columns = {"prompt": "instruction", "query": "input", "response": "output", "kto_tag": "verdict"}
    assert [answer.desirable for answer in read(rows, info={"columns": columns}).train] == [False, True, False]
    both = [{**row, "label": not row["kto_tag"]} for row in ALPACA]
    assert [answer.desirable for answer in read(both).train] == [True, False, True]


@pytest.mark.parametrize(
    ("good", "bad"), [(True, False), (1, 0), ("true", "false"), ("True", "False"), (" yes ", "no"), ("1", "0")]
)
def test_labels_as_people_write_them(read, good, bad):
    rows = [{**row, "kto_tag": good if row["kto_tag"] else bad} for row in ALPACA]
    assert [answer.desirable for answer in read(rows).train] == [True, False, True]


@pytest.mark.parametrize("label", ["good", 2, 0.5, None, "", [True]])
def test_a_label_that_is_neither_is_named_with_its_row(read, label):
    rows = [*ALPACA, {**ALPACA[0], "kto_tag": label}]
    with pytest.raises(UserError, match=r"rows\.json, row 4: 'kto_tag' must be true or false, found ") as caught:
        read(rows)
    assert repr(label) in str(caught.value)


def test_a_missing_label_is_named_with_what_there_is(read):
    bare = [{key: value for key, value in row.items() if key != "kto_tag"} for row in ALPACA]
    with pytest.raises(
        UserError, match=r"rows\.json, row 1: no column 'kto_tag' \(found: instruction, input, output\)"
    ):
        read(bare)
    columns = {"prompt": "instruction", "response": "output", "kto_tag": "verdict"}
    with pytest.raises(UserError, match=r"row 1: no column 'verdict' \(found: .*kto_tag\)"):
        read(ALPACA, info={"columns": columns})
    with pytest.raises(UserError, match=r"row 3: no column 'kto_tag'"):
        read([*ALPACA[:2], bare[2]])


def test_a_pair_is_a_good_answer_and_a_bad_one(read, texts):
    pairs = [{"prompt": "Name a fruit.", "chosen": "fig", "rejected": "pea"}]
    pairs += [{"prompt": "Name a tree.", "chosen": "oak", "rejected": "oak"}]
    splits = read(pairs)
    assert [(trained, good) for _, trained, good in texts(splits.train)] == [
        ("fig<|im_end|>", True),
        ("pea<|im_end|>", False),
    ]
    assert splits.report.dropped == {"chosen equals rejected": 1}


@pytest.mark.parametrize(("label", "said"), [(True, r"good \(true\)"), (False, r"bad \(false\)")])
def test_one_label_only_leaves_nothing_to_tell_apart(read, label, said):
    rows = [{**row, "kto_tag": label} for row in ALPACA]
    with pytest.raises(UserError, match=rf"all 3 answers are {said}: stage kto learns from good and bad ones"):
        read(rows)


def test_what_is_held_out_may_be_of_one_kind(read, tmp_path):
    rows = [{**ALPACA[i % 3], "instruction": f"Name number {i}."} for i in range(9)]
    splits = read(rows, val_size=1)
    assert (len(splits.train), len(splits.validation)) == (8, 1)
    # it is what trains that needs both: here the only bad answer is held out
    path = tmp_path / "held.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    good = [row for row in rows if row["kto_tag"]]
    with pytest.raises(UserError, match="all 6 answers are good"):
        read(good, eval_dataset=(str(path),))
    assert len(read(rows, eval_dataset=(str(path),)).validation) == 9


def test_an_empty_answer_is_dropped_and_counted(read):
    splits = read([*ALPACA, {**ALPACA[0], "output": ""}])
    assert splits.report.dropped == {"empty answer": 1}
    assert len(splits.train) == 3


def test_what_is_too_long_is_cut_and_keeps_its_end(read, texts):
    rows = [*ALPACA, {**ALPACA[0], "instruction": "the quick brown fox " * 30, "output": "lazy dog " * 40}]
    splits = read(rows, cutoff_len=48)
    assert splits.report.truncated == 1
    assert max(len(answer) for answer in splits.train) <= 48
    long = texts(splits.train)[3]
    assert long[0].endswith("<|im_end|>")
    assert long[1].startswith("lazy dog")
    assert all(len(answer.mismatched) <= 48 for answer in splits.train)


def judged(prompt, answer, *, desirable=True):
    row = EncodedRow([*prompt, *answer], [False] * len(prompt) + [True] * len(answer))
    return EncodedAnswer(row, desirable, row)


def twins(answers, cutoff_len=20):
    return [(a.mismatched.input_ids, a.mismatched.loss_mask) for a in with_mismatched(answers, cutoff_len)]


def test_each_prompt_gets_the_answer_of_the_other_prompt_before_it():
    answers = [judged([1], [11, 12]), judged([2, 2], [21]), judged([3], [31, 32, 33])]
    assert twins(answers) == [
        ([1, 31, 32, 33], [False, True, True, True]),
        ([2, 2, 11, 12], [False, False, True, True]),
        ([3, 21], [False, True]),
    ]
    # what is judged stays what it was
    assert [(a.row, a.desirable) for a in with_mismatched(answers, 20)] == [(a.row, a.desirable) for a in answers]


def test_answers_to_the_same_prompt_are_no_mismatch():
    """The two sides of a pair stand one behind the other."""
    answers = [judged([1], [11]), judged([1], [12]), judged([2], [21]), judged([2], [22])]
    assert [ids for ids, _ in twins(answers)] == [[1, 22], [1, 22], [2, 12], [2, 12]]
    # where there is no other prompt, there is no other answer to it
    assert [ids for ids, _ in twins(answers[:2])] == [[1, 12], [1, 11]]
    assert [ids for ids, _ in twins(answers[:1])] == [[1, 11]]


def test_a_twin_is_no_longer_than_the_cut_off():
    answers = [judged([1] * 4, [11]), judged([2], [21, 22, 23, 24, 25])]
    assert twins(answers, cutoff_len=6)[0] == ([1, 1, 1, 1, 21, 22], [False] * 4 + [True] * 2)
    # one token of the answer always stays
    assert twins(answers, cutoff_len=4)[0][0] == [1, 1, 1, 1, 21]


def test_both_kinds_are_required():
    good, bad = judged([1], [2]), judged([1], [2], desirable=False)
    require_both_kinds([good, bad])
    with pytest.raises(UserError, match="all 2 answers are bad"):
        require_both_kinds([bad, bad])


def test_a_batch_keeps_twins_in_a_table_of_their_own(read):
    splits = read(ALPACA)
    batch = collate_unpaired(splits.train, 0)
    assert batch.desirable.tolist() == [True, False, True]
    assert batch.ref_logps is batch.mismatched_ref_logps is None
    assert len(batch.mismatched) == 3
    for i, answer in enumerate(splits.train):
        assert batch.input_ids[i, : len(answer.row)].tolist() == answer.row.input_ids
        twin = batch.mismatched.input_ids[i, : len(answer.mismatched)]
        assert twin.tolist() == answer.mismatched.input_ids
        assert batch.mismatched.loss_mask[i].sum() == sum(answer.mismatched.loss_mask)


def test_a_batch_takes_both_log_probabilities_of_each_row(read):
    answers = [replace(answer, ref_logps=(-1.0 - i, -10.0 - i)) for i, answer in enumerate(read(ALPACA).train)]
    batch = collate_unpaired(answers, 0)
    assert batch.ref_logps.tolist() == [-1, -2, -3]
    assert batch.mismatched_ref_logps.tolist() == [-10, -11, -12]
    # an unknown one is none of them
    half = collate_unpaired([answers[0], replace(answers[1], ref_logps=None)], 0)
    assert half.ref_logps is half.mismatched_ref_logps is None
