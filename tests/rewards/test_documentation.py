"""What the page about rewards shows works as it is shown."""

from __future__ import annotations

import json
import re
import threading

import pytest
import yaml

from posttrain.config import load_config
from posttrain.rewards.function import FunctionReward, load_function
from posttrain.rewards.http import HttpReward

PPO = {"model_name_or_path": "m", "dataset": "d", "output_dir": "o", "stage": "ppo"}


@pytest.fixture
def blocks(request):
    text = (request.config.rootpath / "docs" / "rewards.md").read_text(encoding="utf-8")
    return re.findall(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL)


def test_its_function_scores(blocks, rollouts, tmp_path):
    code = next(code for language, code in blocks if language == "python" and "def score" in code)
    (tmp_path / "my_rewards.py").write_text(code, encoding="utf-8")
    reward = FunctionReward(load_function(tmp_path / "my_rewards.py", "score"))
    assert reward(rollouts(["it is 4", "it is 5"], answer=["4", "4"])).tolist() == [1.0, 0.0]


def test_its_server_answers_what_its_schema_says(blocks, rollouts, monkeypatch):
    from http import server

    code = next(code for language, code in blocks if language == "python" and "ThreadingHTTPServer(" in code)
    assert '("127.0.0.1", 8000)' in code
    started = []

    class Anywhere(server.ThreadingHTTPServer):
        """On a port that is free, and not for ever."""

        def __init__(self, address, handler):
            super().__init__(("127.0.0.1", 0), handler)
            started.append(self)

        def serve_forever(self):
            threading.Thread(target=super().serve_forever, args=(0.02,), daemon=True).start()

    monkeypatch.setattr(server, "ThreadingHTTPServer", Anywhere)
    exec(compile(code, "docs/rewards.md", "exec"), {})
    url = f"http://127.0.0.1:{started[0].server_address[1]}/score"
    assert HttpReward(url)(rollouts(["short", "x" * 100])).tolist() == [1.0, 0.0]
    started[0].shutdown()
    started[0].server_close()


def test_its_request_is_what_we_post(blocks, rollouts, serve):
    request, answer = (json.loads(code) for language, code in blocks if language == "json")
    chat = tuple(request["messages"][0])
    batch = rollouts(request["completions"], request["prompts"], [chat], answer=request["columns"]["answer"])
    with serve(lambda *_: answer) as server:
        assert HttpReward(server.url)(batch).tolist() == answer["scores"]
    assert server.requests == [request]


def test_its_configurations_can_be_loaded(blocks):
    found = [yaml.safe_load(code) for language, code in blocks if language == "yaml"]
    assert len(found) >= 4
    for keys in found:
        assert load_config({**PPO, **keys}).warnings == ()
