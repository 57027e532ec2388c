"""Rewards that fail in the middle of a run: real processes, a real server, and the checkpoint to go on from."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from soak_stages import write_configuration

from posttrain.train.clocks import timeless

KEYS = {
    **{"steps": 5, "seed": 1, "critic": "value_head", "save_steps": 100, "disable_tqdm": True, "plot_loss": False},
    **{"reward_retries": 1, "val_size": 0, "eval_strategy": "no"},
}
DIES_AFTER = 3
TROUBLED = """
calls = []

def score(completions):
    calls.append(1)
    scores = [float(len(text)) for text in completions]
    if len(calls) == {fails_at}:
        scores[1] = {value}
    return scores
"""


class Scorer:
    """Counts letters; with ``dies_after`` it closes its port once it has answered so often."""

    def __init__(self, port=0, dies_after=None):
        self.num_answers, self.asked = 0, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append(content)
                texts = content["completions"] if "completions" in content else content["messages"]
                scores = [len(set(text)) + 0.1 * len(text) for text in texts]
                body = json.dumps({"scores": scores}).encode()
                outer.num_answers += 1
                if outer.num_answers == dies_after:
                    outer.http.socket.close()  # before the answer, so that no later request finds it open
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/score"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with suppress(OSError, ValueError):  # its socket was closed
            self.http.serve_forever(0.02)

    def close(self):
        self.http.server_close()


@pytest.fixture
def start_scorer():
    """Start a ``Scorer``; all are closed in the end."""
    started = []

    def start(**options):
        started.append(Scorer(**options))
        return started[-1]

    yield start
    for scorer in started:
        scorer.close()


def posttrain(folder, *overrides):
    return subprocess.run(
        [sys.executable, "-m", "posttrain", "train", "train.yaml", *overrides],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_a_server_that_dies_leaves_a_checkpoint_from_which_the_run_becomes_the_undisturbed_one(
    place, run_here, start_scorer, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    scorer = start_scorer()
    write_configuration(tmp_path / "whole", place, "ppo", reward_funcs=scorer.url, **KEYS)
    assert run_here(tmp_path / "whole") == 0

    dying, folder = start_scorer(dies_after=DIES_AFTER), tmp_path / "cut"
    write_configuration(folder, place, "ppo", reward_funcs=dying.url, **KEYS)
    ended = posttrain(folder)
    assert ended.returncode == 1
    errors = [line for line in ended.stderr.splitlines() if "error" in line.lower()]
    assert errors == [
        f"posttrain: error: the reward server {dying.url} does not answer (Connection refused) (2 attempts). The last "
        f"good checkpoint is checkpoint-{DIES_AFTER}: continue with resume_from_checkpoint: true"
    ]
    assert "Traceback" not in ended.stderr
    assert (folder / "out" / f"checkpoint-{DIES_AFTER}" / "trainer_state.json").is_file()

    refused = posttrain(folder, "resume_from_checkpoint=true")
    assert refused.returncode == 2
    assert "Start it, or correct the address." in refused.stderr

    start_scorer(port=dying.port)
    went_on = posttrain(folder, "resume_from_checkpoint=true")
    assert went_on.returncode == 0, went_on.stderr
    whole, cut = (tmp_path / name / "out" for name in ("whole", "cut"))
    assert (cut / "adapter_model.safetensors").read_bytes() == (whole / "adapter_model.safetensors").read_bytes()
    assert (cut / "completions.jsonl").read_bytes() == (whole / "completions.jsonl").read_bytes()
    logs = [[timeless(row) for row in lines(folder / "trainer_log.jsonl")] for folder in (whole, cut)]
    assert logs[0] == logs[1]


@pytest.mark.parametrize(
    ("value", "fails_at", "words", "checkpoint"),
    [
        ("float('nan')", 3, "gave nan for completion 2 of 4", "checkpoint-2"),
        ("'good'", 1, "gave 'good' for completion 2 of 4", None),
    ],
)
def test_a_function_that_gives_no_number_is_named_and_what_was_learned_is_kept(
    place, run_here, tmp_path, capfd, value, fails_at, words, checkpoint
) -> None:
    source = tmp_path / "my_rewards.py"
    source.write_text(TROUBLED.format(fails_at=fails_at, value=value), encoding="utf-8")
    write_configuration(tmp_path / "run", place, "ppo", reward_funcs=f"{source}:score", **KEYS)
    assert run_here(tmp_path / "run") == 1
    message = capfd.readouterr().err.splitlines()[-1]
    assert message.startswith(f"posttrain: error: the reward {source}:score {words}")
    if checkpoint is None:
        assert message.endswith("No checkpoint had been written before")
        return
    assert message.endswith(f"The last good checkpoint is {checkpoint}: continue with resume_from_checkpoint: true")
    assert [path.name for path in (tmp_path / "run" / "out").glob("checkpoint-*")] == [checkpoint]


def test_an_evaluation_whose_reward_fails_keeps_the_step_before_it(place, run_here, tmp_path, capfd) -> None:
    source = tmp_path / "my_rewards.py"
    source.write_text(TROUBLED.format(fails_at=4, value="None"), encoding="utf-8")  # before, 1, 2, evaluation
    keys = {**KEYS, "val_size": 2, "eval_strategy": "steps", "eval_steps": 2}
    write_configuration(tmp_path / "run", place, "ppo", reward_funcs=f"{source}:score", **keys)
    assert run_here(tmp_path / "run") == 1
    message = capfd.readouterr().err.splitlines()[-1]
    assert "gave None for completion 2 of 2" in message
    assert "checkpoint-2: continue" in message


def test_a_server_written_for_llamafactory_reads_whole_texts_with_their_special_tokens(
    place, run_here, start_scorer, tmp_path
) -> None:
    scorer = start_scorer()
    keys = {**KEYS, "reward_model": scorer.url, "reward_model_type": "api", "steps": 1}
    # the helper that writes the file takes a reward model for a folder
    path = write_configuration(tmp_path / "run", place, "ppo", **{**keys, "reward_model": "x"})
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub("(?m)^reward_model: .*$", f"reward_model: {scorer.url}", text), encoding="utf-8")
    assert run_here(tmp_path / "run") == 0
    rows = lines(tmp_path / "run" / "out" / "completions.jsonl")
    assert [request["model"] for request in scorer.asked] == ["model"]
    for row, posted in zip(rows, scorer.asked[0]["messages"], strict=True):
        assert posted.startswith("<|im_start|>user\nname a fruit")
        assert posted.endswith("<|im_end|>") == row["ended"]


def test_what_cannot_be_rewarded_is_refused_before_anything_is_written(place, run_here, tmp_path, capfd) -> None:
    write_configuration(tmp_path / "run", place, "ppo", reward_funcs="exact_match:gold", **KEYS)
    assert run_here(tmp_path / "run") == 2
    assert "exact_match:gold cannot judge row 1 of the data: it has no column `gold`" in capfd.readouterr().err
