"""From prompts to a reward model by way of a judge: real processes, a real server, a real kill."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml

PROMPTS = [{"instruction": f"name a fruit like number {n}", "input": "", "output": ""} for n in range(80)]
SAMPLING = {"num_return_sequences": 3, "max_new_tokens": 8, "temperature": 1.0, "top_p": 1.0, "top_k": 0}


@pytest.fixture
def place(tmp_path, tiny_llama):
    """A folder with prompts and a configuration that names everything but the judge."""
    (tmp_path / "prompts.json").write_text(json.dumps(PROMPTS), encoding="utf-8")
    values = {
        **{"model_name_or_path": str(tiny_llama), "dataset": "prompts.json", "output_file": "out/pairs.jsonl"},
        **{
            "judge_model": "referee",
            "judge_concurrency": 2,
            "judge_max_pairs": 1,
            "seed": 1,
            "cutoff_len": 64,
            **SAMPLING,
        },
    }
    (tmp_path / "label.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return tmp_path


def start(place, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "POSTTRAIN_DEBUG": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "posttrain", *arguments],
        **{"cwd": place, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT},
        **{"text": True, "encoding": "utf-8"},
    )


def finished(place, *arguments):
    process = start(place, *arguments)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def wait_until(holds, process, seconds=200.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def killed(process, when):
    wait_until(when, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()


def journal_lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_labelling_goes_on_and_ends_with_the_same_bytes(place, judge_server, longer):
    out = place / "out"
    quick = judge_server(longer)
    status, said = finished(place, "label", "label.yaml", "--judge", quick.url, "output_file=whole/pairs.jsonl")
    assert status == 0, said

    # killed while it samples
    numbers, goes_on = itertools.count(), threading.Event()

    def reply(question):
        if next(numbers) >= 30:
            goes_on.wait(300)
        return longer(question)

    halting = judge_server(reply)
    moved = f"judge={halting.url}"
    killed(start(place, "label", "label.yaml", moved), lambda: journal_lines(out / "pairs.answers.jsonl") > 1)
    assert journal_lines(out / "pairs.answers.jsonl") < len(PROMPTS) + 1
    assert halting.asked == []

    # killed while it judges, two questions under way, to which the server does not answer
    process = start(place, "label", "label.yaml", moved)
    killed(process, lambda: len(halting.asked) == 32 and journal_lines(out / "pairs.verdicts.jsonl") == 31)
    assert not (out / "pairs.jsonl").exists()
    answered = [json.loads(line) for line in (out / "pairs.verdicts.jsonl").read_bytes().split(b"\n")[1:] if line]
    assert len(answered) == 30
    before = list(halting.asked)
    halting.asked.clear()
    goes_on.set()

    status, said = finished(place, "label", "label.yaml", moved)
    assert status == 0, said
    assert f"{len(answered)} of {len(quick.asked)} questions are answered" in said
    again = set(halting.asked) & set(before)
    assert len(again) <= 2  # what was under way when it was killed, never what had been answered
    assert set(before) | set(halting.asked) == set(quick.asked)
    assert len(halting.asked) == len(quick.asked) - len(answered)
    for name in ("pairs.jsonl", "pairs.answers.jsonl"):
        assert (out / name).read_bytes() == (place / "whole" / name).read_bytes()
    verdicts = [
        sorted((path / "pairs.verdicts.jsonl").read_text("utf-8").splitlines()[1:]) for path in (out, place / "whole")
    ]
    assert verdicts[0] == verdicts[1]
    assert len(verdicts[0]) == len(set(verdicts[0]))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["rm", "dpo"])
def test_a_model_learns_from_the_labels_of_a_judge(place, judge_server, longer, stage):
    server = judge_server(longer)
    status, said = finished(place, "label", "label.yaml", "--judge", server.url)
    assert status == 0, said
    assert "label_num_pairs" in said
    assert "***** label metrics *****" in said
    values = {
        **{"stage": stage, "dataset": "out/pairs.jsonl", "output_dir": "run", "max_steps": 2, "cutoff_len": 64},
        **{"model_name_or_path": yaml.safe_load((place / "label.yaml").read_text("utf-8"))["model_name_or_path"]},
        **{"report_to": "none", "disable_tqdm": True, "per_device_train_batch_size": 4, "logging_steps": 1},
    }
    (place / "train.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    status, said = finished(place, "train", "train.yaml")
    assert status == 0, said
    log = [json.loads(line) for line in (place / "run" / "trainer_log.jsonl").read_text("utf-8").splitlines()]
    assert [row["current_steps"] for row in log if "loss" in row] == [1, 2]
    assert (place / "run" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_a_dead_server_and_bad_input_end_as_they_should(place, judge_server, longer):
    gone = judge_server(longer)
    gone.close()
    rows = [{"prompt": "q", "answers": ["a", "bb"]}]
    (place / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    status, said = finished(place, "label", "label.yaml", "dataset=rows.json", "judge_retries=1", "--judge", gone.url)
    assert status == 1
    assert said.count("posttrain: error: ") == 1
    assert f"no answer from {gone.url}/chat/completions in 2 attempts" in said
    status, said = finished(place, "label", "label.yaml", "dataset=nowhere.json", f"--judge={gone.url}", "seed=2")
    assert status == 2
    assert "nowhere.json" in said
    assert "Traceback" not in said
