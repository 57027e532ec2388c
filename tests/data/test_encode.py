import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from posttrain.data.encode import (
    Report,
    blocks,
    encode_chat,
    encode_pair,
    encode_prompt,
    encode_text,
    row_of_text,
)
from posttrain.data.formats import ChatExample, Message, PairExample, PromptExample, TextExample, UnusableRowError
from posttrain.data.template import Template

LONG = "".join(f"column_{i} 查看, " for i in range(80))


@pytest.fixture(scope="module")
def template(tokenizer):
    return Template(tokenizer)


def user(text):
    return Message("user", text)


def bot(text):
    return Message("assistant", text)


def text_of(template, ids):
    return template.tokenizer.decode(ids)


def test_a_row_that_fits_is_left_alone(template):
    example = ChatExample(messages=(user("q"), bot("\nSELECT 1 查看;")))
    whole = template.encode_chat(example.messages)
    assert encode_chat(example, template, len(whole)) == (whole, False)
    assert encode_chat(example, template, len(whole) - 1)[1]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cutoff=st.integers(30, 500),
    question=st.sampled_from(["q", "查看 " * 40, LONG]),
    answer=st.sampled_from(["\nSELECT 1;\n", LONG]),
    turns=st.integers(1, 4),
)
def test_a_cut_row_keeps_template_and_end_of_turn(any_tokenizer, cutoff, question, answer, turns):
    template = Template(any_tokenizer)
    example = ChatExample(messages=(user(question), bot(answer)) * turns)
    overhead = len(template.encode_prompt([user("")])) + len(template.end_of_turn)
    if cutoff < overhead + 4:
        with pytest.raises(UnusableRowError, match="longer than cutoff_len"):
            encode_chat(example, template, cutoff)
        return
    row, _ = encode_chat(example, template, cutoff)
    assert len(row) <= cutoff
    closing = list(template.end_of_turn)
    assert row.input_ids[-len(closing) :] == closing
    assert all(row.loss_mask[-len(closing) - 1 :])
    header = template.encode_prompt([user("q\n")])[-3:]
    first = row.loss_mask.index(True)
    assert row.input_ids[first - 3 : first] == header
    assert not any(row.loss_mask[:first])


@pytest.mark.parametrize("cutoff", range(120, 170))
def test_the_prompt_is_cut_before_the_answer(template, cutoff):
    answer = "\nSELECT count(*) FROM t;\n"
    row, cut = encode_chat(ChatExample(messages=(user(LONG), bot(answer))), template, cutoff)
    text = text_of(template, row.input_ids)
    assert cut
    assert text.endswith(f"<|im_start|>assistant\n{answer}<|im_end|>")
    assert text.startswith("<|im_start|>user\ncolumn_0 查看, ")
    assert "column_79" in text
    assert "column_40" not in text
    assert "\ufffd" not in text
    assert cutoff - len(row) <= 8, "room was given away"


def test_text_that_grows_when_tokenised_again_still_fits(make_tokenizer):
    growing = make_tokenizer(None)
    growing.backend_tokenizer.normalizer = normalizers.Replace("x", "xx")
    template = Template(growing, "chatml")
    row, _ = encode_chat(ChatExample(messages=(user("x" * 200), bot("yes, yes"))), template, 100)
    assert len(row) <= 100
    assert text_of(template, row.input_ids).count("x") >= 20


def test_a_long_answer_leaves_the_prompt_a_quarter_of_the_room(template):
    row, _ = encode_chat(ChatExample(messages=(user(LONG), bot(LONG))), template, 400)
    answer = sum(row.loss_mask)
    overhead = len(template.encode_prompt([user("x")])) - 1 + len(template.end_of_turn)
    room = 400 - overhead
    assert len(row) == 400
    assert room * 0.73 < answer < room * 0.78
    whole = template.tokens(LONG)
    trained = [i for i, t in zip(row.input_ids, row.loss_mask, strict=True) if t]
    assert trained[:-1] == whole[: answer - 1]


def test_the_oldest_exchanges_go_first(template):
    system = Message("system", "S")
    messages = (system, user("one " * 30), bot("two"), user("three"), bot("four"), user("five"), bot("six"))
    kept = (system, *messages[3:])
    row, cut = encode_chat(ChatExample(messages=messages), template, len(template.encode_chat(kept)))
    assert cut
    assert row == template.encode_chat(kept)


def test_options_reach_the_cut_row(template):
    row, _ = encode_chat(ChatExample(messages=(user(LONG), bot("a"))), template, 100, train_on_prompt=True)
    assert row.loss_mask == [False] + [True] * (len(row) - 1)
    messages = (user("q"), bot("a"), user("r"), bot("b"))
    row, _ = encode_chat(ChatExample(messages=messages), template, 500, mask_history=True)
    assert text_of(template, [i for i, t in zip(row.input_ids, row.loss_mask, strict=True) if t]) == "b<|im_end|>"


def test_a_row_whose_template_does_not_fit_is_unusable(template):
    with pytest.raises(UnusableRowError, match="longer than cutoff_len"):
        encode_chat(ChatExample(messages=(user("q"), bot("a"))), template, 8)
    messages = (Message("system", LONG), user("q"), bot("a"))
    with pytest.raises(UnusableRowError, match="system prompt"):
        encode_chat(ChatExample(messages=messages), template, 100)


def test_both_sides_of_a_pair_share_their_prompt(template):
    example = PairExample(prompt=(user("q"),), chosen="\nyes", rejected="no", margin=0.5)
    pair, cut = encode_pair(example, template, 500)
    assert not cut
    assert pair.chosen == template.encode_chat((user("q"), bot("\nyes")))
    assert pair.rejected == template.encode_chat((user("q"), bot("no")))
    assert (pair.margin, len(pair)) == (0.5, max(len(pair.chosen), len(pair.rejected)))


def test_a_cut_pair_is_cut_alike(template):
    prompt = (user("old"), bot("older"), user(LONG))
    pair, cut = encode_pair(PairExample(prompt=prompt, chosen=LONG, rejected="no"), template, 200)
    assert cut
    chosen, rejected = pair.chosen, pair.rejected
    start = chosen.loss_mask.index(True)
    assert start == rejected.loss_mask.index(True)
    assert chosen.input_ids[:start] == rejected.input_ids[:start]
    assert len(chosen) <= 200
    assert text_of(template, rejected.input_ids).endswith("assistant\nno<|im_end|>")
    assert chosen.input_ids[-1] == template.end_of_turn[-1]
    assert "older" not in text_of(template, chosen.input_ids)


def test_a_pair_that_becomes_the_same_is_unusable(template):
    example = PairExample(prompt=(user("q"),), chosen=LONG + "yes", rejected=LONG + "no")
    with pytest.raises(UnusableRowError, match="after cutting to cutoff_len"):
        encode_pair(example, template, 200)
    assert encode_pair(example, template, 5000)[0].chosen != encode_pair(example, template, 5000)[0].rejected


def test_a_prompt_is_whole_or_unusable(template):
    example = PromptExample(prompt=(user("q"),), extras={"gold": "a"})
    prompt, cut = encode_prompt(example, template, 500)
    assert not cut
    assert prompt.input_ids == template.encode_prompt(example.prompt)
    assert prompt.text == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    assert (prompt.messages, prompt.extras, len(prompt)) == (example.prompt, {"gold": "a"}, len(prompt.input_ids))
    with pytest.raises(UnusableRowError, match="prompt longer than cutoff_len"):
        encode_prompt(example, template, len(prompt) - 1)


@pytest.mark.parametrize("side", ["left", "middle", "right"])
def test_a_prompt_that_may_be_cut_fills_its_room(template, side):
    text = "".join(f"{number} apples; " for number in range(60))
    example = PromptExample(prompt=(user(text),), extras={"gold": "a"})
    whole, _ = encode_prompt(example, template, 5000)
    prompt, cut = encode_prompt(example, template, 60, side)
    assert cut
    assert 50 <= len(prompt) <= 60
    assert prompt.input_ids == template.encode_prompt(prompt.messages)
    assert prompt.text == template.prompt_text(prompt.messages)
    left = prompt.messages[0].content
    begins, ends = left[:12] == text[:12], left[-12:] == text[-12:]
    assert (begins, ends) == {"left": (False, True), "middle": (True, True), "right": (True, False)}[side]
    assert encode_prompt(example, template, len(whole), side) == (whole, False)


def test_the_oldest_exchange_of_a_prompt_goes_first(template):
    chat = (user("old " * 20), Message("assistant", "yes"), user("new"))
    prompt, cut = encode_prompt(PromptExample(prompt=chat), template, 40, "right")
    assert cut
    assert [message.content for message in prompt.messages] == ["new"]
    with pytest.raises(UnusableRowError, match="alone longer than cutoff_len"):
        encode_prompt(PromptExample(prompt=chat), template, len(template.encode_prompt((user(""),))) + 1, "right")


def test_a_document_begins_and_ends_as_the_tokenizer_has_it(make_tokenizer):
    plain = make_tokenizer(None, eos_token="<|end|>")
    body = plain("查看 a", add_special_tokens=False)["input_ids"]
    end = plain.eos_token_id
    assert encode_text(TextExample(text="查看 a"), plain) == [*body, end]
    assert encode_text(TextExample(text="查看 a<|end|>"), plain) == [*body, end]
    assert encode_text(TextExample(text="查看 a"), plain, len(body)) == body
    endless = make_tokenizer(None, eos_token=None)
    assert encode_text(TextExample(text="查看 a"), endless) == body


def test_a_document_gets_the_bos_that_its_tokenizer_adds(make_tokenizer):
    from tokenizers.processors import TemplateProcessing

    opening = make_tokenizer(None, bos_token="<|im_start|>", eos_token="<|end|>")
    bos, end = opening.bos_token_id, opening.eos_token_id
    opening.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", bos)]
    )
    ids = encode_text(TextExample(text="a"), opening)
    assert (ids[0], ids[-1], len(ids)) == (bos, end, 3)
    assert encode_text(TextExample(text="<|im_start|>a"), opening) == ids


@given(
    documents=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12), max_size=6),
    size=st.integers(2, 8),
)
def test_blocks_lose_no_token(documents, size):
    rows = blocks([[*ids, 0] for ids in documents], size, separator=0)
    stream = [token for ids in documents for token in [*ids, 0]]
    joined = [token for row in rows for token in row.input_ids]
    lone = len(stream) % size == 1
    assert joined == (stream[:-1] if lone else stream)
    assert all(len(row) == size for row in rows[:-1])
    assert all(row.loss_mask == [False] + [True] * (len(row) - 1) for row in rows)


def test_documents_without_an_end_are_kept_apart():
    assert [row.input_ids for row in blocks([[1, 2], [3], [4, 5, 6]], 4, separator=9)] == [[1, 2, 9, 3], [9, 4, 5, 6]]
    assert [row.input_ids for row in blocks([[1, 2], [3]], 8)] == [[1, 2, 3]]
    with pytest.raises(ValueError, match="at least two"):
        blocks([[1]], 1)


def test_the_first_token_of_a_text_row_is_no_target():
    assert row_of_text([5, 6, 7]).loss_mask == [False, True, True]


def test_the_report_says_what_became_of_the_rows():
    report = Report(rows_read=10, kept=7, truncated=2, end_of_turn_kept=7)
    report.drop("empty answer", "a.json, row 3")
    report.drop("empty answer", "a.json, row 5")
    report.drop("chosen equals rejected", "a.json, row 4")
    assert report.sentence() == str(report)
    assert report.sentence() == (
        "read 10 rows, kept 7; 2 cut to cutoff_len; 7 end with their end-of-turn token; "
        "dropped 2: empty answer (first: a.json, row 3); dropped 1: chosen equals rejected (first: a.json, row 4)"
    )


@pytest.mark.parametrize(
    ("side", "first", "last"), [("left", False, True), ("middle", True, True), ("right", True, False)]
)
def test_the_side_asked_for_goes(any_tokenizer, side, first, last):
    template = Template(any_tokenizer)
    words = "ALPHA " + "the quick brown fox " * 40 + " OMEGA"
    example = PairExample(prompt=(user(words),), chosen="yes", rejected="no")
    pair, cut = encode_pair(example, template, 150, side)
    assert cut
    text = any_tokenizer.decode(pair.chosen.input_ids)
    assert ("ALPHA" in text, "OMEGA" in text) == (first, last)
    chat, _ = encode_chat(ChatExample(messages=(user(words), bot("yes"))), template, 150, side=side)
    assert chat.input_ids == pair.chosen.input_ids
    empty = template.encode_prompt([user("")])
    for row in (pair.chosen, pair.rejected):
        assert len(row) <= 150
        assert row.input_ids[-len(template.end_of_turn) :] == list(template.end_of_turn)
        assert row.input_ids[0] == empty[0]
