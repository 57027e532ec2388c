import json

import pytest

from posttrain.config import DataConfig
from posttrain.data.batches import collate, collate_pairs
from posttrain.data.datasets import load_dataset
from posttrain.data.encode import EncodedPair, EncodedPrompt
from posttrain.data.formats import TextExample
from posttrain.data.splits import hold_out
from posttrain.data.template import EncodedRow, Template
from posttrain.errors import UserError

SFT = [{"instruction": f"q{i}", "input": "", "output": f"\nSELECT {i};\n"} for i in range(20)]
PAIRS = [{"prompt": f"q{i}", "chosen": f"yes {i}", "rejected": f"no {i}", "margin": i} for i in range(20)]
TEXTS = [{"text": f"document {i} " * (i + 1)} for i in range(20)]


def data(*paths, **options):
    return DataConfig(dataset=tuple(str(path) for path in paths), **{"cutoff_len": 256, **options})


def test_sft_gives_rows(write_rows, tokenizer):
    splits = load_dataset(data(write_rows(SFT)), tokenizer, "sft")
    assert all(isinstance(row, EncodedRow) for row in splits.train)
    assert tokenizer.decode(splits.train[3].input_ids) == (
        "<|im_start|>user\nq3<|im_end|>\n<|im_start|>assistant\n\nSELECT 3;\n<|im_end|>"
    )
    assert (splits.report.rows_read, splits.report.kept, splits.report.end_of_turn_kept) == (20, 20, 20)
    assert splits.validation == []
    assert splits.validation_report is None
    assert collate(splits.train, splits.template.pad_id).input_ids.shape[0] == 20


def test_rm_gives_pairs(write_rows, tokenizer):
    splits = load_dataset(data(write_rows(PAIRS)), tokenizer, "rm")
    assert all(isinstance(pair, EncodedPair) for pair in splits.train)
    assert splits.report.end_of_turn_kept == 20
    batch = collate_pairs(splits.train, splits.template.pad_id)
    assert batch.margins.tolist() == list(range(20))
    assert load_dataset(data(write_rows(PAIRS)), tokenizer, "rm", margin_column=None).train[3].margin is None


@pytest.mark.parametrize("rows", [SFT, PAIRS])
def test_ppo_gives_prompts_from_answers_and_from_pairs(write_rows, tokenizer, rows):
    splits = load_dataset(data(write_rows(rows)), tokenizer, "ppo")
    assert all(isinstance(prompt, EncodedPrompt) for prompt in splits.train)
    assert splits.train[3].text == "<|im_start|>user\nq3<|im_end|>\n<|im_start|>assistant\n"
    assert splits.train[3].extras["output" if rows is SFT else "chosen"] == rows[3].get("output", "yes 3")


def test_what_sft_learns_continues_what_ppo_asks(write_rows, tokenizer):
    config = data(write_rows(SFT), default_system="Be brief.")
    learned = load_dataset(config, tokenizer, "sft").train
    asked = load_dataset(config, tokenizer, "ppo").train
    for row, prompt in zip(learned, asked, strict=True):
        assert row.input_ids[: row.loss_mask.index(True)] == prompt.input_ids


def test_pt_joins_documents_or_keeps_them_apart(write_rows, make_tokenizer):
    bare = make_tokenizer(None, eos_token="<|end|>")
    path = write_rows(TEXTS)
    joined = load_dataset(data(path, cutoff_len=32), bare, "pt")
    assert joined.template is None
    assert all(len(row) == 32 for row in joined.train[:-1])
    tokens = [token for row in joined.train for token in row.input_ids]
    text = "".join(row["text"] + "<|end|>" for row in TEXTS)
    assert text.startswith(bare.decode(tokens))
    assert len(text) - len(bare.decode(tokens)) <= len("<|end|>")
    assert joined.report.sequences == len(joined.train)
    for options in ({"neat_packing": True}, {"packing": False}):
        apart = load_dataset(data(path, cutoff_len=32, **options), bare, "pt").train
        starts = [bare.decode(row.input_ids).startswith("document") for row in apart]
        assert sum(starts) >= 20
        assert all("<|end|>" not in bare.decode(row.input_ids[:-1]) for row in apart)


def test_sft_on_a_text_column_trains_every_token(write_rows, make_tokenizer):
    bare = make_tokenizer(None)
    path = write_rows(
        [{"review": "good " * 50, "label": 1}, {"review": "bad", "label": 0}, {"review": " ", "label": 0}]
    )
    splits = load_dataset(data(path, cutoff_len=40, text_column="review"), bare, "sft")
    assert [all(row.loss_mask[1:]) for row in splits.train] == [True, True]
    assert len(splits.train[0]) == 40
    assert splits.train[1].input_ids[-1] == bare.eos_token_id
    assert (splits.report.rows_read, splits.report.kept, splits.report.truncated) == (3, 2, 1)
    assert splits.report.dropped == {"empty text": 1}


def test_several_datasets_follow_each_other_and_each_is_limited(write_rows, tokenizer):
    first, second = write_rows(SFT, "a.json"), write_rows(list(reversed(SFT)), "b.jsonl")
    splits = load_dataset(data(first, second, max_samples=2), tokenizer, "sft")
    assert [tokenizer.decode(row.input_ids).split("\n")[1][:-10] for row in splits.train] == ["q0", "q1", "q19", "q18"]


def test_columns_that_only_later_rows_have_are_read(write_rows, tokenizer):
    later = {"instruction": "a", "input": "x", "output": "b", "system": "s", "history": [["p", "o"]]}
    splits = load_dataset(data(write_rows([{"instruction": "a", "output": "b"}, later])), tokenizer, "sft")
    text = tokenizer.decode(splits.train[1].input_ids)
    assert [part.split("\n", 1)[1] for part in text.split("<|im_end|>")[:-1]] == [
        *("s", "<|im_start|>user\np", "<|im_start|>assistant\no"),
        *("<|im_start|>user\na\nx", "<|im_start|>assistant\nb"),
    ]


def test_the_index_decides_over_the_columns(write_rows, tokenizer, tmp_path):
    write_rows([{"q": "a", "wrong": "w", "right": "r"}], "rows.json")
    entry = {"file_name": "rows.json", "columns": {"prompt": "q", "response": "right"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}), encoding="utf-8")
    splits = load_dataset(data("mine", dataset_dir=str(tmp_path)), tokenizer, "sft")
    assert tokenizer.decode(splits.train[0].input_ids).endswith("assistant\nr<|im_end|>")


@pytest.mark.parametrize(("size", "count"), [(5, 5), (0.25, 5), (0.01, 1)])
def test_validation_rows_are_held_out_by_seed(write_rows, tokenizer, size, count):
    config = data(write_rows(SFT), val_size=size)

    def shown(rows):
        return [tokenizer.decode(row.input_ids) for row in rows]

    first, again = (load_dataset(config, tokenizer, "sft", seed=1) for _ in range(2))
    assert len(first.validation) == count
    assert shown(first.validation) == shown(again.validation)
    assert not set(shown(first.train)) & set(shown(first.validation))
    assert len(first.train) + count == 20
    assert (first.report.rows_read, first.validation_report.rows_read) == (20 - count, count)
    others = {tuple(shown(load_dataset(config, tokenizer, "sft", seed=seed).validation)) for seed in range(6)}
    assert len(others) > 1


def test_holding_out_everything_is_refused():
    examples = [TextExample(text="a")] * 3
    assert hold_out(examples, 0, seed=0) == (examples, [])
    with pytest.raises(UserError, match="val_size 3 leaves nothing"):
        hold_out(examples, 3, seed=0)


def test_an_evaluation_dataset_is_read_beside(write_rows, tokenizer):
    path, other = write_rows(SFT, "a.json"), write_rows(SFT[:3], "b.json")
    splits = load_dataset(data(path, eval_dataset=(str(other),)), tokenizer, "sft")
    assert (len(splits.train), len(splits.validation)) == (20, 3)
    assert splits.validation_report.kept == 3


def test_options_of_sft_reach_the_rows(write_rows, tokenizer):
    chats = [{"instruction": "q", "output": "b", "history": [["p", "a"]]}]
    path = write_rows(chats)
    plain, last, all_ = (
        load_dataset(data(path, **options), tokenizer, "sft").train[0]
        for options in ({}, {"mask_history": True}, {"train_on_prompt": True})
    )
    assert sum(last.loss_mask) == 2 < sum(plain.loss_mask) == 4 < sum(all_.loss_mask) == len(all_) - 1


def test_a_template_can_be_given(write_rows, make_tokenizer):
    bare = make_tokenizer(None)
    template = Template(bare, "empty")
    assert load_dataset(data(write_rows(SFT)), bare, "sft", template=template).template is template
    assert load_dataset(data(write_rows(SFT), template="empty"), bare, "ppo").train[0].text == "q0"


@pytest.mark.parametrize(
    ("rows", "stage", "options", "words"),
    [
        ([*SFT[:2], {"instruction": "a", "ouput": "b"}], "sft", {}, ["rows.json, row 3", "'output'", "ouput"]),
        (SFT, "rm", {}, ["rows.json, row 1", "'chosen'"]),
        (SFT, "pt", {}, ["rows.json, row 1", "text_column"]),
        (TEXTS, "sft", {}, ["rows.json, row 1", "text_column: text"]),
        (TEXTS, "sft", {"text_column": "body"}, ["rows.json, row 1", "'body'", "text"]),
        ([], "sft", {}, ["rows.json", "empty"]),
        ([{"title": "a"}], "ppo", {}, ["rows.json, row 1", "title"]),
        (SFT, "ppo", {"cutoff_len": 4}, ["prompt longer than cutoff_len", "rows.json, row 1", "now 4"]),
        (SFT, "sft", {"cutoff_len": 4}, ["longer than cutoff_len", "rows.json, row 1", "now 4"]),
        ([{"prompt": "a", "chosen": "b", "rejected": "b"}], "rm", {}, ["chosen equals rejected", "rows.json, row 1"]),
        (SFT, "sft", {"val_size": 20}, ["val_size", "20 usable rows"]),
        (SFT, "sft", {"template": "chatlm"}, ["'chatlm'", "chatml"]),
    ],
)
def test_bad_input_is_one_clear_message(write_rows, tokenizer, rows, stage, options, words):
    with pytest.raises(UserError) as caught:
        load_dataset(data(write_rows(rows), **options), tokenizer, stage)
    for word in words:
        assert word in str(caught.value)


def test_a_dataset_must_be_named(tokenizer):
    with pytest.raises(UserError, match="no `dataset`"):
        load_dataset(data(), tokenizer, "sft")


def test_a_row_that_the_template_refuses_is_named(write_rows, make_tokenizer):
    refusing = make_tokenizer(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
    )
    path = write_rows([*SFT[:1], {"instruction": "a", "output": "b", "system": "s"}])
    with pytest.raises(UserError, match=r"rows\.json, row 2: the chat template refuses.*no system role"):
        load_dataset(data(path), refusing, "sft")


@pytest.mark.parametrize(
    ("names", "stage", "kind", "kept"),
    [
        (("identity", "alpaca_zh_demo"), "sft", EncodedRow, 1091),
        (("dpo_zh_demo",), "rm", EncodedPair, 300),
        (("identity", "dpo_zh_demo"), "ppo", EncodedPrompt, 391),
        (("wiki_demo",), "pt", EncodedRow, 30),
    ],
)
def test_demo_data_under_a_real_tokenizer(demo_folder, minimind, names, stage, kind, kept):
    splits = load_dataset(data(*names, dataset_dir=str(demo_folder), cutoff_len=4096), minimind, stage)
    assert isinstance(splits.train[0], kind)
    assert splits.report.kept == kept
    assert not splits.report.dropped
    if stage in ("sft", "rm"):
        assert splits.report.end_of_turn_kept == kept


def test_preference_transcripts_are_read(harmless_file, minimind):
    splits = load_dataset(data(harmless_file, max_samples=200), minimind, "rm")
    assert splits.report.kept == 200
    texts = [minimind.decode(side.input_ids) for pair in splits.train for side in (pair.chosen, pair.rejected)]
    assert not any("\n\nAssistant:" in text or "\n\nHuman:" in text for text in texts)
