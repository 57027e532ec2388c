"""Many clients at once: nothing is lost, each gets what it gets alone, and who leaves makes room."""

import asyncio
import json
import random
import socket
import threading

import openai
import pytest

from posttrain.serve.model import ChatModel

WORDS = ["plum", "fig", "lime", "kiwi", "date", "peach", "melon", "grape", "mango", "berry", "猕猴桃", "été"]
ENDLESS = {"min_tokens": 1500, "max_tokens": 1500, "temperature": 0}


@pytest.fixture(scope="module")
def server(start, base, adapter):
    return start(
        model_name_or_path=str(base),
        variants=f"base,sft={adapter}",
        max_num_seqs=6,
        max_new_tokens=24,
    )


@pytest.fixture(scope="module")
def alone(base, adapter):
    """What each model says to a chat, asked alone and greedily."""
    models = {
        "base": ChatModel({"model_name_or_path": str(base), "do_sample": False, "max_new_tokens": 24}),
        "sft": ChatModel(
            {
                **{"model_name_or_path": str(base), "adapter_name_or_path": str(adapter)},
                **{"do_sample": False, "max_new_tokens": 24},
            }
        ),
    }
    return lambda name, messages: models[name].chat(messages)[0]


def questions(count):
    chance = random.Random(7)
    return [
        (
            chance.choice(["base", "sft"]),
            [{"role": "user", "content": " ".join(chance.choices(WORDS, k=chance.randint(1, 12)))}],
            chance.random() < 0.5,
        )
        for _ in range(count)
    ]


async def answered(client, model, messages, stream, **how):
    """Text and reason."""
    answer = await client.chat.completions.create(model=model, messages=messages, stream=stream, **how)
    if not stream:
        return answer.choices[0].message.content, answer.choices[0].finish_reason
    text, reason = "", None
    async for chunk in answer:
        text += chunk.choices[0].delta.content or ""
        reason = chunk.choices[0].finish_reason or reason
    return text, reason


def asked_together(server, asked, **how):
    async def ask():
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=100) as client:
            return await asyncio.gather(*(answered(client, *question, **each(n)) for n, question in enumerate(asked)))

    def each(number):
        return {key: value[number] if isinstance(value, list) else value for key, value in how.items()}

    return asyncio.run(ask())


def test_64_clients_lose_nothing_and_each_gets_what_it_gets_alone(server, alone):
    asked = questions(64)
    cancelled = server.metric("cancelled_total")
    found = asked_together(server, asked, temperature=0)
    for (name, messages, _), (text, reason) in zip(asked, found, strict=True):
        expected = alone(name, messages)
        assert (text, reason) == (expected.response_text, expected.finish_reason)
    assert len({text for text, _ in found}) > 40, "the test needs answers that differ"
    assert server.metric("cancelled_total") == cancelled
    server.until("live_slots", 0)
    assert server.metric("queue_length") == 0


def test_sampled_answers_depend_on_their_seed_and_on_nobody_else(server):
    asked = questions(24)
    chance = random.Random(1)
    how = {
        "seed": [chance.randrange(100) for _ in asked],
        "temperature": [chance.choice([0, 0.5, 1.0, 1.4]) for _ in asked],
        "top_p": [chance.choice([0.6, 0.9, 1.0]) for _ in asked],
        "max_tokens": [chance.randint(1, 24) for _ in asked],
        "extra_body": [{"repetition_penalty": chance.choice([1.0, 1.3])} for _ in asked],
    }
    together = asked_together(server, asked, **how)
    singly = [
        asked_together(server, [question], **{key: [value[n]] for key, value in how.items()})[0]
        for n, question in enumerate(asked)
    ]
    assert together == singly


def test_an_adapter_answers_otherwise_than_its_base(alone):
    chat = [{"role": "user", "content": "plum"}]
    assert alone("sft", chat).response_text != alone("base", chat).response_text


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_slots(server, stream):
    gone = server.metric("cancelled_total")
    body = {
        **{"model": "sft", "messages": [{"role": "user", "content": "fig"}], "stream": stream, "n": 3},
        **ENDLESS,
    }
    raw = json.dumps(body).encode()
    host, port = server.root.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: " + str(len(raw)).encode() + b"\r\n\r\n" + raw
        )
        if stream:
            assert b"200 OK" in connection.recv(64)
        server.until("live_slots", 3)
    server.until("live_slots", 0)
    assert server.metric("cancelled_total") == gone + 1
    assert server.metric("queue_length") == 0


def test_who_waits_comes_in_while_others_are_answered(server):
    """Six endless answers hold all slots; when one of them goes, the next client is answered beside the others."""
    client = server.client()
    chat = [{"role": "user", "content": "fig"}]
    streams = [
        client.chat.completions.create(model="base", messages=chat, stream=True, extra_body=ENDLESS) for _ in range(6)
    ]
    for stream in streams:
        next(iter(stream))
    assert server.metric("live_slots") == 6
    texts = []

    def ask():
        answer = server.client().chat.completions.create(model="base", messages=chat, temperature=0, max_tokens=5)
        texts.append(answer.choices[0].message.content)

    waiting = threading.Thread(target=ask)
    waiting.start()
    server.until("queue_length", 1)
    assert texts == []
    streams[2].close()
    waiting.join(30)
    assert len(texts) == 1
    assert server.metric("live_slots") == 5, "the others go on"
    for stream in streams:
        stream.close()
    server.until("live_slots", 0)


def test_the_next_turn_of_a_conversation_computes_what_is_new(server):
    client = server.client()
    chat = [{"role": "user", "content": "plum fig lime kiwi date peach"}]
    first = client.chat.completions.create(model="base", messages=chat, temperature=0, max_tokens=20)
    reused = server.metric("prompt_tokens_reused_total")
    chat += [{"role": "assistant", "content": first.choices[0].message.content}, {"role": "user", "content": "and?"}]
    second = client.chat.completions.create(model="base", messages=chat, temperature=0, max_tokens=20)
    assert server.metric("prompt_tokens_reused_total") - reused >= first.usage.prompt_tokens - 1
    again = server.client().chat.completions.create(model="base", messages=chat, temperature=0, max_tokens=20)
    assert again.choices == second.choices


def test_memory_of_a_server_at_rest_is_given_back(start, base, monkeypatch):
    monkeypatch.setattr("posttrain.serve.server.worker.REST_SECONDS", 0.2)
    server = start(model_name_or_path=str(base), max_new_tokens=5)
    ask = server.client().chat.completions.create
    chat = [{"role": "user", "content": "fig"}]
    first = ask(model="base", messages=chat, temperature=0)
    assert server.metric("cache_bytes") > 0
    server.until("cache_bytes", 0)
    assert ask(model="base", messages=chat, temperature=0).choices == first.choices
