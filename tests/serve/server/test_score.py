"""Scores over HTTP are those that the reward model's folder gives."""

import httpx
import pytest
import torch

from posttrain.config import load_config
from posttrain.data.formats import Message
from posttrain.rewards.http import HttpReward
from posttrain.serve.scoring import FolderScorer
from posttrain.types import RolloutBatch

CHATS = [
    [{"role": "user", "content": f"name a fruit like {fruit}"}, {"role": "assistant", "content": answer}]
    for fruit, answer in [("plum", "fig!"), ("fig", "no lime"), ("kiwi", "date!"), ("melon", "no grape at all")]
]


@pytest.fixture(scope="module")
def server(start, tiny_llama, trained):
    return start(model_name_or_path=str(tiny_llama), reward_model=str(trained / "rm"), cutoff_len=64)


@pytest.fixture(scope="module")
def scorer(tiny_llama, trained):
    values = {"model_name_or_path": str(tiny_llama), "cutoff_len": 64}
    config = load_config(values, command="serve")
    return FolderScorer.configured(config, str(trained / "rm"), notify=lambda _: None)


def expected(scorer, chats=CHATS):
    asked = [(tuple(Message(m["role"], m["content"]) for m in chat[:-1]), chat[-1]["content"]) for chat in chats]
    return scorer.scores(asked)


def scores(server, path="/score", **body):
    found = httpx.post(f"{server.url}{path}", json=body)
    assert found.status_code == 200, found.text
    return found.json()["scores"]


def test_chats_are_scored_as_everywhere_else(server, scorer):
    wanted = expected(scorer)
    assert max(wanted) - min(wanted) > 0.05
    assert scores(server, input=CHATS) == pytest.approx(wanted, abs=1e-5)
    assert scores(server, input=CHATS[1]) == pytest.approx(wanted[1:2], abs=1e-5)
    found = httpx.post(f"{server.url}/score", json={"input": CHATS}).json()
    rows = [scorer.chat_row(tuple(Message(m["role"], m["content"]) for m in chat)) for chat in CHATS]
    assert (found["object"], found["model"]) == ("score.evaluation", "rm")
    assert found["usage"]["prompt_tokens"] == sum(map(len, rows))


def test_texts_are_scored_with_their_special_tokens(server, scorer):
    """What a chat renders to is the same chat; this is how LLaMA-Factory's server is asked."""
    texts = [
        str(scorer.template.tokenizer.decode(scorer.chat_row(tuple(Message(**m) for m in chat)).input_ids))
        for chat in CHATS
    ]
    wanted = expected(scorer)
    assert scores(server, "/score/evaluation", model="model", messages=texts) == pytest.approx(wanted, abs=1e-5)
    assert scores(server, input=texts[2]) == pytest.approx(wanted[2:3], abs=1e-5)


def test_many_rows_take_several_turns(server, scorer):
    assert scores(server, input=CHATS * 10) == pytest.approx(expected(scorer) * 10, abs=1e-5)


@pytest.mark.parametrize("payload", ["posttrain", "llamafactory"])
def test_a_run_elsewhere_can_have_this_server_as_its_reward(server, scorer, payload):
    prompts = [scorer.template.prompt_text((Message(**chat[0]),)) for chat in CHATS]
    end = str(scorer.template.tokenizer.decode(list(scorer.template.end_of_turn)))
    completions = [chat[1]["content"] for chat in CHATS]
    rows = [scorer.chat_row(tuple(Message(**m) for m in chat)).input_ids for chat in CHATS]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    batch = RolloutBatch(
        input_ids=ids,
        attention_mask=mask,
        loss_mask=mask,
        logprobs=torch.zeros(ids.shape),
        prompts=tuple(prompts),
        completions=tuple(completions if payload == "posttrain" else [text + end for text in completions]),
        messages=tuple(chat[:1] for chat in CHATS),
        ended=torch.ones(len(CHATS), dtype=torch.bool),
        extras=({},) * len(CHATS),
    )
    reward = HttpReward(f"{server.url}/score", payload=payload)
    reward.check([])
    assert reward(batch).tolist() == pytest.approx(expected(scorer), abs=1e-5)


def test_it_is_listed_beside_the_model_and_scores_while_that_answers(server):
    assert [model.id for model in server.client().models.list()] == ["tiny-llama", "rm"]
    stream = server.client().chat.completions.create(
        model="tiny-llama",
        messages=CHATS[0][:1],
        stream=True,
        extra_body={"min_tokens": 200, "max_tokens": 200},
    )
    next(iter(stream))
    assert len(scores(server, input=CHATS)) == 4
    assert len(list(stream)) > 3, "the answer went on"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 400, "input is missing"),
        ({"input": []}, 400, "not empty"),
        ({"input": 5}, 400, "must be a text, a chat"),
        ({"input": ["a", ""]}, 400, "input[1] is empty"),
        ({"input": [[{"role": "user", "content": "Hello"}]]}, 400, "must be the assistant's"),
        ({"input": [["Hello"]]}, 400, "neither a text nor a list of messages"),
        ({"completions": ["a"], "prompts": []}, 400, "lists of one length"),
        ({"completions": [3], "prompts": ["a"]}, 400, "completions[0] is not a text"),
        ({"input": "a", "model": "other"}, 404, "this server has: rm"),
    ],
)
def test_what_cannot_be_scored(server, body, status, said):
    found = httpx.post(f"{server.url}/score", json=body)
    assert found.status_code == status
    assert said in found.json()["error"]["message"]


def test_a_reward_model_alone(start, tiny_llama, trained, scorer):
    server = start(
        model_name_or_path=str(tiny_llama), adapter_name_or_path=str(trained / "rm"), stage="rm", cutoff_len=64
    )
    assert scores(server, input=CHATS) == pytest.approx(expected(scorer), abs=1e-5)
    assert [model.id for model in server.client().models.list()] == ["rm"]
    found = httpx.post(f"{server.url}/chat/completions", json={"messages": CHATS[0][:1]})
    assert found.status_code == 404
    assert "it gives scores (POST /v1/score)" in found.json()["error"]["message"]
