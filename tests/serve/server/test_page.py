"""The examples of docs/serving.md, as they stand there, against a server."""

import json
import re
import shutil
import subprocess

import pytest

THERE = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def server(start, tiny_llama, trained):
    return start(
        model_name_or_path=str(tiny_llama),
        variants=f"base, sft={trained / 'sft'}, ppo={trained / 'sft_on_pt'}",
        reward_model=str(trained / "rm"),
    )


@pytest.fixture(scope="module")
def page(request):
    return (request.config.rootpath / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def test_the_python_example(server, page, capsys):
    (code,) = blocks(page, "python")
    assert THERE in code
    exec(code.replace(THERE, server.root), {})
    assert re.search(r" (stop|length) \d+\n", capsys.readouterr().out)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_examples(server, page):
    (commands,) = [block for block in blocks(page, "bash") if "curl" in block]
    commands = re.split(r"^(?=curl)", commands.replace(THERE, server.root), flags=re.MULTILINE)[1:]
    assert len(commands) == 6
    said = [
        subprocess.run(["bash", "-c", command.replace("curl", "curl -sSf", 1)], capture_output=True, check=True).stdout
        for command in commands
    ]
    chat, completion, score, models, health = map(json.loads, said[:5])
    assert [choice["index"] for choice in chat["choices"]] == [0, 1]
    assert completion["object"] == "text_completion"
    assert len(score["scores"]) == 1
    assert [model["id"] for model in models["data"]] == ["base", "sft", "ppo", "rm"]
    assert health == {"status": "ok"}
    assert b"posttrain_live_slots 0" in said[5]
