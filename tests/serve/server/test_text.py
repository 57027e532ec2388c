"""Text while its tokens come: whole characters, no part of a stop string, and the same text in the end."""

import random

import pytest

from posttrain.serve.server.text import TextStream

ALPHABET = ["a", "b", "ab", "é", "猕猴桃", " ", "ab c", "\n"]


def decode(ids):
    """Bytes, as a byte-level tokenizer decodes them."""
    return bytes(ids).decode("utf-8", errors="replace")


def pieces(text, stops=(), more=()):
    stream = TextStream(decode, stops)
    found = []
    for byte in [*text.encode(), *more]:
        found.append(stream.add(byte))
        if stream.is_stopped:
            break
    return [*found, stream.finish()], stream


def test_a_character_comes_whole():
    found, _ = pieces("né 猕")
    assert [piece for piece in found if piece] == ["n", "é", " ", "猕"]


def test_bytes_that_are_no_text_come_at_the_end():
    found, _ = pieces("ok", more=[0xE7])
    assert found == ["o", "k", "", "\ufffd"]


def test_what_may_become_a_stop_string_is_held_back():
    found, stream = pieces("so ENd of it END not this", ["END"])
    assert "".join(found) == "so ENd of it "
    assert stream.is_stopped
    assert found[3:5] == ["", ""], "EN may become END"
    assert found[5] == "ENd"


def test_the_first_stop_string_counts():
    found, _ = pieces("one two three", ["three", "two"])
    assert "".join(found) == "one "


def test_a_stop_string_that_never_comes_costs_nothing():
    found, stream = pieces("so EN", ["END"])
    assert "".join(found) == "so EN"
    assert not stream.is_stopped


@pytest.mark.parametrize("seed", range(30))
def test_pieces_are_the_text_up_to_the_first_stop_string(seed):
    chance = random.Random(seed)
    text = "".join(chance.choices(ALPHABET, k=chance.randint(0, 25)))
    stops = ["".join(chance.choices(ALPHABET, k=chance.randint(1, 3))) for _ in range(chance.randint(0, 3))]
    found, stream = pieces(text, stops)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert "".join(found) == text
        assert not stream.is_stopped
        return
    shortest = text.encode()[: min(len(text[:end].encode()) for end in ends)].decode()
    starts = [shortest.find(stop) for stop in stops if stop in shortest]
    assert "".join(found) == text[: min(starts)]
    assert stream.is_stopped


class Spaced:
    """A tokenizer that writes a space before every word but the first, as SentencePiece does."""

    words = ("the", "cat", "sat", "on", "it")

    def __call__(self, ids):
        return " ".join(self.words[token] for token in ids)


def test_spaces_depend_on_what_stands_before():
    stream = TextStream(Spaced())
    assert [stream.add(token) for token in (0, 1, 2, 4)] == ["the", " cat", " sat", " it"]
    assert stream.finish() == ""
