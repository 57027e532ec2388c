"""Chat completions over HTTP, from servers that behave and servers that do not."""

import json
import threading
import time

import pytest

from posttrain.config import load_config
from posttrain.errors import RewardError, UserError
from posttrain.rewards.judge_client import ChatClient, RefusedError, chat_url, side_by_side

CHAT = [{"role": "user", "content": "Which?"}]


def client(server, **keys):
    return ChatClient(server.url, "referee", first_pause_s=0.01, **keys)


def in_turn(*replies):
    """A reply that is another one each time; the last stays."""
    left = list(replies)
    return lambda question: left.pop(0) if len(left) > 1 else left[0]


def test_a_request_says_what_openai_documents(judge_server):
    server = judge_server(lambda question: f"said {question}")
    assert client(server, token="t0ken", max_tokens=64).answer(CHAT) == "said Which?"
    assert server.payloads == [{"model": "referee", "messages": CHAT, "temperature": 0.0, "max_tokens": 64}]
    assert server.headers[0]["path"] == "/v1/chat/completions"
    assert server.headers[0]["Authorization"] == "Bearer t0ken"
    assert client(server, temperature=None, max_tokens=None).answer(CHAT) == "said Which?"
    assert server.payloads[1] == {"model": "referee", "messages": CHAT}
    assert "Authorization" not in server.headers[1]


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://h:1", "http://h:1/v1/chat/completions"),
        ("https://h/v1/", "https://h/v1/chat/completions"),
        ("https://h/api/v1?version=2", "https://h/api/v1/chat/completions?version=2"),
        ("http://h/v1/chat/completions", "http://h/v1/chat/completions"),
    ],
)
def test_the_base_url_is_taken_as_other_programs_take_it(base, url):
    assert chat_url(base) == url


@pytest.mark.parametrize("base", ["ftp://h/v1", "http://", "http://h:port", "judge", "file:///etc/passwd"])
def test_what_is_no_address_is_refused(base):
    with pytest.raises(UserError, match="no address of a server"):
        chat_url(base)


def test_a_password_in_the_address_is_refused_without_being_repeated():
    with pytest.raises(UserError, match="judge_token_env") as refusal:
        chat_url("http://me:hunter2@h/v1")
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    "failure",
    [(500, b"oops"), (429, b"slow down", {"Retry-After": "0"}), (200, b"<html>starting</html>"), (200, b"{}"), None],
)
def test_a_server_that_fails_twice_is_asked_a_third_time(judge_server, failure):
    server = judge_server(in_turn(failure, failure, "at last"))
    asked = client(server, retries=2)
    assert asked.answer(CHAT) == "at last"
    assert (asked.num_requests, asked.num_retries, len(server.asked)) == (3, 2, 3)


def test_a_server_may_ask_to_wait(judge_server):
    server = judge_server(in_turn((429, b"", {"Retry-After": "1"}), "now"))
    began = time.monotonic()
    assert client(server).answer(CHAT) == "now"
    assert time.monotonic() - began >= 1


def test_a_dead_server_is_one_error_that_names_address_and_last_failure(judge_server):
    server = judge_server(in_turn((500, b"first"), (503, b"out of memory, token t0ken")))
    with pytest.raises(RewardError) as failure:
        client(server, retries=2, token="t0ken").answer(CHAT)
    assert f"no answer from {server.url}/chat/completions in 3 attempts" in str(failure.value)
    assert "503" in str(failure.value)
    assert "out of memory" in str(failure.value)
    assert "first" not in str(failure.value)
    assert "t0ken" not in str(failure.value)
    server.close()
    with pytest.raises(RewardError, match=r"does not answer .*refused"):
        client(server, retries=1).answer(CHAT)


def test_a_slow_server_is_given_up_in_time(judge_server):
    free = threading.Event()
    server = judge_server(lambda question: "late" if free.wait(20) else "never")
    began = time.monotonic()
    with pytest.raises(RewardError, match="within the time limit"):
        client(server, retries=1, time_limit_s=0.2).answer(CHAT)
    free.set()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(("status", "hint"), [(401, "judge_token_env"), (403, "judge_token_env"), (404, "judge_model")])
def test_what_no_retry_can_cure_is_said_at_once(judge_server, status, hint):
    server = judge_server(lambda question: (status, b'{"error": "no such thing"}'))
    with pytest.raises(UserError, match=f"{status}.*no such thing.*{hint}"):
        client(server).answer(CHAT)
    assert len(server.asked) == 1


def test_a_refused_question_says_nothing_about_the_next(judge_server):
    server = judge_server(in_turn((400, b"context of 4096 tokens exceeded"), "fine"))
    asked = client(server)
    with pytest.raises(RefusedError, match="context of 4096"):
        asked.answer(CHAT)
    assert asked.answer(CHAT) == "fine"


def test_no_redirect_takes_the_token_elsewhere(judge_server):
    other = judge_server(lambda question: "mine now")
    server = judge_server(lambda question: (307, b"", {"Location": f"{other.url}/chat/completions"}))
    with pytest.raises(UserError, match="sends on to"):
        client(server, token="t0ken").answer(CHAT)
    assert other.asked == []


def test_models_that_want_another_name_for_the_limit_get_it(judge_server):
    error = json.dumps({"error": {"message": "'max_tokens' is not supported; use 'max_completion_tokens' instead."}})
    server = judge_server(in_turn((400, error.encode()), "fine"))
    asked = client(server, max_tokens=9)
    assert [asked.answer(CHAT), asked.answer(CHAT)] == ["fine", "fine"]
    assert [payload.get("max_tokens") for payload in server.payloads] == [9, None, None]
    assert [payload.get("max_completion_tokens") for payload in server.payloads] == [None, 9, 9]


def test_a_thoughtful_model_that_says_nothing_gives_empty_text(judge_server):
    body = json.dumps({"choices": [{"message": {"role": "assistant", "content": None}}]}).encode()
    assert client(judge_server(lambda question: (200, body))).answer(CHAT) == ""


def test_the_token_is_read_from_the_environment_alone(judge_server, monkeypatch):
    server = judge_server(lambda question: "fine")
    keys = {"model_name_or_path": "m", "dataset": "d", "judge": server.url, "judge_model": "referee"}
    config = load_config({**keys, "judge_token_env": "REFEREE_TOKEN"}, command="label")
    monkeypatch.delenv("REFEREE_TOKEN", raising=False)
    with pytest.raises(UserError, match="judge_token_env: the environment variable REFEREE_TOKEN is not set"):
        ChatClient.configured(config)
    monkeypatch.setenv("REFEREE_TOKEN", "t0ken\n")
    assert ChatClient.configured(config).answer(CHAT) == "fine"
    assert server.headers[0]["Authorization"] == "Bearer t0ken"
    assert "t0ken" not in json.dumps(config.to_flat())


def test_work_is_shared_among_few_and_ends_with_the_first_error():
    lock, now, most = threading.Lock(), 0, 0

    def work(item):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1
        return item * item

    found = dict(side_by_side(range(20), work, limit=3))
    assert found == {n: n * n for n in range(20)}
    assert most == 3
    assert list(side_by_side([], work, limit=3)) == []

    begun = []

    def fails_at_two(item):
        begun.append(item)
        if item == 2:
            raise RewardError("broken")
        return item

    with pytest.raises(RewardError, match="broken"):
        list(side_by_side(range(1000), fails_at_two, limit=1))
    assert begun == [0, 1, 2]
