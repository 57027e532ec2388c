"""Servers as rewards: real ones on this machine, which answer well, badly, late, not at first and not at all."""

from __future__ import annotations

import socket
import time
from itertools import pairwise

import pytest
import torch

from posttrain.config import load_config
from posttrain.errors import RewardError, UserError
from posttrain.rewards.http import HttpReward

TOKEN = "secret-token-1234"
PPO = {"model_name_or_path": "m", "dataset": "d", "output_dir": "o", "stage": "ppo"}


def lengths(content, headers, number):
    return {"scores": [len(text) for text in content["completions"]]}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def quick(url, **options):
    return HttpReward(url, **{"pause_s": 0.01, "time_limit_s": 5.0, **options})


def test_our_schema(rollouts, serve):
    chats = [({"role": "user", "content": "数一数"},), ()]
    batch = rollouts(["ab", "答"], ["p", "q"], chats, answer=["2", None], level=[1, 2])
    with serve(lengths) as server:
        rewards = quick(server.url)(batch)
    assert rewards.tolist() == [2.0, 1.0]
    assert server.requests == [
        {
            "prompts": ["p", "q"],
            "completions": ["ab", "答"],
            "messages": [[{"role": "user", "content": "数一数"}], []],
            "columns": {"answer": ["2", None], "level": [1, 2]},
        }
    ]


def test_the_payload_of_llamafactory_holds_texts_with_their_special_tokens(rollouts, serve):
    batch = rollouts(["ab", "c"], ["<s>p", "q"])
    seen = []

    def decode(ids):
        seen.append(ids)
        return "".join(map(chr, ids)) + "</s>"

    with serve(lambda content, headers, number: {"scores": [0.5, -1]}) as server:
        assert quick(server.url, payload="llamafactory", decode=decode)(batch).tolist() == [0.5, -1.0]
        quick(server.url, payload="llamafactory")(batch)
    assert server.requests[0] == {"model": "model", "messages": ["<s>pab</s>", "qc</s>"]}
    assert seen[1] == [ord("q"), ord("c")]  # no padding
    assert server.requests[1]["messages"] == ["<s>pab", "qc"]


def test_large_batches_are_split_and_come_back_in_their_order(rollouts, serve):
    def answer(content, headers, number):
        time.sleep(0.02 * len(content["completions"][0]))  # the first is answered last
        return lengths(content, headers, number)

    batch = rollouts(["x" * n for n in (9, 8, 7, 6, 5, 4, 3, 2, 1, 0)], index=list(range(10)))
    with serve(answer) as server:
        rewards = quick(server.url, batch_size=3)(batch)
    assert rewards.tolist() == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert sorted(len(request["completions"]) for request in server.requests) == [1, 3, 3, 3]
    assert sorted(i for request in server.requests for i in request["columns"]["index"]) == list(range(10))


def test_the_token_is_sent_and_never_shown(rollouts, serve, monkeypatch):
    monkeypatch.setenv("REWARD_TOKEN", TOKEN)
    keys = {"reward_funcs": "http://x/", "reward_token_env": "REWARD_TOKEN", "reward_retries": 0}
    config = load_config({**PPO, **keys})
    with serve(lambda content, headers, number: (400, {"error": f"bad token {TOKEN}"})) as server:
        reward = HttpReward.configured(config, server.url)
        with pytest.raises(RewardError) as caught:
            reward(rollouts(["a"]))
    assert server.headers[0]["Authorization"] == f"Bearer {TOKEN}"
    assert "bad token ***" in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert TOKEN not in str(config.to_flat())


@pytest.mark.parametrize("value", [None, "  ", "schlüssel"])
def test_a_token_that_is_missing_or_cannot_be_sent_is_said_before_anything_is_asked(monkeypatch, value):
    monkeypatch.delenv("REWARD_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("REWARD_TOKEN", value)
    config = load_config({**PPO, "reward_funcs": "http://x/", "reward_token_env": "REWARD_TOKEN"})
    with pytest.raises(UserError, match=r"^reward_token_env: .*REWARD_TOKEN"):
        HttpReward.configured(config, "http://x/")


@pytest.mark.parametrize("failure", [None, (500, b"oops"), (503, {}, {"Retry-After": "0"}), (429, b"")])
def test_a_server_that_recovers_is_asked_again(rollouts, serve, failure):
    with serve(lambda content, headers, number: lengths(content, headers, number) if number > 2 else failure) as server:
        assert quick(server.url, retries=2)(rollouts(["abc"])).tolist() == [3.0]
    assert len(server.requests) == 3


def test_retries_wait_longer_each_time(rollouts, serve):
    times = []

    def answer(content, headers, number):
        times.append(time.monotonic())
        return (500, b"") if number < 4 else lengths(content, headers, number)

    with serve(answer) as server:
        quick(server.url, pause_s=0.1, retries=3)(rollouts(["a"]))
    waits = [after - before for before, after in pairwise(times)]
    assert all(wait > 0.95 * least for wait, least in zip(waits, (0.1, 0.2, 0.4), strict=True))


def test_one_that_dies_for_good_stops_after_the_retries_with_its_address(rollouts, serve):
    with serve(lengths) as server:
        reward = quick(server.url + "?key=hidden", retries=2)
        assert reward(rollouts(["a"])).tolist() == [1.0]
    with pytest.raises(RewardError) as caught:
        reward(rollouts(["a"]))
    assert str(caught.value) == f"the reward server {server.url} does not answer (Connection refused) (3 attempts)."


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((500, b"out of memory"), r"answered 500 Internal Server Error: 'out of memory' \(2 attempts\)"),
        ((404, b"nothing here"), "answered 404 Not Found: 'nothing here'"),
        ((401, b""), "answered 401 Unauthorized"),
        ((302, b"", {"Location": "http://elsewhere.example/"}), "sends on to http://elsewhere.example/"),
        (None, r"does not answer \(.*\) \(2 attempts\)"),
        ((200, b"<html>busy</html>"), "answered '<html>busy</html>', not JSON"),
        ((200, b""), "answered nothing, not JSON"),
        ([1.0, 2.0], r"answered '\[1.0, 2.0\]', without a list called \"scores\""),
        ({"reward": [1.0]}, r"answered '.\"reward\": \[1.0\].', without a list called"),
        ({"scores": [1.0]}, "gave 1 number for 2 completions"),
        ({"scores": 1.0}, "gave 1.0, not a list of 2 numbers"),
        ({"scores": [1.0, "2"]}, r"gave '2' for completion 2 of 2 \('b'\)"),
        ({"scores": [1.0, None]}, "gave None for completion 2 of 2"),
        ((200, b'{"scores": [1.0, NaN]}'), "gave nan for completion 2 of 2"),
    ],
)
def test_bad_answers_are_told(rollouts, serve, answer, words):
    with serve(lambda content, headers, number: answer) as server:
        with pytest.raises(RewardError, match=rf"^the reward server {server.url} {words}"):
            quick(server.url, retries=1)(rollouts(["a", "b"]))
        passing = answer is None or (isinstance(answer, tuple) and answer[0] >= 500)
        assert len(server.requests) == (2 if passing else 1)


def test_a_completion_without_a_score_can_count_0(rollouts, serve):
    said = []
    with serve(lambda content, headers, number: {"scores": [1.0, None]}) as server:
        assert quick(server.url, on_error="zero", notify=said.append)(rollouts(["a", "b"])).tolist() == [1.0, 0.0]
    assert len(said) == 1


@pytest.mark.parametrize("drips", [False, True])
def test_a_server_that_is_too_slow_is_given_up(rollouts, serve, drips):
    def answer(content, headers, number):
        time.sleep(4)
        return {"scores": [1.0]}

    def drip(handler, _):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        try:
            for _ in range(30):
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass

    with serve(answer) as server:
        if drips:
            server.send = drip
        began = time.monotonic()
        with pytest.raises(RewardError, match="gave no answer within the time limit"):
            quick(server.url, time_limit_s=0.2, retries=0)(rollouts(["a"]))
        assert time.monotonic() - began < 3


def test_a_failure_stops_the_retries_of_the_other_requests(rollouts, serve):
    def answer(content, headers, number):
        return (404, b"") if "x" in content["completions"] else (503, b"")

    with serve(answer) as server:
        began = time.monotonic()
        with pytest.raises(RewardError, match="404"):
            quick(server.url, batch_size=1, retries=50, pause_s=0.2)(rollouts(["a", "x", "b"]))
        assert time.monotonic() - began < 5
        time.sleep(0.5)
        asked = len(server.requests)
        time.sleep(0.5)
        assert len(server.requests) == asked


def test_a_server_that_takes_no_connection_is_refused_before_the_run(serve):
    url = f"http://127.0.0.1:{free_port()}/score"
    with pytest.raises(
        UserError, match=r"does not answer .*refused.* \(2 attempts\)\. Start it, or correct the address"
    ):
        quick(url, retries=1).check([])
    with serve(lengths) as server:
        quick(server.url).check([])
        assert server.requests == []


def test_rewards_are_on_the_device_of_the_batch(rollouts, serve):
    with serve(lengths) as server:
        rewards = quick(server.url)(rollouts(["a"]))
    assert rewards.device == torch.device("cpu")
    assert rewards.dtype == torch.float32
