"""Templates of one's own, names that resolve to the tokenizer's, and what stands behind an end of turn."""

from __future__ import annotations

import dataclasses

import pytest
from transformers import AutoTokenizer

from posttrain.config import DataConfig
from posttrain.data.chat_formats import ChatFormat, prompt_format, shipped_formats
from posttrain.data.formats import Message
from posttrain.data.template import EXAMPLE, Template
from posttrain.data.template_names import PLAIN, resolve_chat_template
from posttrain.errors import UserError

PROMPT = "问:{prompt}\n\n答:"


def chat(*turns):
    return [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(turns)]


def text_of(template, messages):
    return template.tokenizer.decode(template.encode_chat(messages).input_ids)


def test_a_prompt_template_is_question_answer_and_end_of_sequence(make_tokenizer):
    template = Template(make_tokenizer(None, eos_token="<|end|>"), prompt_template=PROMPT)
    assert template.prompt_text(chat("2 + 3?")) == "问:2 + 3?\n\n答:"
    row = template.encode_chat(chat("q", "5", "r", "6"))
    assert template.tokenizer.decode(row.input_ids) == "问:q\n\n答:5<|end|>问:r\n\n答:6<|end|>"
    trained = [token for token, trains in zip(row.input_ids, row.loss_mask, strict=True) if trains]
    assert template.tokenizer.decode(trained) == "5<|end|>6<|end|>"
    assert template.encode_prompt(chat("q")) == row.input_ids[: row.loss_mask.index(True)]


def test_other_programs_close_answers_under_it_too(make_tokenizer):
    template = Template(make_tokenizer(None, eos_token="<|end|>"), prompt_template=PROMPT)
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "5"}]
    options = {"chat_template": template.chat_template, "tokenize": False}
    assert template.tokenizer.apply_chat_template(turns, **options) == "问:q\n\n答:5<|end|>"


def test_a_prompt_template_wins_over_the_tokenizers_own(tokenizer):
    assert Template(tokenizer, prompt_template=PROMPT).prompt_text(chat("q")) == "问:q\n\n答:"


@pytest.mark.parametrize(
    ("written", "rendered"),
    [
        ("问:{prompt}\\n\\n答:", "问:q\n\n答:"),  # YAML in single quotes hands on a backslash and an n
        ("{{json}} {prompt} }}", "{json} q }"),
        ("{prompt}", "q"),
        ('\'"{prompt}\\"{{content}}', '\'"q\\"{content}'),
        ("{% raw %}{prompt}", None),
        ("🙂{prompt}\t", "🙂q\t"),
        (r"\\nabla {prompt} \\theta", r"\nabla q \theta"),
    ],
)
def test_text_of_a_prompt_template_is_taken_literally(make_tokenizer, written, rendered):
    if rendered is None:
        with pytest.raises(UserError, match="unknown name"):
            prompt_format(written)
        return
    assert Template(make_tokenizer(None), prompt_template=written).prompt_text(chat("q")) == rendered


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("问:\n\n答:", ["{prompt} is missing", "prompt_template"]),
        ("{prompt} {prompt}", ["{prompt} stands there 2 times"]),
        ("{promt}", ["unknown name {promt}", "{prompt} and {system}", "{{ and }}"]),
        ("{question} {prompt}", ["unknown name {question}"]),
        ("{question} {system} {answer}", ["unknown name {question}"]),
        ("{prompt} {", ["prompt_template:", "written twice"]),
        ("{}", ["unknown name {}"]),
        ("{prompt:>10}", ["{prompt} is put in as it is"]),
        ("{prompt!r}", ["{prompt} is put in as it is"]),
        ("{prompt}{system}", ["{system} stands before {prompt}"]),
    ],
)
def test_a_prompt_template_that_cannot_be_used_says_why(written, words):
    with pytest.raises(UserError) as caught:
        prompt_format(written)
    for word in words:
        assert word in str(caught.value)


def test_a_system_message_needs_a_place(make_tokenizer):
    system = [Message("system", "Be brief."), *chat("q")]
    without = Template(make_tokenizer(None), prompt_template=PROMPT)
    with pytest.raises(UserError, match=r"no place for a system message: write \{system\}"):
        without.encode_prompt(system)
    template = Template(make_tokenizer(None), prompt_template="{system}\n" + PROMPT)
    assert template.prompt_text(system) == "Be brief.\n问:q\n\n答:"
    assert template.prompt_text(chat("q")) == "\n问:q\n\n答:"


def test_what_a_prompt_template_saves_renders_the_same_in_the_tokenizer(make_tokenizer, tmp_path):
    """Chat, export and other programs take the template from the saved folder."""
    template = Template(make_tokenizer(None, eos_token="<|end|>"), prompt_template="{system}\n" + PROMPT)
    template.tokenizer.chat_template = template.chat_template
    template.tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    again = Template(loaded)
    messages = [Message("system", "s"), *chat("q", "a", "r", "b")]
    assert again.encode_chat(messages) == template.encode_chat(messages)
    assert (again.fingerprint, again.stop_token_ids) == (template.fingerprint, template.stop_token_ids)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    assert loaded.apply_chat_template(turns)["input_ids"] == template.encode_chat(messages).input_ids


def test_template_and_prompt_template_are_one_too_many(tokenizer):
    with pytest.raises(UserError, match="both set"):
        Template(tokenizer, "chatml", prompt_template=PROMPT)


JINJA = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}<|end|>{% endfor %}"


def test_jinja_text_and_a_file_of_it_are_templates(make_tokenizer, tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(JINJA + "\n", encoding="utf-8")
    tokenizer = make_tokenizer(None, eos_token="<|end|>")
    inline, filed = Template(tokenizer, JINJA), Template(tokenizer, str(path))
    assert inline.chat_template == filed.chat_template == JINJA
    assert text_of(filed, chat("q", "a")) == "<user> q<|end|><assistant> a<|end|>"


def test_a_file_that_is_no_template_is_a_user_error(tokenizer, tmp_path):
    (tmp_path / "mine.jinja").write_text("plain", encoding="utf-8")
    (tmp_path / "latin.jinja").write_bytes(b"{{ messages }}\xe4")
    for name, words in (("mine.jinja", "neither"), ("latin.jinja", "not UTF-8"), ("mime.jinja", "near names.*mine")):
        with pytest.raises(UserError, match=f"{name}.*{words}"):
            resolve_chat_template(tokenizer, str(tmp_path / name))


def test_a_broken_jinja_text_is_a_user_error(tokenizer):
    with pytest.raises(UserError, match="chat template"):
        Template(tokenizer, "{% for m in messages %}{{ m['content'] }}")


def test_a_family_whose_own_template_writes_otherwise_is_named(tokenizer, make_tokenizer):
    assert Template(tokenizer, "chatml").notes == ()
    (note,) = Template(tokenizer, "qwen").notes
    assert "qwen is the tokenizer's own chat template" in note
    assert "You are Qwen" in note
    assert "the tokenizer's own is used" in note
    assert Template(make_tokenizer(None), "qwen").notes == ()
    assert Template(tokenizer, "alpaca").notes == Template(tokenizer).notes == ()


@pytest.mark.parametrize("name", sorted(shipped_formats()))
def test_the_template_of_a_shipped_format_agrees_with_the_format(make_tokenizer, name):
    bare = make_tokenizer(None, bos_token="<|im_start|>")
    bare.chat_template = shipped_formats()[name].jinja()
    assert Template(bare, name).notes == ()
    assert (Template(bare).fingerprint == Template(bare, name).fingerprint) or name in PLAIN


def test_the_line_end_behind_an_answer_is_learnt_where_llamafactory_learns_it(make_tokenizer, tokenizer):
    def closing(made, stage, **keys):
        template = Template.configured(made, DataConfig(**keys), stage)
        return template.tokenizer.decode(template.closing)

    for stage in ("sft", "dpo", "kto"):
        assert closing(tokenizer, stage, template="chatml") == "<|im_end|>\n"
        assert closing(tokenizer, stage) == "<|im_end|>"
        assert closing(tokenizer, stage, train_after_end_of_turn=True) == "<|im_end|>\n"
        assert closing(tokenizer, stage, template="chatml", train_after_end_of_turn=False) == "<|im_end|>"
    for stage in ("rm", "ppo", None):
        assert closing(tokenizer, stage, template="chatml", train_after_end_of_turn=True) == "<|im_end|>"
    assert closing(make_tokenizer(None), "sft", template="phi4") == "<|im_end|>"


def test_the_line_end_stands_where_it_stood_and_only_trains(any_tokenizer):
    plain, learning = Template(any_tokenizer), Template(any_tokenizer, train_after_end_of_turn=True)
    messages = chat("q", "a", "r", "b")
    tail = learning.closing[len(plain.closing) :]
    row, more = plain.encode_chat(messages), learning.encode_chat(messages)
    assert more.input_ids == [*row.input_ids, *tail]
    assert sum(more.loss_mask) == sum(row.loss_mask) + 2 * len(tail)
    assert learning.encode_prompt(messages[:3]) == plain.encode_prompt(messages[:3])
    assert learning.fingerprint == plain.fingerprint
    assert learning.stop_token_ids == plain.stop_token_ids


def test_the_example_is_what_is_trained_on(tokenizer):
    template = Template(tokenizer, train_after_end_of_turn=True)
    plain = Template(tokenizer)
    assert template.example == plain.example
    assert plain.example.startswith(text_of(plain, EXAMPLE))
    assert Template(tokenizer, default_system="Be brief.").example.startswith("<|im_start|>system\nBe brief.")


def test_templates_that_treat_system_messages_otherwise_have_other_examples(tokenizer):
    own = Template(tokenizer)
    deaf = own.chat_template.replace("in messages", "in messages if message['role'] != 'system'")
    assert deaf != own.chat_template
    assert Template(tokenizer, deaf).example != own.example


def test_a_format_without_a_place_for_system_messages_names_no_other() -> None:
    made = ChatFormat(user="{content}", assistant="{content}{eos}")
    assert "raise_exception" in made.jinja()
    assert "raise_exception" not in dataclasses.replace(made, system="{content}").jinja()
