"""Tokens as text: whole characters, special tokens, what trains, where something is missing."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from posttrain.data.template import EncodedRow
from posttrain.diagnose.paint import Paint
from posttrain.diagnose.pieces import Piece, cuts_of, pieces


def row_of(tokenizer, prompt, answer):
    before, after = tokenizer(prompt)["input_ids"], tokenizer(answer)["input_ids"]
    return EncodedRow([*before, *after], [False] * len(before) + [True] * len(after))


@pytest.mark.parametrize(
    "text", ["查看备案有效期", "naïve café 🙂🙂", "a\n\n\tb  c", "", "\ufffd broken already \ufffd"]
)
def test_pieces_join_to_the_text(tiny_tokenizer, text):
    row = row_of(tiny_tokenizer, f"<|im_start|>user\n{text}<|im_end|>", f"{text}<|im_end|>")
    found = pieces(tiny_tokenizer, row)
    assert "".join(piece.text for piece in found) == f"<|im_start|>user\n{text}<|im_end|>{text}<|im_end|>"
    assert [token for piece in found for token in piece.ids] == row.input_ids
    assert [piece.trains for piece in found for _ in piece.ids] == row.loss_mask


def test_a_character_of_several_tokens_is_one_piece(tiny_tokenizer):
    found = pieces(tiny_tokenizer, row_of(tiny_tokenizer, "", "查看"))
    assert [(piece.text, len(piece.ids)) for piece in found] == [("查", 3), ("看", 3)]


def test_half_a_character_does_not_swallow_what_follows(tiny_tokenizer):
    ids = tiny_tokenizer("查<|im_end|>user")["input_ids"]
    row = EncodedRow(ids[1:], [True] * (len(ids) - 1))
    found = pieces(tiny_tokenizer, row)
    assert [piece.text for piece in found if piece.is_special] == ["<|im_end|>"]
    assert "".join(piece.text for piece in found).endswith("<|im_end|>user")


def test_what_trains_ends_where_the_mask_ends(tiny_tokenizer):
    ids = tiny_tokenizer("查")["input_ids"]
    found = pieces(tiny_tokenizer, EncodedRow(ids, [False, True, True]))
    assert [piece.trains for piece in found for _ in piece.ids] == [False, True, True]
    assert found[0].ids == (ids[0],)


def test_blanks_between_sentencepiece_words_stay():
    vocabulary = {word: i for i, word in enumerate(["<unk>", "▁hello", "▁world", "s", "<end>"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", unk_token="<unk>")
    found = pieces(tokenizer, EncodedRow([1, 2, 3, 4], [False, True, True, True]))
    assert [piece.text for piece in found] == ["hello", " world", "s", "<end>"]
    assert [piece.is_special for piece in found] == [False, False, False, True]


def test_cuts_are_found_where_they_were_made():
    full = list(range(100))
    assert cuts_of(full, [*full[:20], *full[50:90]]) == {20: 30, 60: 10}
    assert cuts_of(full, full[:40]) == {40: 60}
    assert cuts_of(full, full[30:]) == {0: 30}
    assert cuts_of(full, full) == {}


def test_cuts_of_very_long_rows_count_the_same():
    chance = random.Random(3)
    full = [chance.randrange(50) for _ in range(9000)]
    kept = [*full[:2000], 99, *full[4000:6000], 98]
    assert sum(cuts_of(full, kept).values()) == len(full) - len(kept)


def test_marks_without_colours():
    row = [Piece("say ", (1,)), Piece("", cut=7), Piece("yes", (2,), True), Piece("<e>", (3,), True, is_special=True)]
    paint = Paint(colours=False)
    assert paint.text(row) == "say {-7 tokens cut-}{+yes<e>+}"
    assert paint.ids(row) == "1 {+2 3+}"


def test_colours_say_the_same_as_marks():
    row = [Piece("q\n", (1,)), Piece("yes", (2,), True)]
    painted = Paint(colours=True).text(row)
    asked, answered = painted.split("yes")[0].split("\n")
    assert "↵" in asked
    assert "48;5;" not in asked  # the background of what trains
    assert "48;5;" in answered


def test_text_cannot_steer_the_terminal():
    row = [Piece("a\x1b[2Jb\rc\u202ed", (1,), True)]
    for paint in (Paint(colours=True), Paint(colours=False)):
        text = paint.text(row)
        assert "\x1b[2J" not in text
        assert "\\x1b[2Jb\\rc\\u202ed" in text
