"""A GPT-2 of random weights whose words are the characters of some texts."""

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.errors import UserError
from posttrain.models.load import load_tokenizer
from posttrain.models.new_gpt2 import SPECIAL, generate

SIZE = {"num_layers": 2, "width": 16, "num_heads": 2, "num_positions": 32}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    rows = [{"content": "铁路全长175公里。", "stated": ["长", "Rail"], "n": 3}, {"content": "铁路2008年通车"}]
    (folder / "a.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    (folder / "b.txt").write_text("一座 桥？\n", encoding="utf-8")
    return [str(folder / "a.jsonl"), str(folder / "b.txt")]


@pytest.fixture(scope="module")
def made(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("new") / "base"
    return folder, generate(folder, seed=1, texts=texts, **SIZE)


def test_it_knows_every_character_of_the_texts(made):
    folder, model = made
    for tokenizer in (load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)):
        assert len(tokenizer) == model.num_words
        for text in ("铁路全长175公里。", "一座桥？2008年rail"):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id) == (2, 3)
            assert load_tokenizer(folder).decode(ids, skip_special_tokens=True) == text
        assert tokenizer.eos_token_id == 3
        assert tokenizer.unk_token_id in tokenizer("山")["input_ids"]
    words = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    assert tuple(words[:5]) == SPECIAL
    assert " " not in words


def test_the_same_arguments_give_the_same_bytes(made, texts, tmp_path):
    folder, model = made
    assert generate(tmp_path / "again", seed=1, texts=texts, **SIZE).digests == model.digests
    assert generate(tmp_path / "other", seed=2, texts=texts, **SIZE).digests != model.digests
    config = AutoModelForCausalLM.from_pretrained(folder).config
    assert (config.n_layer, config.n_embd, config.n_positions, config.resid_pdrop) == (2, 16, 32, 0.0)
    assert (config.bos_token_id, config.eos_token_id) == (2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": ()}, "`texts` is empty"),
        ({"texts": ("none.jsonl",)}, "texts: none.jsonl cannot be read: No such file"),
        ({"width": 15}, "width 15 must be a multiple of num_heads 2"),
    ],
)
def test_what_cannot_work(options, message, texts, tmp_path):
    with pytest.raises(UserError, match=message):
        generate(tmp_path / "x", **{"texts": texts, **SIZE, **options})
