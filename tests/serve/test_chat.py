"""The terminal: messages in, answers out, commands obeyed, interruptions survived."""

import io

import pytest

from posttrain.errors import UserError
from posttrain.serve.chat import talk


class Echo:
    """Answers with what it was asked, in two pieces."""

    def __init__(self):
        self.calls = []

    def stream_chat(self, messages, system=None):
        self.calls.append((system, [message["content"] for message in messages]))
        last = messages[-1]["content"]
        if last == "refuse":
            raise UserError("too long")
        yield "you said "
        if last == "stop me":
            raise KeyboardInterrupt
        yield last


def said(text, *, interactive=False):
    model, output = Echo(), io.StringIO()
    talk(model, source=io.StringIO(text), output=output, interactive=interactive)
    return model.calls, output.getvalue()


def test_a_pipe_gives_one_answer_per_line_and_nothing_else():
    calls, output = said("one\n\n  two  \n")
    assert output == "you said one\nyou said two\n"
    assert calls == [(None, ["one"]), (None, ["one", "you said one", "two"])]


def test_commands_are_obeyed_silently_in_a_pipe():
    calls, output = said("one\n/clear\ntwo\n/system Be brief.\nthree\n/system\nfour\n/exit\nfive\n")
    assert output == "".join(f"you said {word}\n" for word in ("one", "two", "three", "four"))
    assert calls == [(None, ["one"]), (None, ["two"]), ("Be brief.", ["three"]), (None, ["four"])]


def test_a_terminal_shows_a_prompt_and_answers_commands():
    _, output = said("/help\n/clear\n/system Be brief.\nhi\n", interactive=True)
    assert output.count("> ") == 5
    assert output.count("/exit") == 2
    assert "The system message is set." in output
    assert "you said hi\n" in output


def test_a_stopped_answer_stays_in_the_conversation():
    calls, output = said("stop me\ngo on\n", interactive=True)
    assert calls[1] == (None, ["stop me", "you said ", "go on"])
    assert "you said go on" in output


def test_an_error_ends_a_pipe_and_not_a_terminal():
    with pytest.raises(UserError):
        said("refuse\nhi\n")
    calls, output = said("refuse\nhi\n", interactive=True)
    assert "too long" in output
    assert calls[1] == (None, ["hi"])
