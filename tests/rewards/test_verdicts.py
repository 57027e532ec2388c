"""Verdicts read strictly, prompts filled safely."""

import pytest

from posttrain.data.formats import Message
from posttrain.errors import UserError
from posttrain.rewards.verdicts import (
    PLACES,
    judge_prompt,
    pairwise_verdict,
    pointwise_score,
    transcript,
    with_system,
)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Verdict: A", "A"),
        ("B is vague.\n\nVerdict: B\n", "B"),
        ("**Verdict: tie**", "tie"),
        ("final verdict: answer A.", "A"),
        ("- both fail\n结论：平局。", "tie"),
        ("结论：回答 B", "B"),
        ("The first one.\n[[A]]", "A"),
        ("b", "B"),
        ("<think>Verdict: B? No.\nVerdict: B</think>\nVerdict: A", "A"),
        ("Verdict: A\nas I said\nVerdict: A", "A"),
        ("", None),
        ("I prefer A", None),
        ("Verdict: A or B", None),
        ("Verdict: neither", None),
        ("Verdict: A\nOn reflection:\nVerdict: B", None),
        ("Verdict: unclear\nVerdict: B", None),
        ("Verdict: A\nbecause it is longer", None),
        ("<think>Verdict: A", None),
        ("Score: 7", None),
    ],
)
def test_a_verdict_is_the_last_line_and_nothing_contradicts_it(text, verdict):
    assert pairwise_verdict(text) == verdict


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Score: 7", 7.0),
        ("Short but right.\nScore: 7.5.", 7.5),
        ("**Rating: 8/10**", 8.0),
        ("评分：9分", 9.0),
        ("10", 10.0),
        ("[[3]]", 3.0),
        ("Score: <4>", 4.0),
        ("Score: 11", None),
        ("Score: 0.5", None),
        ("Score: -3", None),
        ("Score: 4/5", None),
        ("Score: nan", None),
        ("Score: 8 of 10", None),
        ("Score: 8\nScore: 9", None),
        ("about 7", None),
        ("Verdict: A", None),
        ("", None),
    ],
)
def test_a_score_is_one_number_of_the_scale(text, score):
    assert pointwise_score(text, 1, 10) == score


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("mode", ["pairwise", "pointwise"])
def test_the_built_in_prompts_show_everything_and_ask_for_what_is_understood(mode, language):
    prompt = judge_prompt(mode, language)
    parts = {name: f"<{name}>" for name in PLACES[mode]}
    for text in (prompt.filled(**parts), prompt.reminded(**parts)):
        assert all(part in text for name, part in parts.items())
        assert "{" not in text
    assert len(prompt.reminded(**parts)) > len(prompt.filled(**parts))
    last = prompt.text.strip().splitlines()[-1]
    if mode == "pairwise":
        assert pairwise_verdict(last) == "tie"
    else:
        assert pointwise_score(last.replace(last[last.index("<") :], "7"), 1, 10) == 7


def test_what_is_put_in_is_never_taken_for_a_place():
    prompt = judge_prompt("pairwise", "en")
    text = prompt.filled(prompt="{answer_b} {x}", answer_a="{prompt}", answer_b="secret")
    assert text.count("secret") == 1
    assert "{answer_b} {x}" in text


def test_a_prompt_of_ones_own_is_read_from_a_file(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text('Reply in JSON {"a": 1} on {prompt}: {answer_a} | {answer_b}', encoding="utf-8")
    filled = judge_prompt("pairwise", "en", str(path)).filled(prompt="q", answer_a="x", answer_b="y")
    assert filled == 'Reply in JSON {"a": 1} on q: x | y'
    with pytest.raises(UserError, match=r"where \{answer\} goes.*it is a prompt for `judge_mode: pairwise`"):
        judge_prompt("pointwise", "en", str(path))
    path.write_text("{prompt} {answer_a}", encoding="utf-8")
    with pytest.raises(UserError, match=r"own\.txt does not say where \{answer_b\} goes"):
        judge_prompt("pairwise", "en", str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as UTF-8"):
        judge_prompt("pairwise", "en", str(path))
    with pytest.raises(UserError, match=r"gone\.txt cannot be read"):
        judge_prompt("pairwise", "en", str(tmp_path / "gone.txt"))


def test_a_single_question_is_shown_as_it_is_and_a_chat_with_its_speakers():
    question = (Message("user", "Why?"),)
    assert transcript(question) == "Why?"
    chat = with_system((*question, Message("assistant", "So."), Message("user", "Oh?")), "Be brief.")
    assert transcript(chat) == "[System]\nBe brief.\n\n[User]\nWhy?\n\n[Assistant]\nSo.\n\n[User]\nOh?"
    assert transcript(chat, "zh").startswith("[系统]\nBe brief.\n\n[用户]\nWhy?")
    assert with_system(chat, "Another.") == chat
    assert with_system(chat, None) == chat
