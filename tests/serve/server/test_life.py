"""How a server begins and ends: its address, its port, its process."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from posttrain.cli import main
from posttrain.config import load_config
from posttrain.errors import UserError
from posttrain.serve.server.models import load_served
from posttrain.serve.server.run import Address

CHAT = [{"role": "user", "content": "Hello there"}]


def address(environment=None, **keys):
    config = load_config({"model_name_or_path": "m", **keys}, command="serve")
    return Address.configured(config, environment or {})


def test_a_port_in_use_is_said_before_anything_is_loaded(tmp_path, capsys):
    (tmp_path / "serve.yaml").write_text("model_name_or_path: nowhere\n", encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(tmp_path / "serve.yaml"), f"api_port={port}"]) == 2
        assert main(["api", str(tmp_path / "serve.yaml"), f"api_port={port}"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith(f"posttrain: error: port {port} of 127.0.0.1 is in use")
    assert f"api_port={port + 1}" in said[0]


def test_missing_libraries_are_one_sentence(tmp_path, capsys, monkeypatch):
    (tmp_path / "serve.yaml").write_text("model_name_or_path: nowhere\n", encoding="utf-8")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["serve", str(tmp_path / "serve.yaml")]) == 2
    assert 'needs fastapi and uvicorn: pip install "posttrain[serve]"' in capsys.readouterr().err


def test_the_environment_speaks_where_no_key_does():
    environment = {"API_HOST": "0.0.0.0", "API_PORT": "9000", "API_KEY": "secret"}
    assert address(environment) == Address(host="0.0.0.0", port=9000, key="secret")
    given = address(environment, api_host="127.0.0.1", api_port=8000, api_key="own")
    assert given == Address(host="127.0.0.1", port=8000, key="own")
    assert address() == Address(host="127.0.0.1", port=8000, key=None)
    with pytest.raises(UserError, match="API_PORT is 'http'"):
        address({"API_PORT": "http"})


def test_the_key_is_for_this_command_alone():
    values = {"model_name_or_path": "m", "dataset": "d", "output_dir": "o", "api_key": "secret"}
    assert load_config(values, command="serve").serve.api_key == "secret"
    assert "secret" not in str(load_config(values, command="train").to_flat())


@pytest.mark.parametrize(
    ("host", "said"),
    [("no.such.host.invalid", "is no address"), ("192.0.2.1", "this machine has no address 192.0.2.1")],
)
def test_an_address_that_is_none_of_this_machine(host, said):
    with pytest.raises(UserError, match=said):
        address(api_host=host, api_port=0).listener()


def test_who_can_reach_it():
    local = {"127.0.0.1": True, "localhost": True, "::1": True, "0.0.0.0": False, "192.168.1.5": False, "box": False}
    assert {host: address(api_host=host).is_local for host in local} == local


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"max_model_len": 5000}, "max_model_len is 5000, but LlamaForCausalLM has 2048 positions"),
        ({"reward_model": "http://somewhere"}, "a server cannot be served again"),
        ({"variants": "sft", "reward_model": "elsewhere/sft"}, "its folder is called sft"),
        ({"variants": "base, base"}, "is there twice"),
    ],
)
def test_what_cannot_be_served(base, keys, said):
    config = load_config({"model_name_or_path": str(base), **keys}, command="serve")
    with pytest.raises(UserError, match=re.escape(said)):
        load_served(config, notify=lambda _: None, environment={})


def test_names(base, adapter):
    def names(environment=None, **keys):
        config = load_config({"model_name_or_path": str(base), **keys}, command="serve")
        return load_served(config, notify=lambda _: None, environment=environment or {}).names

    assert names() == ("base",)
    assert names(adapter_name_or_path=str(adapter)) == ("sft",)
    assert names({"API_MODEL_NAME": "mine"}) == ("mine",)
    assert names({"API_MODEL_NAME": "mine"}, api_model_name="yours") == ("yours",)
    assert names(variants=f"a, b={adapter}") == ("a", "b")


@pytest.mark.skipif(os.name == "nt", reason="a process there cannot be sent Ctrl-C alone")
def test_a_process_says_where_it_is_and_finishes_what_is_under_way(base, tmp_path):
    """Ctrl-C while an answer streams: the answer comes to its end, nobody else gets in, the status is 130."""
    keys = {"model_name_or_path": str(base), "api_port": 0, "do_sample": False}
    (tmp_path / "serve.json").write_text(json.dumps(keys), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("API_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "posttrain", "serve", str(tmp_path / "serve.json")],
        stderr=subprocess.PIPE,
        env=environment | {"OMP_NUM_THREADS": "1"},
        text=True,
    )
    try:
        hello = process.stderr.readline()
        found = re.fullmatch(r"posttrain: serving base at (http://127\.0\.0\.1:\d+/v1); Ctrl-C ends\.\n", hello)
        assert found, hello
        body = {"messages": CHAT, "stream": True, "min_tokens": 400, "max_tokens": 400}
        with httpx.stream("POST", f"{found[1]}/chat/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""]
        assert any('"finish_reason": "length"' in line for line in rest)
        assert process.wait(30) == 130
        assert process.stderr.read() == "", "no traceback"
    finally:
        process.kill()
        process.stderr.close()


def test_requests_that_do_not_finish_in_time_are_told(start, base):
    server = start(model_name_or_path=str(base), api_grace=0)
    found = []

    def ask():
        body = {"messages": CHAT, "min_tokens": 1900, "max_tokens": 1900}
        found.append(httpx.post(f"{server.url}/chat/completions", json=body, timeout=60))

    asking = threading.Thread(target=ask)
    asking.start()
    server.until("live_slots", 1)
    began = time.monotonic()
    server.server.handle_exit(signal.SIGTERM, None)
    asking.join(20)
    assert time.monotonic() - began < 5
    assert found[0].status_code == 503
    assert found[0].json()["error"]["code"] == "shutting_down"
