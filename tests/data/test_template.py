import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from tokenizers.processors import TemplateProcessing

from posttrain.data.formats import Message
from posttrain.data.template import Template, pad_token_id
from posttrain.data.template_names import FAMILIES, PLAIN, resolve_chat_template, shipped_templates
from posttrain.errors import UserError

PIECES = st.sampled_from(["a", "SELECT", " ", "\n", "查看", "用", "🙂", "</s>", ";", "\u2028"])
TEXTS = st.lists(PIECES, max_size=8).map("".join)


def chat(*turns):
    roles = ("user", "assistant")
    return [Message(roles[i % 2], text) for i, text in enumerate(turns)]


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def trained(template, row):
    """The trained tokens as text, one string per stretch."""
    stretches, previous = [], False
    for token, trains in zip(row.input_ids, row.loss_mask, strict=True):
        if trains:
            stretches = stretches if previous else [*stretches, []]
            stretches[-1].append(token)
        previous = trains
    return [template.tokenizer.decode(stretch) for stretch in stretches]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(TEXTS, min_size=2, max_size=6).filter(lambda turns: len(turns) % 2 == 0))
def test_what_is_trained_on_is_what_is_sampled(any_tokenizer, turns):
    """Prompt, answer and end of turn, token by token, in every turn of a chat and for every habit of a template."""
    template = Template(any_tokenizer)
    messages = chat(*turns)
    row = template.encode_chat(messages)
    mask = [False] * len(row)
    for end in range(1, len(messages), 2):
        prompt = template.encode_prompt(messages[:end])
        answer = ids(any_tokenizer, messages[end].content) + list(template.end_of_turn)
        assert row.input_ids[: len(prompt) + len(answer)] == prompt + answer
        mask[len(prompt) : len(prompt) + len(answer)] = [True] * len(answer)
    assert row.loss_mask == mask
    assert len(row) == len(prompt) + len(answer)


def test_tokens_do_not_merge_across_the_border(tokenizer):
    template = Template(tokenizer)
    row = template.encode_chat(chat("q", "\nSELECT"))
    text = template.prompt_text(chat("q")) + "\nSELECT<|im_end|>"
    assert tokenizer.decode(row.input_ids) == text
    assert row.input_ids != ids(tokenizer, text), "the example must tempt the tokenizer to merge two line ends"
    assert row.input_ids[: row.loss_mask.index(True)] == template.encode_prompt(chat("q"))


def test_the_end_of_turn_trains_and_the_newline_after_it_does_not(tokenizer):
    template = Template(tokenizer)
    row = template.encode_chat(chat("q", "\na ", "r", "b"))
    assert trained(template, row) == ["\na <|im_end|>", "b<|im_end|>"]
    between = "<|im_end|>\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\nb<|im_end|>"
    assert tokenizer.decode(row.input_ids).endswith(between)


def test_what_trains_can_be_chosen(tokenizer):
    template = Template(tokenizer)
    messages = chat("q", "a", "r", "b")
    assert trained(template, template.encode_chat(messages, mask_history=True)) == ["b<|im_end|>"]
    everything = template.encode_chat(messages, train_on_prompt=True)
    assert everything.loss_mask == [False] + [True] * (len(everything) - 1)


def test_prompts_are_rendered_as_the_tokenizer_renders_them(any_tokenizer):
    template = Template(any_tokenizer)
    rendered = any_tokenizer.apply_chat_template(
        [{"role": "user", "content": " hi\n"}], tokenize=False, add_generation_prompt=True
    )
    assert template.prompt_text(chat(" hi\n")).startswith(rendered)
    assert template.encode_prompt(chat(" hi\n")) == ids(any_tokenizer, template.prompt_text(chat(" hi\n")))


def test_a_template_without_generation_prompt_still_opens_the_answer(make_tokenizer):
    silent = make_tokenizer(
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    )
    assert Template(silent).prompt_text(chat("q")) == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"


INJECTING = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("default_system", "messages", "start"),
    [
        (None, chat("q"), "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nq"),
        ("Be brief.", chat("q"), "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nq"),
        ("", chat("q"), "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nq"),
        ("Be brief.", [Message("system", "s"), *chat("q")], "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq"),
    ],
)
def test_the_system_message_is_the_rows_then_the_users_then_the_templates(
    make_tokenizer, default_system, messages, start
):
    template = Template(make_tokenizer(INJECTING), default_system=default_system)
    assert template.tokenizer.decode(template.encode_prompt(messages)).startswith(start)
    assert template.tokenizer.decode(template.encode_chat([*messages, *chat("", "a")[1:]]).input_ids).startswith(start)


def test_answers_keep_their_blanks_where_the_template_strips(make_tokenizer):
    template = Template(make_tokenizer(INJECTING.replace("message['content']", "message['content'] | trim")))
    row = template.encode_chat(chat(" q ", "\na\n", "r", "\nb\n"))
    assert trained(template, row) == ["\na\n<|im_end|>", "\nb\n<|im_end|>"]
    assert "user\nq<|im_end|>" in template.tokenizer.decode(row.input_ids)


def test_an_answer_that_the_template_leaves_open_is_closed(make_tokenizer):
    template = Template(
        make_tokenizer(
            "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
            eos_token="<|end|>",
        )
    )
    row = template.encode_chat(chat("q", "a", "r", "b"))
    assert template.tokenizer.decode(row.input_ids) == "user: q\nassistant: a<|end|>user: r\nassistant: b<|end|>"
    assert trained(template, row) == ["a<|end|>", "b<|end|>"]


def test_pad_as_end_of_sequence_takes_no_end_of_turn_away(make_tokenizer):
    same = make_tokenizer(INJECTING, pad_token="<|im_end|>")
    template = Template(same)
    row = template.encode_chat(chat("q", "a"))
    assert template.pad_id == same.eos_token_id == row.input_ids[-1]
    assert row.loss_mask[-1]


def test_stops_and_pads(make_tokenizer):
    template = Template(make_tokenizer(INJECTING, eos_token="<|end|>", pad_token=None))
    token = template.tokenizer.convert_tokens_to_ids
    assert template.end_of_turn == (token("<|im_end|>"),)
    assert template.stop_token_ids == (token("<|im_end|>"), token("<|end|>"))
    assert template.pad_id == token("<|end|>")
    bare = make_tokenizer(INJECTING, eos_token=None, pad_token=None)
    assert Template(bare).stop_token_ids == (token("<|im_end|>"),)
    assert pad_token_id(bare, 7) == 7
    assert pad_token_id(bare) == 0


def test_the_first_token_that_closes_an_answer_is_its_end(make_tokenizer):
    template = Template(make_tokenizer("{% for m in messages %}{{ m['content'] + '<|im_end|><|end|>' }}{% endfor %}"))
    row = template.encode_chat(chat("q", "a", "r", "b"))
    assert trained(template, row) == ["a<|im_end|>", "b<|im_end|>"]
    assert (
        template.tokenizer.decode(row.input_ids) == "q<|im_end|><|end|>a<|im_end|><|end|>r<|im_end|><|end|>b<|im_end|>"
    )


def test_a_tokenizer_that_opens_texts_with_a_blank_opens_no_turn_with_one(make_tokenizer):
    """SentencePiece puts a blank before the start of a text, but not behind a special token within it."""
    opening = make_tokenizer(None)
    opening.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace("Ġ", prepend_scheme="first"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    template = Template(opening, "chatml")
    whole = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n<|im_start|>user\nr<|im_end|>\n"
    after = ids(opening, whole.format("a"))[
        len(ids(opening, whole.format("a").partition("\n<|im_start|>user\nr")[0])) :
    ]
    row = template.encode_prompt(chat("q", "a", "r"))
    start = row.index(template.end_of_turn[0], row.index(template.end_of_turn[0]) + 1) + 1
    assert row[start : start + len(after)] == after
    assert ids(opening, "\n") != after[:1], "the example must put a blank before the start of a text"


def test_what_a_tokenizer_adds_to_a_text_is_not_added_to_the_parts_of_a_chat(make_tokenizer):
    """Begin and end of text are the template's to write."""
    adding = make_tokenizer(None, bos_token="<|im_start|>", eos_token="<|end|>")
    special = [(token, adding.convert_tokens_to_ids(token)) for token in ("<|im_start|>", "<|end|>")]
    adding.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|end|>", special_tokens=special
    )
    assert adding("a")["input_ids"] == [special[0][1], *ids(adding, "a"), special[1][1]]
    template = Template(adding, "chatml")
    whole = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
    whole += "<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\nb<|im_end|>"
    assert adding.decode(template.encode_chat(chat("q", "a", "r", "b")).input_ids) == whole


def test_the_fingerprint_follows_what_is_rendered(make_tokenizer):
    first = Template(make_tokenizer(INJECTING))
    assert first.fingerprint == Template(make_tokenizer(INJECTING), "qwen").fingerprint
    others = [
        Template(make_tokenizer(INJECTING), default_system=""),
        Template(make_tokenizer(INJECTING.replace("kind", "mean"))),
        Template(make_tokenizer(None, eos_token="<|end|>"), "empty"),
        Template(make_tokenizer(None), "empty"),
    ]
    assert len({first.fingerprint, *(other.fingerprint for other in others)}) == 5


@pytest.mark.parametrize("name", shipped_templates())
def test_every_shipped_template_renders_and_learns_to_stop(make_tokenizer, name):
    template = Template(make_tokenizer(None, bos_token="<|im_start|>"), name)
    messages = [Message("system", "SYS"), *chat("one", "\ntwo", "three", "four\n")]
    row = template.encode_chat(messages)
    text = template.tokenizer.decode(row.input_ids)
    places = [text.index(word) for word in ("SYS", "one", "two", "three", "four")]
    assert places == sorted(places)
    first, second = trained(template, row)
    assert first.startswith("\ntwo")
    assert second.startswith("four\n")
    assert row.input_ids[-1] in template.stop_token_ids
    assert row.input_ids[: row.loss_mask.index(True)] == template.encode_prompt(messages[:2])


def test_every_shipped_template_has_a_known_name():
    assert set(shipped_templates()) <= {*PLAIN, *FAMILIES}
    assert set(PLAIN) <= set(shipped_templates())


def test_qwen_injects_its_system_message_and_chatml_none(make_tokenizer):
    bare = make_tokenizer(None)
    assert Template(bare, "chatml").prompt_text(chat("q")) == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    said = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    assert Template(bare, "qwen").prompt_text(chat("q")).startswith(said)


@pytest.mark.parametrize("name", [None, *FAMILIES])
def test_the_name_of_a_model_family_means_the_tokenizers_own_template(make_tokenizer, name):
    assert resolve_chat_template(make_tokenizer(INJECTING), name) == INJECTING


@pytest.mark.parametrize("name", PLAIN)
def test_the_name_of_a_plain_format_is_taken_literally(make_tokenizer, name):
    own, bare = (Template(make_tokenizer(chat_template), name) for chat_template in (INJECTING, None))
    assert own.chat_template == bare.chat_template != INJECTING
    messages = [Message("system", "SYS"), *chat("one", "two", "three", "four")]
    row = own.encode_chat(messages)
    assert row == bare.encode_chat(messages)
    assert "<|im_start|>" not in own.tokenizer.decode(row.input_ids)
    assert trained(own, row) == ["two<|im_end|>", "four<|im_end|>"]
    assert own.fingerprint == bare.fingerprint


def test_alpaca_reads_as_alpaca_on_a_tokenizer_for_chats(tokenizer):
    assert Template(tokenizer, "alpaca").prompt_text(chat("Add 1 and 2.")) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd 1 and 2.\n\n### Response:\n"
    )


@pytest.mark.parametrize(
    ("chat_template", "name", "words"),
    [
        (None, None, ["no chat template", "chatml", "empty"]),
        (None, "qwn", ["unknown template 'qwn'", "qwen"]),
        (INJECTING, "chatlm", ["unknown template 'chatlm'", "chatml"]),
        (INJECTING, "zzzzzz", ["unknown template 'zzzzzz'", "known:", "llama3"]),
        (None, "deepseekr1", ["'deepseekr1'", "this tokenizer has none", "chatml"]),
        ("{{ messages[0]['content'] }}", None, ["does not render assistant messages"]),
    ],
)
def test_a_template_that_cannot_be_had_is_a_user_error(make_tokenizer, chat_template, name, words):
    with pytest.raises(UserError) as caught:
        Template(make_tokenizer(chat_template), name)
    for word in words:
        assert word in str(caught.value)


def test_messages_that_a_template_refuses_are_a_user_error(make_tokenizer):
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + INJECTING
    template = Template(make_tokenizer(refusing))
    with pytest.raises(UserError, match=r"refuses the messages \(system, user\).*no system role"):
        template.encode_prompt([Message("system", "s"), *chat("q")])
    with pytest.raises(UserError, match="refuses"):
        Template(make_tokenizer(refusing), default_system="s")


@pytest.mark.parametrize("messages", [[], chat("q", "a")])
def test_a_prompt_must_wait_for_an_answer(tokenizer, messages):
    with pytest.raises(UserError, match="must end with a user message"):
        Template(tokenizer).encode_prompt(messages)


def test_a_chat_to_train_on_must_end_with_an_answer(tokenizer):
    with pytest.raises(UserError, match="must end with an assistant message"):
        Template(tokenizer).encode_chat(chat("q"))


def test_the_mark_in_a_text_does_no_harm(tokenizer):
    template = Template(tokenizer)
    row = template.encode_chat(chat("\ue0000\ue001", "a\ue000", "\ue0001\ue001", "b"))
    assert tokenizer.decode(row.input_ids) == (
        "<|im_start|>user\n\ue0000\ue001<|im_end|>\n<|im_start|>assistant\na\ue000<|im_end|>\n"
        "<|im_start|>user\n\ue0001\ue001<|im_end|>\n<|im_start|>assistant\nb<|im_end|>"
    )


def test_a_real_tokenizer(minimind):
    template = Template(minimind, "qwen")
    row = template.encode_chat(chat("查看备案", "\nSELECT * FROM 委托备案信息;\n", "b", "B"))
    assert minimind.decode(row.input_ids) == (
        "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\n查看备案<|im_end|>\n"
        "<|im_start|>assistant\n\nSELECT * FROM 委托备案信息;\n<|im_end|>\n<|im_start|>user\nb<|im_end|>\n"
        "<|im_start|>assistant\nB<|im_end|>"
    )
    assert trained(template, row) == ["\nSELECT * FROM 委托备案信息;\n<|im_end|>", "B<|im_end|>"]
    assert template.stop_token_ids == (minimind.eos_token_id,)
