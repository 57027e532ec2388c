"""How much answers repeat themselves, in any script."""

from __future__ import annotations

import pytest

from posttrain.train.repetition import repeated_share, repetition

PROSE = (
    "The farmers of the valley grow rice on terraces that their ancestors cut into the slopes. In spring the water of "
    "the melting snow is led from one step to the next, and by the time it reaches the river it has fed a hundred "
    "families. Roads came late, so most of what is eaten there is still made there: vinegar, paper, tea and tofu."
)
CHINESE = (
    "山谷里的农民在祖先开凿的梯田上种植水稻。春天，融雪的水从一层引到下一层，等它流进河里时，已经养活了上百户人家。"
    "公路来得很晚，所以那里吃的大多仍在当地制作：醋、纸、茶和豆腐。"
)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("123456789", 0.0),
        ("1234567890", 0.0),
        ("a" * 12, 2 / 3),  # three runs, one of them new
        ("limelimelimelime", 3 / 7),  # seven runs, four of them new
        ("好" * 30, 20 / 21),
        ("limelimelime  \n lime", 0.0),  # one space in the middle: eight runs, all new
    ],
)
def test_by_hand(text, share) -> None:
    assert repeated_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", [PROSE, CHINESE, "SELECT name FROM city WHERE population > 100000 ORDER BY name"])
def test_ordinary_text_hardly_repeats_itself(text) -> None:
    assert repeated_share(text) < 0.05


@pytest.mark.parametrize("phrase", ["Great question! ", "好的，没问题。", "figfig", "so good, so ", "1\n"])
def test_loops_do_whatever_the_script(phrase) -> None:
    assert repeated_share(phrase * 20) > 0.6


def test_indentation_is_no_repetition() -> None:
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    deep = "\n".join(" " * 24 + word for word in words)
    assert repeated_share(deep) == repeated_share(" ".join(words)) == 0.0


def test_answers_count_the_same_however_long() -> None:
    assert repetition(["x" * 1000, "short"]) == pytest.approx(repeated_share("x" * 1000) / 2)
    assert repetition(()) == 0.0
