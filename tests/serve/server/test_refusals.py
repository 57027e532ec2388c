"""Keys, limits and errors: each in OpenAI's form, with a sentence that says what is wrong."""

import json
import threading

import httpx
import openai
import pytest

CHAT = [{"role": "user", "content": "Hello there"}]
ENDLESS = {"min_tokens": 1500, "max_tokens": 1500, "temperature": 0}


@pytest.fixture(scope="module")
def server(start, base):
    return start({"API_KEY": "sésame"}, model_name_or_path=str(base), max_new_tokens=8, api_max_body_mb=0.05)


@pytest.fixture(scope="module")
def ask(server):
    """Post a body as it is; the status and the error."""

    def ask(path="/chat/completions", content=None, **values):
        if content is None:
            content = json.dumps({"messages": CHAT, **values})
        headers = {"Authorization": "Bearer sésame".encode()}
        found = httpx.post(f"{server.url}{path}", content=content, headers=headers)
        return found.status_code, found.json().get("error", {})

    return ask


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer no"}, {"Authorization": "Basic abc"}])
def test_without_the_key_nobody_gets_in(server, headers):
    for path in ("/chat/completions", "/completions", "/score"):
        found = httpx.post(f"{server.url}{path}", json={}, headers=headers)
        assert found.status_code == 401
        assert found.headers["www-authenticate"] == "Bearer"
        assert found.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{server.url}/models", headers=headers).status_code == 401
    assert httpx.get(f"{server.root}/health", headers=headers).status_code == 200
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
        server.client(api_key="wrong").models.list()


def test_the_key_opens(server):
    found = httpx.get(f"{server.url}/models", headers={"Authorization": "Bearer sésame".encode()})
    assert found.json()["data"][0]["id"] == "base"


def test_a_wrong_name_is_not_found(ask):
    status, error = ask(model="gpt-4")
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert error["message"] == "The model 'gpt-4' does not exist here; this server has: base."


@pytest.mark.parametrize(
    ("values", "param", "said"),
    [
        ({"temperature": 3}, "temperature", "temperature: should be less than or equal to 2, not 3."),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": "many"}, "n", "valid integer"),
        ({"messages": "Hello"}, "messages", "valid list, not 'Hello'"),
        ({"messages": []}, "messages", "empty list"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0]", "role is 'king'"),
        ({"messages": [{"role": "user"}]}, "messages[0]", "content is NoneType, not text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0]", "'image_url'"),
        ({"messages": [*CHAT, {"role": "assistant", "content": "Hi"}]}, "messages", "must end with a user message"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 99999}, "max_tokens", "tokens fit behind this prompt"),
        ({"min_tokens": 9, "max_tokens": 3}, None, "min_tokens is 9"),
        ({"stop": ["a", ""]}, "stop", "none of them empty"),
        ({"stop": ["a"] * 17}, "stop", "up to 16"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs: true"),
        ({"tools": [{"type": "function"}]}, "tools", "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty", "not supported"),
        ({"temprature": 1}, "temprature", "did you mean temperature?"),
    ],
)
def test_a_wrong_parameter_is_named(ask, values, param, said):
    status, error = ask(**values)
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert said in error["message"]


def test_parameters_that_ask_for_nothing_are_let_through(ask):
    idle = {"user": "me", "tools": [], "presence_penalty": 0, "logit_bias": {}, "response_format": {"type": "text"}}
    assert ask(max_tokens=2, stop=None, **idle)[0] == 200


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        ("/chat/completions", "{", "not valid JSON: Expecting"),
        ("/chat/completions", b"\xff\xfe", "not valid JSON"),
        ("/chat/completions", "[" * 20000, "not valid JSON"),
        ("/chat/completions", "[]", "must be a JSON object"),
        ("/chat/completions", "{}", "messages: is missing"),
        ("/completions", "{}", "prompt: is missing"),
        ("/completions", '{"prompt": []}', "empty list"),
        ("/completions", '{"prompt": ""}', "prompt 1 is empty"),
        ("/completions", '{"prompt": [[5, 100000]]}', "token 100000; the model has 258"),
        ("/completions", '{"prompt": "a", "echo": true}', "echo is not supported"),
    ],
)
def test_a_body_that_cannot_be_read(ask, path, content, said):
    status, error = ask(path, content)
    assert status == 400
    assert said in error["message"]


def test_a_prompt_longer_than_the_context(ask):
    status, error = ask(messages=[{"role": "user", "content": "long " * 600}])
    assert (status, error["code"]) == (400, "context_length_exceeded")
    assert "the model takes 2048" in error["message"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large(server, chunked):
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 60_000}]}).encode()
    found = httpx.post(
        f"{server.url}/chat/completions",
        content=iter([body]) if chunked else body,
        headers={"Authorization": "Bearer sésame".encode()},
    )
    assert found.status_code == 413
    assert found.json()["error"]["message"] == "The request is larger than 0.05 MB (api_max_body_mb)."


def test_there_is_no_such_page(server):
    headers = {"Authorization": "Bearer sésame".encode()}
    found = httpx.get(f"{server.url}/embeddings", headers=headers)
    assert (found.status_code, found.json()["error"]["message"]) == (404, "GET /v1/embeddings: Not Found.")
    assert httpx.get(f"{server.url}/chat/completions", headers=headers).status_code == 405


def test_scores_need_a_reward_model(ask):
    status, error = ask("/score", '{"input": "x"}')
    assert status == 404
    assert "no reward model" in error["message"]


def test_a_queue_that_is_full_says_when_to_come_again(start, base):
    server = start(model_name_or_path=str(base), max_num_seqs=1, api_max_queue=1)
    client = server.client()
    live = client.chat.completions.create(model="base", messages=CHAT, stream=True, extra_body=ENDLESS)
    waiting = threading.Thread(target=_asked, args=(server,), daemon=True)
    waiting.start()
    server.until("queue_length", 1)
    with pytest.raises(openai.RateLimitError, match="try again in") as refused:
        client.chat.completions.create(model="base", messages=CHAT)
    assert int(refused.value.response.headers["retry-after"]) >= 1
    live.close()
    waiting.join(30)
    assert not waiting.is_alive(), "the one that waited was answered"


def _asked(server):
    server.client().chat.completions.create(model="base", messages=CHAT, max_tokens=3)


def test_an_answer_that_takes_too_long(start, base):
    server = start(model_name_or_path=str(base), api_time_limit=0.4)
    client = server.client()
    with pytest.raises(openai.APIStatusError, match=r"within 0\.4 seconds") as late:
        client.chat.completions.create(model="base", messages=CHAT, extra_body=ENDLESS)
    assert late.value.status_code == 504
    server.until("live_slots", 0)
    stream = client.chat.completions.create(model="base", messages=CHAT, stream=True, extra_body=ENDLESS)
    with pytest.raises(openai.APIError, match=r"within 0\.4 seconds"):
        list(stream)
    server.until("live_slots", 0)
    assert server.metric("cancelled_total") == 2


def test_pages_of_named_origins_may_ask(start, base):
    server = start(model_name_or_path=str(base), api_allow_origins="http://localhost:3000", api_key="k")
    for origin, allowed in (("http://localhost:3000", "http://localhost:3000"), ("http://elsewhere", None)):
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        assert (
            httpx.options(f"{server.url}/chat/completions", headers=asked).headers.get("access-control-allow-origin")
            == allowed
        )
        refused = httpx.get(f"{server.url}/models", headers={"Origin": origin})
        assert refused.status_code == 401
        assert refused.headers.get("access-control-allow-origin") == allowed


def test_a_model_that_breaks_fails_its_requests_and_not_the_server(start, base):
    server = start(model_name_or_path=str(base), max_new_tokens=8)
    client = server.client()
    head = server.served.model.get_output_embeddings()
    good = head.weight.data.clone()
    head.weight.data.fill_(float("nan"))
    with pytest.raises(openai.InternalServerError, match="not numbers"):
        client.chat.completions.create(model="base", messages=CHAT)
    assert any("not numbers" in sentence for sentence in server.said)
    head.weight.data.copy_(good)
    assert client.chat.completions.create(model="base", messages=CHAT, temperature=0).choices[0].message.content
    server.until("live_slots", 0)
