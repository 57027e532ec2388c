"""Data with one thing wrong each, and what the check says of it."""

import json

import pytest

from posttrain.diagnose.check import check
from posttrain.diagnose.findings import has_errors
from posttrain.diagnose.source import configured
from posttrain.errors import UserError

CHATS = [{"instruction": f"question {i} of {i * 7}", "output": f"answer {i * i}"} for i in range(24)]
PAIRS = [
    {
        "prompt": f"question {i}",
        "chosen": f"good {i}" + " word" * (i % 5),
        "rejected": f"bad {i}" + " word" * (i * 2 % 5),
    }
    for i in range(24)
]
JUDGED = [{"prompt": f"question {i}", "response": f"answer {i}", "kto_tag": bool(i % 2)} for i in range(24)]


@pytest.fixture
def checked(write_rows):
    """Check rows written to a file; returns everything found."""

    def run(rows, *overrides, name="rows.json"):
        return check(configured([write_rows(rows, name)], overrides))

    return run


def found(result, name, level="warning"):
    matching = [finding for finding in result.findings if finding.check == name and finding.level == level]
    assert len(matching) == 1, [finding.line() for finding in result.findings]
    return matching[0]


@pytest.mark.parametrize(("rows", "stage"), [(CHATS, "sft"), (PAIRS, "dpo"), (JUDGED, "kto")])
def test_sound_data_raise_no_warning(checked, rows, stage):
    result = checked(rows)
    assert result.stage == stage
    assert {finding.level for finding in result.findings} == {"ok"}, [f.line() for f in result.findings]


@pytest.mark.parametrize(
    ("row", "stage"),
    [
        ({"text": "a document"}, "pt"),
        ({"instruction": "q", "output": "a"}, "sft"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "sft"),
        ({"messages": [{"role": "user", "content": "q"}]}, "ppo"),
        ({"prompt": "q"}, "ppo"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "dpo"),
        ({"instruction": "q", "output": ["a", "b", "c"]}, "rm"),
        ({"prompt": "q", "completion": "a", "label": False}, "kto"),
        ({"prompt": "q", "completion": "a", "label": "sports"}, "sft"),
    ],
)
def test_the_stage_is_guessed_from_the_columns(write_rows, row, stage):
    assert configured([write_rows([row])], []).method.stage == stage


def test_malformed_rows_are_all_counted_with_their_places(checked):
    rows = [*CHATS, {"instruction": "q", "output": 3}, {"instruction": "q"}, *CHATS]
    finding = found(checked(rows), "schema", "error")
    assert finding.count == 2
    assert [place.rpartition(", ")[2] for place in finding.places] == ["row 25", "row 26"]
    assert "'output' must be text, found int 3" in finding.message
    assert "no column 'output'" in finding.message


def test_a_file_that_cannot_be_read_is_an_error_and_no_end(tmp_path, write_rows):
    (tmp_path / "broken.jsonl").write_text('{"instruction": "q", "output": "a"}\n{"instr\n', encoding="utf-8")
    result = check(configured([write_rows(CHATS), str(tmp_path / "broken.jsonl")], []))
    assert "broken.jsonl, line 2: malformed JSON" in found(result, "reading", "error").message
    assert found(result, "duplicates", "ok")
    assert has_errors(result.findings)


def test_no_usable_row(checked):
    result = checked([{"instruction": "q", "output": ""}])
    assert found(result, "rows", "error")
    assert found(result, "unusable rows").message.endswith("empty answer")


def test_columns_of_several_types(checked):
    rows = [{**row, "level": i if i % 2 else str(i)} for i, row in enumerate(CHATS)]
    result = checked(rows)
    assert "column 'level'" in found(result, "schema").message
    assert result.tables[0].columns["level"] == {"number": 12, "text": 12}
    del rows[3]["level"]
    assert checked(rows).tables[0].columns["level"]["missing"] == 1


def test_exact_and_near_duplicates(checked):
    near = {"instruction": "  QUESTION １ of 7!", "output": "Answer: 1"}
    result = checked([*CHATS, CHATS[4], CHATS[4], near])
    exact = found(result, "duplicates")
    assert exact.count == 2
    assert exact.places[0].endswith("row 25 = row 5")
    almost = found(result, "near duplicates")
    assert almost.count == 1
    assert almost.places[0].endswith("row 27 = row 2")


def test_one_prompt_with_two_answers_is_no_duplicate(checked):
    result = checked([*CHATS, {**CHATS[0], "output": "another answer"}])
    assert found(result, "duplicates", "ok")
    assert found(result, "near duplicates", "ok")


def test_leaks_between_files(checked, write_rows):
    held_out = [CHATS[3], {**CHATS[5], "output": "other"}, {"instruction": "new", "output": "x"}]
    result = checked(CHATS, f"eval_dataset={write_rows(held_out, 'dev.json')}")
    finding = found(result, "leaks")
    assert finding.details == {"same_prompt": 2, "same_prompt_and_answer": 1, "held_out": 3}
    assert finding.places[0].endswith("row 4")
    assert "dev.json, row 1" in finding.places[0]
    clean = checked(CHATS, f"eval_dataset={write_rows(held_out[2:], 'dev.json')}")
    assert found(clean, "leaks", "ok")


def test_leaks_into_the_rows_that_val_size_holds_out(checked):
    result = checked([*CHATS, *CHATS], "val_size=12")
    assert found(result, "leaks").details["held_out"] == 12
    assert found(checked(CHATS, "val_size=99"), "val_size", "error").message.startswith("val_size 99 leaves nothing")


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"instruction": "a new question", "output": "  \n"}, "empty answers"),
        ({"instruction": "a new question", "output": "NaN"}, "placeholder answers"),
        ({"instruction": "a new question", "output": "a new question"}, "answers that repeat the prompt"),
        ({"instruction": "a new question", "output": "yes<|im_end|>"}, "special tokens in the text"),
        ({"instruction": "a new question", "output": "cafÃ©"}, "broken characters"),
        ({"instruction": "a new \ufffd question", "output": "yes"}, "broken characters"),
    ],
)
def test_odd_rows(checked, row, name):
    finding = found(checked([*CHATS, row]), name)
    assert finding.count == 1
    assert finding.places[0].endswith("row 25")


def test_the_models_own_special_tokens_are_looked_for(checked, tiny_llama):
    rows = [*CHATS, {"instruction": "a new question", "output": "<|pad|>"}]
    finding = found(checked(rows, f"model_name_or_path={tiny_llama}"), "special tokens in the text")
    assert finding.places[0].endswith("row 25")


def test_one_answer_to_everything(checked):
    rows = [{**row, "output": "I do not know."} if i % 3 == 0 else row for i, row in enumerate(CHATS)]
    finding = found(checked(rows), "common answer")
    assert finding.count == 8
    assert "'I do not know.'" in finding.message


def test_labels(checked):
    one_kind = found(checked([{**row, "kto_tag": True} for row in JUDGED]), "label balance", "error")
    assert one_kind.details == {"good": 24, "bad": 0}
    uneven = [{**row, "kto_tag": i == 0} for i, row in enumerate(JUDGED)]
    assert "kto_chosen_weight: 23.0" in found(checked(uneven), "label balance").fix
    both = found(checked([*JUDGED, {**JUDGED[2], "kto_tag": True}]), "contradictions")
    assert both.places[0].endswith("row 25 against row 3")


def test_sides_of_pairs(checked):
    same = {"prompt": "p", "chosen": "equal", "rejected": "equal"}
    alike = {"prompt": "q", "chosen": "Equal.", "rejected": "equal"}
    swapped = {"prompt": PAIRS[1]["prompt"], "chosen": PAIRS[1]["rejected"], "rejected": PAIRS[1]["chosen"]}
    wrong = {"prompt": "r", "chosen": "one", "rejected": "two", "margin": -1}
    result = checked([*PAIRS, same, alike, swapped, wrong])
    assert found(result, "unusable rows").places[0].endswith("row 25")
    assert found(result, "sides alike").places[0].endswith("row 26")
    assert found(result, "contradictions").places[0].endswith("row 27 against row 2")
    assert found(checked([*PAIRS, wrong], "stage=rm"), "margins").places[0].endswith("row 25")


def test_length_gives_the_better_side_away(checked):
    rows = [{**row, "chosen": row["chosen"] + " and so on" * 9} for row in PAIRS]
    finding = found(checked(rows), "length bias")
    assert finding.details == {"chosen_longer": 24, "rejected_longer": 0, "pairs": 24}
    assert found(checked(rows[:10]), "length bias", "ok")  # too few to say


def test_what_the_limit_would_cut(checked, tiny_llama):
    long = [{**row, "output": "word " * 30 * (i % 4)} for i, row in enumerate(CHATS)]
    model = f"model_name_or_path={tiny_llama}"
    result = checked(long, model, "cutoff_len=64")
    finding = found(result, "cutoff_len")
    assert finding.count == 18
    assert result.lengths.unit == "tokens"
    assert f"{result.lengths.longest} all" in finding.fix
    assert any("<- cutoff_len 64" in line for line in result.lines())
    assert found(checked(CHATS, model, "cutoff_len=512"), "cutoff_len", "ok")
    dropped = found(checked([{"prompt": "word " * 50}, *CHATS], model, "cutoff_len=100", "stage=ppo"), "cutoff_len")
    assert "dropped" in dropped.message


def test_many_rows_are_measured_on_a_sample_and_the_longest(checked, tiny_llama, monkeypatch):
    monkeypatch.setattr("posttrain.diagnose.measure.SAMPLE", 7)
    rows = [*CHATS, {"instruction": "a new question", "output": "long " * 99}, *CHATS]
    result = checked(rows, f"model_name_or_path={tiny_llama}")
    assert len(result.lengths.values) == 7
    assert result.lengths.sampled_of == 49
    assert result.lengths.longest > 99 > result.lengths.values[-1]


def test_the_rows_of_a_run_are_measured_as_the_run_encodes_them(checked, tiny_llama, tiny_tokenizer, write_rows):
    from posttrain.data.datasets import load_dataset

    model = f"model_name_or_path={tiny_llama}"
    for rows, stage in ((CHATS, "sft"), (PAIRS, "dpo"), (JUDGED, "kto"), ([{"text": "a b c"}], "pt")):
        config = configured([write_rows(rows)], [model, f"stage={stage}"])
        splits = load_dataset(config.data, tiny_tokenizer, stage)
        lengths = check(config).lengths
        mine = lengths.values if stage != "kto" else [lengths.longest]
        theirs = [len(row) for row in splits.train] if stage != "kto" else [max(len(row.row) for row in splits.train)]
        assert sorted(theirs) == list(mine)


def test_a_configuration_and_files_do_not_mix(tmp_path, write_rows):
    path = tmp_path / "c.yaml"
    path.write_text("stage: sft\n", encoding="utf-8")
    with pytest.raises(UserError, match="give it alone"):
        configured([str(path), write_rows(CHATS)], [])
    as_json = tmp_path / "c.json"
    as_json.write_text(json.dumps({"stage": "rm", "dataset": write_rows(PAIRS)}), encoding="utf-8")
    assert configured([str(as_json)], ["cutoff_len=99"]).data.cutoff_len == 99
    with pytest.raises(UserError, match="no `dataset`"):
        check(configured([str(path)], []))
