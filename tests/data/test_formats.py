import json
import re

import pytest

from posttrain.data.formats import (
    ChatExample,
    Layout,
    Message,
    PairExample,
    UnusableRowError,
    chat_example,
    guess_layout,
    pair_example,
    prompt_example,
    text_example,
)
from posttrain.errors import UserError

WHERE = "data/x.json, row 3"
QUESTION = "how many?"
CHOSEN = "\nSELECT count(*) FROM t;\n"
REJECTED = "SELECT * FROM t;"


def user(text):
    return Message("user", text)


def bot(text):
    return Message("assistant", text)


def guessed(row):
    return guess_layout(row, WHERE)


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"instruction": "a", "input": "", "output": "\nb\n"}, [user("a"), bot("\nb\n")]),
        ({"instruction": "a", "input": "x", "output": "b"}, [user("a\nx"), bot("b")]),
        ({"instruction": "", "input": "x", "output": "b"}, [user("x"), bot("b")]),
        ({"instruction": "a", "output": "b", "system": "s"}, [Message("system", "s"), user("a"), bot("b")]),
        ({"instruction": "a", "output": "b", "system": "", "history": None}, [user("a"), bot("b")]),
        (
            {"instruction": "a", "output": "b", "history": [["1", "2"], ["3", "4"]]},
            [user("1"), bot("2"), user("3"), bot("4"), user("a"), bot("b")],
        ),
        ({"prompt": "a", "response": "b"}, [user("a"), bot("b")]),
        ({"prompt": "a", "completion": "b"}, [user("a"), bot("b")]),
        ({"query": "a", "answer": "b"}, [user("a"), bot("b")]),
        ({"question": "a", "answer": "b"}, [user("a"), bot("b")]),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"},
            [Message("system", "s"), user("a"), bot("b")],
        ),
        (
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "human", "value": "a"},
                    {"from": "function_call", "value": "f"},
                    {"from": "observation", "value": "o"},
                    {"from": "gpt", "value": "b"},
                ],
            },
            [Message("system", "s"), user("a"), bot("f"), Message("tool", "o"), bot("b")],
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            [user("a"), bot("b")],
        ),
        (
            {"messages": [{"role": r, "content": r} for r in ("user", "assistant", "user")]},
            [user("user"), bot("assistant")],
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, [user("a"), bot("b")]),
    ],
)
def test_rows_become_chats(row, messages):
    assert chat_example(row, guessed(row), WHERE) == ChatExample(messages=tuple(messages))


def turn(name, text, style):
    return {"from": name, "value": text} if style == "sharegpt" else {"role": name, "content": text}


ASKED = [turn("user", QUESTION, "openai")]
PAIR_ROWS = {
    "sharegpt": {
        "conversations": [turn("human", QUESTION, "sharegpt")],
        "chosen": turn("gpt", CHOSEN, "sharegpt"),
        "rejected": turn("gpt", REJECTED, "sharegpt"),
    },
    "prompt": {"prompt": QUESTION, "chosen": CHOSEN, "rejected": REJECTED},
    "query": {"query": QUESTION, "chosen": CHOSEN, "rejected": REJECTED},
    "alpaca": {"instruction": "how", "input": "many?", "chosen": CHOSEN, "rejected": REJECTED},
    "message lists with the prompt": {
        "chosen": [*ASKED, turn("assistant", CHOSEN, "openai")],
        "rejected": [*ASKED, turn("assistant", REJECTED, "openai")],
    },
    "message lists beside the prompt": {
        "prompt": ASKED,
        "chosen": [turn("assistant", CHOSEN, "openai")],
        "rejected": [turn("assistant", REJECTED, "openai")],
    },
    "messages": {"messages": ASKED, "chosen": CHOSEN, "rejected": REJECTED},
    "transcripts": {
        "chosen": f"\n\nHuman: {QUESTION}\n\nAssistant: {CHOSEN}",
        "rejected": f"\n\nHuman: {QUESTION}\n\nAssistant: {REJECTED}",
    },
    "two answers": {"instruction": QUESTION, "output": [CHOSEN, REJECTED]},
}


@pytest.mark.parametrize("shape", PAIR_ROWS)
def test_every_shape_of_pair_is_the_same_pair(shape):
    row = PAIR_ROWS[shape]
    pair = pair_example(row, guessed(row), WHERE)
    question = "how\nmany?" if shape == "alpaca" else QUESTION
    assert pair == PairExample(prompt=(user(question),), chosen=CHOSEN, rejected=REJECTED)
    assert pair.where == WHERE


@pytest.mark.parametrize("shape", PAIR_ROWS)
def test_the_prompt_of_a_pair_serves_as_a_prompt(shape):
    row = PAIR_ROWS[shape]
    question = "how\nmany?" if shape == "alpaca" else QUESTION
    assert prompt_example(row, guessed(row), WHERE).prompt == (user(question),)


def test_a_margin_is_read_from_its_column():
    row = {**PAIR_ROWS["prompt"], "margin": "0.5", "gap": 2}
    assert pair_example(row, guessed(row), WHERE).margin == 0.5
    assert pair_example(row, guessed(row), WHERE, "gap").margin == 2.0
    assert pair_example(row, guessed(row), WHERE, None).margin is None
    with pytest.raises(UserError, match=r"row 3.*'margin'.*number"):
        pair_example({**row, "margin": "much"}, guessed(row), WHERE)


def test_pairs_that_teach_nothing_are_told_apart():
    same = {"prompt": "a", "chosen": "b", "rejected": "b"}
    with pytest.raises(UnusableRowError, match="chosen equals rejected"):
        pair_example(same, guessed(same), WHERE)
    other = {**PAIR_ROWS["transcripts"], "rejected": "\n\nHuman: why?\n\nAssistant: so"}
    with pytest.raises(UnusableRowError, match="different prompts"):
        pair_example(other, guessed(other), WHERE)
    assert prompt_example(other, guessed(other), WHERE).prompt == (user(QUESTION),)


def test_a_prompt_leaves_the_answer_and_other_columns_to_extras():
    row = {"instruction": "a", "input": "x", "output": "b", "db": "d.sqlite", "text": "t"}
    prompt = prompt_example(row, guessed(row), WHERE)
    assert prompt.prompt == (user("a\nx"),)
    assert dict(prompt.extras) == {"output": "b", "reference": "b", "db": "d.sqlite", "text": "t"}
    chat = {"messages": [*ASKED, turn("assistant", "b", "openai")], "id": 5}
    prompt = prompt_example(chat, guessed(chat), WHERE)
    assert (prompt.prompt, dict(prompt.extras)) == ((user(QUESTION),), {"id": 5, "reference": "b"})
    assert prompt_example({"query": "q"}, guessed({"query": "q"}), WHERE).prompt == (user("q"),)


def test_a_document_is_taken_as_it_is():
    row = {"text": " a\n", "label": 1}
    assert text_example(row, guessed(row), WHERE).text == " a\n"
    assert text_example({"body": "b"}, Layout(), WHERE, "body").text == "b"
    assert text_example({"body": "b"}, Layout(columns={"prompt": "body"}), WHERE).text == "b"
    with pytest.raises(UnusableRowError, match="empty text"):
        text_example({"text": " \n"}, guessed(row), WHERE)


def of(read, row, words, layout=None):
    return pytest.param(read, row, words, layout, id=f"{read.__name__}-{words[0]}")


@pytest.mark.parametrize(
    ("read", "row", "words", "layout"),
    [
        of(chat_example, {"instruction": "a", "ouput": "b"}, ["'output'", "instruction, ouput"]),
        of(chat_example, {"instruction": 3, "output": "b"}, ["'instruction' must be text", "int 3"]),
        of(chat_example, {"instruction": "a", "output": None}, ["'output' must be text", "NoneType"]),
        of(chat_example, {"conversations": []}, ["list of messages"]),
        of(chat_example, {"conversations": [{"from": "human", "text": "a"}]}, ["message 1", "from, text"]),
        of(chat_example, {"conversations": [{"from": "alien", "value": "a"}]}, ["message 1", "'alien'", "human"]),
        of(chat_example, {"conversations": [{"from": "human", "value": "a"}]}, ["no assistant message"]),
        of(chat_example, {"conversations": [{"from": "gpt", "value": "a"}]}, ["no user message"]),
        of(chat_example, {"instruction": "a", "output": "b", "history": [["q"]]}, ["'history'", "[question, answer]"]),
        of(chat_example, {"messages": ASKED, "tools": "[{}]"}, ["'tools'", "not supported"]),
        of(chat_example, {"text": "a"}, ["text_column: text"]),
        of(pair_example, {"instruction": "a", "output": "b"}, ["'chosen'", "instruction, output"]),
        of(
            pair_example,
            {"prompt": "a", "chosen": "b", "reject": "c"},
            ["'rejected'"],
            Layout(columns={"prompt": "prompt"}),
        ),
        of(pair_example, {"chosen": "b", "rejected": "c"}, ["no prompt beside 'chosen'"]),
        of(pair_example, {"prompt": "a", "chosen": 1, "rejected": "c"}, ["'chosen'", "int 1"]),
        of(pair_example, {"instruction": "a", "output": ["x"]}, ["'output'", "two answers", "found 1"]),
        of(
            pair_example,
            {"messages": [*ASKED, turn("assistant", "a", "openai")], "chosen": "b", "rejected": "c"},
            ["must end with a user message"],
        ),
        of(
            pair_example,
            {"prompt": "a", "chosen": [turn("user", "b", "openai")], "rejected": "c"},
            ["'chosen'", "assistant", "'user'"],
        ),
        of(text_example, {"instruction": "a", "output": "b"}, ["text_column", "instruction, output"]),
        of(prompt_example, {"messages": [turn("system", "s", "openai")]}, ["no user message"]),
    ],
)
def test_a_bad_row_is_named_with_its_columns(read, row, words, layout):
    with pytest.raises(UserError) as caught:
        read(row, layout or guessed(row), WHERE)
    for word in (WHERE, *words):
        assert word in str(caught.value)


def test_a_text_alone_and_with_the_question_it_was_asked():
    layout = guess_layout({"content": "a text", "id": 3}, "row 1")
    assert prompt_example({"content": "a text", "id": 3}, layout, "row 1").prompt == (Message("user", "a text"),)
    row = {"content": "a text", "query": "what is it?"}
    found = chat_example(row, guess_layout(row, "row 1"), "row 1")
    assert found.messages == (Message("user", "a text"), Message("assistant", "what is it?"))
    assert prompt_example(row, guess_layout(row, "row 1"), "row 1").extras["reference"] == "what is it?"
    pair = {"content": "a text", "chosen": "what?", "rejected": "no"}
    assert pair_example(pair, guess_layout(pair, "row 1"), "row 1").prompt == (Message("user", "a text"),)


def test_unknown_columns_are_listed():
    with pytest.raises(UserError, match=r"row 3: no known columns \(found: title, content\)"):
        guessed({"title": "a", "content": "b"})


@pytest.mark.parametrize("row", [{"instruction": "a", "output": ""}, {"instruction": "", "output": "b"}])
def test_empty_sides_are_dropped_and_not_trained_on(row):
    with pytest.raises(UnusableRowError, match="empty"):
        chat_example(row, guessed(row), WHERE)


def test_tags_of_an_entry_come_first():
    layout = Layout(
        formatting="sharegpt",
        columns={"messages": "talk"},
        role_tag="who",
        content_tag="says",
        roles={"q": "user", "a": "assistant"},
    )
    row = {"talk": [{"who": "q", "says": "1"}, {"who": "a", "says": "2"}]}
    assert chat_example(row, layout, WHERE).messages == (user("1"), bot("2"))


def test_the_rows_of_the_reference_document_are_read(reference_document):
    shown = re.findall(r'\[ \{ "(?:instruction|conversations)".*?, \.\.\. \]', reference_document, re.DOTALL)
    sft, reward = (json.loads(text.replace(", ... ]", "]")) for text in shown)
    chat = chat_example(sft[0], guessed(sft[0]), WHERE)
    assert chat.messages[0].content.startswith("<question>:")
    assert chat.messages[1].content.startswith("\nSELECT")
    assert chat.messages[1].content.endswith(";\n")
    pair = pair_example(reward[0], guessed(reward[0]), WHERE)
    assert pair.prompt == chat.messages[:1]
    assert pair.chosen == chat.messages[1].content
    assert pair.rejected.startswith("SELECT")
