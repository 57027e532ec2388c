"""The terminal: messages in, answers out, commands obeyed, interruptions survived."""

import io
import os
import sys

import pytest

from posttrain.config import load_config
from posttrain.errors import UserError
from posttrain.serve import chat
from posttrain.serve.chat import talk


class Echo:
    """Answers with what it was asked, in two pieces; "b" shouts."""

    names = ("a", "b")

    def __init__(self):
        self.calls = []

    def named(self, place):
        if place not in self.names:
            raise UserError(f"no model is called {place!r}")
        return place

    def settings(self, generation):
        return load_config({"model_name_or_path": "x", **generation}, command="chat").generation

    def stream_chat(self, name, messages, system, generation):
        self.calls.append((name, system, [message["content"] for message in messages], generation))
        last = messages[-1]["content"]
        if last == "refuse":
            raise UserError("too long")
        yield "you said "
        if last == "stop me":
            raise KeyboardInterrupt
        yield last.upper() if name == "b" else last
        return "length" if last == "cut" else "stop"


def said(text, *, interactive=False):
    model, output = Echo(), io.StringIO()
    talk(model, source=io.StringIO(text), output=output, interactive=interactive)
    return model.calls, output.getvalue()


def heard(calls):
    """What each call was told, the model and the way of drawing left out."""
    return [(system, messages) for _, system, messages, _ in calls]


def test_a_pipe_gives_one_answer_per_line_and_nothing_else():
    calls, output = said("one\n\n  two  \n")
    assert output == "you said one\nyou said two\n"
    assert heard(calls) == [(None, ["one"]), (None, ["one", "you said one", "two"])]


def test_commands_are_obeyed_silently_in_a_pipe():
    calls, output = said("one\n/clear\ntwo\n/system Be brief.\nthree\n/system\nfour\n/exit\nfive\n")
    assert output == "".join(f"you said {word}\n" for word in ("one", "two", "three", "four"))
    assert heard(calls) == [(None, ["one"]), (None, ["two"]), ("Be brief.", ["three"]), (None, ["four"])]


def test_a_terminal_shows_a_prompt_and_answers_commands():
    _, output = said("/help\n/clear\n/system Be brief.\nhi\n", interactive=True)
    assert output.count("> ") == 5
    assert output.count("/exit") == 2
    assert "The system message is set." in output
    assert "you said hi\n" in output
    assert "\x1b" not in output  # a Windows console without escape sequences shows all of it


def test_a_stopped_answer_stays_in_the_conversation():
    calls, output = said("stop me\ngo on\n", interactive=True)
    assert heard(calls)[1] == (None, ["stop me", "you said ", "go on"])
    assert "you said go on" in output


def test_an_error_ends_a_pipe_and_not_a_terminal():
    with pytest.raises(UserError, match="standard input, line 2: too long"):
        said("hello\nrefuse\nhi\n")
    calls, output = said("refuse\nhi\n", interactive=True)
    assert "too long" in output
    assert heard(calls)[1] == (None, ["hi"])


def test_messages_of_several_lines_and_those_that_begin_with_a_slash():
    calls, _ = said('"""Table t:\n  a INT\n\nHow many rows?"""\n//clear the table\n"""one"""\n/etc/hosts is what?\n')
    assert [messages[-1] for _, messages in heard(calls)] == [
        "Table t:\n  a INT\n\nHow many rows?",
        "/clear the table",
        "one",
        "/etc/hosts is what?",
    ]


def test_a_command_that_is_none_is_said_with_the_nearest():
    with pytest.raises(UserError, match=r"line 1: there is no command /modle; did you mean /model\?"):
        said("/modle b\n")
    _, output = said("/sytem Be brief.\nhi\n", interactive=True)
    assert "did you mean /system?" in output
    assert "you said hi" in output


def test_the_way_of_drawing_is_changed_and_checked():
    calls, output = said("/set temperature 0.5\n/set do_sample=false\nhi\n/set top_p\n", interactive=True)
    assert calls[0][3] == {"temperature": 0.5, "do_sample": False}
    assert "temperature: 0.5\n" in output
    assert "do_sample: false\n" in output
    assert "top_p: 0.7\n" in output
    calls, output = said("/set temperature hot\n/set temprature 1\n/set\nhi\n", interactive=True)
    assert calls[0][3] == {}
    assert "must be a number" in output
    assert "did you mean `temperature`?" in output
    assert "max_new_tokens: 1024\n" in output


def test_an_answer_that_was_cut_says_so_in_a_terminal_alone():
    assert "cut at max_new_tokens" in said("cut\n", interactive=True)[1]
    assert said("cut\n")[1] == "you said cut\n"


def test_another_model_goes_on_with_the_conversation():
    calls, output = said("one\n/model b\ntwo\n/model\n/model c\n", interactive=True)
    assert calls[1][:3] == ("b", None, ["one", "you said one", "two"])
    assert "  a\n* b\n" in output
    assert "no model is called 'c'" in output


def test_the_last_message_is_answered_once_more():
    calls, _ = said("one\ntwo\n/retry\nthree\n")
    assert heard(calls)[2] == (None, ["one", "you said one", "two"])
    assert heard(calls)[3][1] == ["one", "you said one", "two", "you said two", "three"]
    assert "nothing was asked yet" in said("/retry\n", interactive=True)[1]


def test_a_failed_retry_loses_nothing(monkeypatch):
    asked = []

    def stubborn(self, name, messages, system, generation):
        asked.append([message["content"] for message in messages])
        if len(asked) == 2:
            raise UserError("no")
        yield "yes"

    monkeypatch.setattr(Echo, "stream_chat", stubborn)
    said("one\n/retry\ntwo\n", interactive=True)
    assert asked[2] == ["one", "yes", "two"]


def test_two_models_answer_side_by_side_each_in_its_own_conversation(monkeypatch):
    monkeypatch.setattr(chat.shutil, "get_terminal_size", lambda: os.terminal_size((61, 24)))
    calls, output = said("one\n/compare a b\n你好，ok\nthree\nfour\n/compare\nfive\n", interactive=True)
    assert calls[1][:3] == ("a", None, ["one", "you said one", "你好，ok"])
    assert calls[2][:3] == ("b", None, ["one", "you said one", "你好，ok"])
    assert calls[3][2] == ["one", "you said one", "你好，ok", "you said 你好，ok", "three"]
    assert calls[4][2] == ["one", "you said one", "你好，ok", "you said 你好，OK", "three"]
    assert calls[6][2] == [*calls[4][2], "you said THREE", "four"]
    assert calls[7][:3] == ("a", None, [*calls[3][2], "you said three", "four", "you said four", "five"])
    lines = output.replace("\r", "\n").split("\n")
    assert f"{'[a]':<28} | [b]" in lines
    # 9 letters and 3 wide characters and 2 letters are 17 columns
    assert f"you said 你好，ok{' ' * 11} | you said 你好，OK" in lines
    assert f"{'you said three':<28} | you said THREE" in lines


def test_a_pipe_and_a_narrow_terminal_show_two_answers_one_after_the_other(monkeypatch):
    monkeypatch.setattr(chat.shutil, "get_terminal_size", lambda: os.terminal_size((59, 24)))
    for interactive in (False, True):
        _, output = said("/compare b\nhi\n", interactive=interactive)
        assert "[a] you said hi\n[b] you said HI\n" in output


def test_a_comparison_needs_two_models():
    for line in ("/compare a", "/compare a a", "/compare a b a"):
        assert "two different models are compared, such as /compare a b" in said(f"{line}\n", interactive=True)[1]


def test_what_moves_the_cursor_is_not_written_to_a_terminal():
    assert "you said \ufffd[2Jhi\n" in said("\x1b[2Jhi\n", interactive=True)[1]
    assert said("\x1b[2Jhi\n")[1] == "you said \x1b[2Jhi\n"


def test_a_terminal_without_readline_will_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "readline", None)
    assert "you said hi\n" in said("hi\n", interactive=True)[1]


def test_text_that_is_not_utf8_is_refused_by_its_line(monkeypatch):
    source = io.TextIOWrapper(io.BytesIO("\ufeff你好\n".encode() + "你好\n".encode("gbk")), encoding="ascii")
    model, output = Echo(), io.StringIO()
    with pytest.raises(UserError, match="standard input, line 2: not UTF-8"):
        talk(model, source=source, output=output)
    assert output.getvalue() == "you said 你好\n"


def test_a_conversation_is_written_and_gone_on_with(tmp_path):
    path = tmp_path / "my talk.jsonl"
    said(f"/system Be brief.\n/set top_k 3\n你好\n/save {path}\n")
    calls, output = said(f"/load {path}\nand?\n", interactive=True)
    assert calls == [("a", "Be brief.", ["你好", "you said 你好", "and?"], {"top_k": 3})]
    assert "2 messages; a answers." in output
    said(f"/compare a b\none\n/save {path}\n")
    calls, output = said(f"/load {path}\ntwo\n", interactive=True)
    assert [call[2] for call in calls] == [["one", "you said one", "two"], ["one", "you said ONE", "two"]]
    assert "a and b answer." in output


def test_messages_of_other_programs_are_gone_on_with(tmp_path):
    path = tmp_path / "list.json"
    path.write_text('[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]', encoding="utf-8")
    calls, _ = said(f"/load {path}\nand?\n")
    assert calls[0][:3] == ("a", None, ["hi", "ho", "and?"])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "there is no file"),
        ("{}", "row 1: no list of `messages`"),
        ('{"messages": [{"role": "robot", "content": ""}]}', "row 1: message 1: role is 'robot'"),
        ('{"messages": [{"role": "user"}]}', "content is NoneType"),
        ('{"messages": [{"role": "user", "content": "a"}], "generation": {"top_q": 1}}', "did you mean `top_p`"),
        ('{"a": 1}\n' * 3, "found 3 rows"),
        ("{", "line 1: malformed JSON"),
    ],
)
def test_a_file_that_holds_no_conversation_changes_nothing(tmp_path, content, sentence):
    path = tmp_path / "talk.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    calls, output = said(f"one\n/load {path}\ntwo\n", interactive=True)
    assert sentence in output
    assert heard(calls)[1] == (None, ["one", "you said one", "two"])


def test_no_file_of_others_is_written_over(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    for name, sentence in (("thesis.txt", "something else than a conversation"), ("", "is a folder")):
        assert sentence in said(f"hi\n/save {tmp_path / name}\n", interactive=True)[1]
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "mine"
    assert "name a file" in said("/save\n", interactive=True)[1]
