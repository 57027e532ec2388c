"""OpenAI's own client gets the answers that the model gives, whole and in pieces."""

import httpx
import openai
import pytest

from posttrain.serve.model import ChatModel

CHAT = [{"role": "user", "content": "Hello there"}]
GREEDY = {"temperature": 0, "max_tokens": 40}


@pytest.fixture(scope="module")
def server(start, base):
    return start(model_name_or_path=str(base), max_new_tokens=30, max_num_seqs=4)


@pytest.fixture(scope="module")
def client(server):
    return server.client()


@pytest.fixture(scope="module")
def model(base):
    return ChatModel({"model_name_or_path": str(base), "max_new_tokens": 40, "do_sample": False})


def streamed(chunks):
    """Texts and reasons of a stream, by choice."""
    texts, reasons = {}, {}
    for chunk in chunks:
        for choice in chunk.choices:
            piece = choice.delta.content if hasattr(choice, "delta") else choice.text
            texts[choice.index] = texts.get(choice.index, "") + (piece or "")
            if choice.finish_reason:
                assert choice.index not in reasons
                reasons[choice.index] = choice.finish_reason
    return texts, reasons


def test_a_chat_is_answered_as_the_model_answers_it(client, model):
    (expected,) = model.chat(CHAT)
    answer = client.chat.completions.create(model="base", messages=CHAT, **GREEDY)
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == expected.response_text
    assert choice.finish_reason == expected.finish_reason
    assert answer.usage.prompt_tokens == expected.prompt_length
    assert answer.usage.completion_tokens == expected.response_length
    assert answer.usage.total_tokens == expected.prompt_length + expected.response_length
    assert answer.model == "base"
    assert answer.id.startswith("chatcmpl-")


def test_what_a_request_leaves_open_is_as_configured(client):
    answer = client.chat.completions.create(model="base", messages=CHAT, extra_body={"min_tokens": 30})
    assert answer.usage.completion_tokens == 30


def test_a_stream_is_the_same_text_in_pieces(client, model):
    (expected,) = model.chat(CHAT)
    chunks = list(client.chat.completions.create(model="base", messages=CHAT, stream=True, **GREEDY))
    texts, reasons = streamed(chunks)
    assert texts == {0: expected.response_text}
    assert reasons == {0: expected.finish_reason}
    assert len(chunks) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_ends_with_its_usage_if_asked(client):
    how = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(model="base", messages=CHAT, **how, **GREEDY))
    whole = client.chat.completions.create(model="base", messages=CHAT, **GREEDY)
    assert chunks[-1].choices == []
    assert chunks[-1].usage.model_dump() == whole.usage.model_dump()


def test_several_choices_are_several_samples(client):
    how = {"model": "base", "messages": CHAT, "n": 6, "temperature": 1.0, "top_p": 1.0, "max_tokens": 12, "seed": 4}
    answer = client.chat.completions.create(**how)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert len(set(texts)) == 6
    again, _ = streamed(client.chat.completions.create(**how, stream=True))
    assert [again[index] for index in range(6)] == texts
    assert answer.usage.prompt_tokens < 40, "the prompt counts once"


def test_a_seed_repeats_an_answer_and_none_draws_anew(client):
    how = {"model": "base", "messages": CHAT, "temperature": 1.0, "top_p": 1.0, "max_tokens": 20}

    def text(**more):
        return client.chat.completions.create(**how, **more).choices[0].message.content

    assert text(seed=1) == text(seed=1) != text(seed=2)
    assert text() != text()


def test_a_stop_string_ends_an_answer_before_it(client, model):
    (whole,) = model.chat(CHAT)
    text = whole.response_text
    stop = text[8:11]
    where = text.index(stop)
    for stops in (stop, ["never there", stop]):
        answer = client.chat.completions.create(model="base", messages=CHAT, stop=stops, **GREEDY)
        assert answer.choices[0].message.content == text[:where]
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.completion_tokens < whole.response_length
        texts, reasons = streamed(
            client.chat.completions.create(model="base", messages=CHAT, stop=stops, stream=True, **GREEDY)
        )
        assert (texts, reasons) == ({0: text[:where]}, {0: "stop"})


def test_an_answer_that_is_cut_says_so(client):
    answer = client.chat.completions.create(model="base", messages=CHAT, temperature=0, max_completion_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


def test_logprobs_are_those_of_the_tokens(client):
    how = {"logprobs": True, "top_logprobs": 3, "temperature": 0, "max_tokens": 6}
    answer = client.chat.completions.create(model="base", messages=CHAT, **how)
    told = answer.choices[0].logprobs.content
    assert len(told) == answer.usage.completion_tokens
    for token in told:
        assert token.logprob == token.top_logprobs[0].logprob, "greedy takes the most probable one"
        assert token.token == token.top_logprobs[0].token
        assert [other.logprob for other in token.top_logprobs] == sorted(
            (other.logprob for other in token.top_logprobs), reverse=True
        )
        assert token.logprob < 0
    chunks = client.chat.completions.create(model="base", messages=CHAT, stream=True, **how)
    pieces = [
        token for chunk in chunks for choice in chunk.choices if choice.logprobs for token in choice.logprobs.content
    ]
    assert [(token.token, token.logprob) for token in pieces] == [(token.token, token.logprob) for token in told]


def test_texts_are_completed(client, model):
    ids = model.template.tokens("Once upon")
    settings = {"temperature": 0, "max_tokens": 12}
    ((expected,),) = model.complete([ids])
    answer = client.completions.create(model="base", prompt="Once upon", **settings)
    (choice,) = answer.choices
    assert choice.text == model._decode(expected.token_ids[:12], model.config.generation)
    assert answer.usage.prompt_tokens == len(ids)
    same = client.completions.create(model="base", prompt=ids, **settings)
    assert same.choices[0].text == choice.text
    texts, _ = streamed(client.completions.create(model="base", prompt=["Once upon", "Zz"], stream=True, **settings))
    several = client.completions.create(model="base", prompt=["Once upon", "Zz"], **settings)
    assert [each.text for each in several.choices] == [texts[0], texts[1]]
    assert texts[0] == choice.text
    told = client.completions.create(model="base", prompt=ids, logprobs=2, **settings).choices[0].logprobs
    assert len(told.tokens) == 12
    assert [max(best.values()) for best in told.top_logprobs] == told.token_logprobs


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["base"]
    assert client.models.retrieve("base").owned_by == "posttrain"
    with pytest.raises(openai.NotFoundError, match="this server has: base"):
        client.models.retrieve("gpt-4")


def test_chats_may_come_in_parts_and_with_other_roles(client):
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there"}]}]
    whole = client.chat.completions.create(model="base", messages=CHAT, **GREEDY)
    assert client.chat.completions.create(model="base", messages=parts, **GREEDY).choices == whole.choices
    system, developer = (
        client.chat.completions.create(model="base", messages=[{"role": role, "content": "Be brief."}, *CHAT], **GREEDY)
        for role in ("system", "developer")
    )
    assert system.choices == developer.choices != whole.choices


def test_health_and_metrics(server, client):
    before = server.metric("completion_tokens_total")
    answered = server.metric("requests_total", endpoint="/v1/chat/completions", status="200")
    first = server.metric("first_token_seconds_count")
    answer = client.chat.completions.create(model="base", messages=CHAT, **GREEDY)
    assert httpx.get(f"{server.root}/health").json() == {"status": "ok"}
    assert server.metric("completion_tokens_total") == before + answer.usage.completion_tokens
    assert server.metric("requests_total", endpoint="/v1/chat/completions", status="200") == answered + 1
    assert server.metric("first_token_seconds_count") == first + 1
    server.until("live_slots", 0)
    assert server.metric("queue_length") == 0
    assert server.metric("slots") == 4
