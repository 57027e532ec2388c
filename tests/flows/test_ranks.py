"""Runs shared by several real processes (gloo): they equal the run of one process, and they end together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from posttrain.config import is_online, load_config
from posttrain.train.clocks import timeless
from posttrain.train.run import train

# Gradients of micro-batches are added in another order; nothing else differs. What docs/ranks.md promises.
LOSSES = 1e-6  # relative; measured: at most 6e-7
WEIGHTS = 1e-4  # relative to the largest number of a tensor; measured: 0 to 3e-5, where Adam divides by tiny gradients

PPO = {"ppo_buffer_size": 2, "ppo_score_norm": True, "ppo_whiten_rewards": True, "ppo_target": 0.05, "kl_horizon": 20}
UNEVEN = {"max_tokens_per_microbatch": 45}
CASES = {
    # name: (processes, stage, batch of each process, keys)
    "sft": (2, "sft", 2, {**UNEVEN, "gradient_accumulation_steps": 2, "lora_dropout": 0.1, "val_size": 2}),
    "sft full": (2, "sft", 2, {**UNEVEN, "finetuning_type": "full", "weight_decay": 0.1}),
    "rm": (2, "rm", 2, {"max_tokens_per_microbatch": 70, "center_rewards_coef": 0.01, "val_size": 2}),
    "ppo": (
        2,
        "ppo",
        2,
        {**UNEVEN, **PPO, "num_return_sequences": 2, "critic": "adapter", "val_size": 3, "save_steps": 2},
    ),
    "ppo, several rewards": (
        2,
        "ppo",
        2,
        {
            **{"reward_funcs": ["length:8-12", "repetition:1"], "reward_weights": [0.1, 1, 0.5], "max_steps": 3},
            **{"reward_part_norm": "batch", "reward_part_clip": 1.5, "value_coef": 10.0},
        },
    ),
    "ppo, last layer": (2, "ppo", 2, {**UNEVEN, "trainable_layers": 1, "max_steps": 3, "num_return_sequences": 2}),
    "dpo": (2, "dpo", 2, {**UNEVEN, "pref_ftx": 0.1, "val_size": 2}),
    "kto": (2, "kto", 2, {**UNEVEN, "kto_rejected_weight": 1.5, "val_size": 4}),
    "grpo": (2, "grpo", 2, {**UNEVEN, "num_return_sequences": 2, "dynamic_sampling": True, "ptx_batch_size": 3}),
    "remax": (2, "remax", 2, {**UNEVEN, "num_return_sequences": 2, "max_steps": 3}),
    "online_dpo": (2, "online_dpo", 2, {**UNEVEN, "num_return_sequences": 4, "ppo_buffer_size": 2, "max_steps": 3}),
    "sft, streamed": (2, "sft", 2, {**UNEVEN, "streaming": True, "buffer_size": 5, "max_steps": 4, "val_size": 2}),
    "kto, streamed": (2, "kto", 2, {**UNEVEN, "streaming": True, "buffer_size": 5, "max_steps": 4}),
    "sft, a last step of one row": (3, "sft", 1, {"val_size": 2}),
    "ppo, two prompts for three": (3, "ppo", 2, {"num_return_sequences": 3, "entropy_coef": 0.01, "max_steps": 3}),
}
EVERY_CASE = """
import json, os, sys
from posttrain.config import load_config
from posttrain.train.run import train
for port, config in json.loads(sys.argv[1]):
    os.environ["MASTER_PORT"] = str(port)
    train(load_config(config))
"""
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are sent differently there")


def free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def launch(size, *arguments, **options):
    """The processes of one run, by rank, as a launcher would start them."""
    shared = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    shared |= {"OMP_NUM_THREADS": 1}
    started = []
    for rank in range(size):
        own = {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([sys.executable, *arguments], env={**os.environ, **own}, **pipes, **options))
    return started


def ends(processes, timeout=None):
    """(exit status, standard output, standard error) of each; none stays behind."""
    until = time.monotonic() + (timeout or 400)
    try:
        texts = [process.communicate(timeout=max(0.1, until - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]


@pytest.fixture(scope="module")
def runs(tiny_config, tiny_data, trained, tmp_path_factory):
    """Folder with every case run by one process (``<case>/one``) and by several (``<case>/many``)."""
    root = tmp_path_factory.mktemp("ranks")

    def config(case, name):
        size, stage, batch, keys = CASES[case]
        keys = {"learning_rate": 5e-3, "num_train_epochs": 2, "plot_loss": True, **keys}
        if name == "resumed":
            keys["resume_from_checkpoint"] = str(root / case / "many" / "checkpoint-2")
        keys |= {"reward_model": str(trained / "rm")} if is_online(stage) else {}
        keys |= {"ptx_dataset": str(tiny_data / "text.jsonl")} if "ptx_batch_size" in keys else {}
        rows = batch * (size if name == "one" else 1)
        return tiny_config(stage, root / case / name, per_device_train_batch_size=rows, **keys)

    for size in (2, 3):
        cases = [case for case in CASES if CASES[case][0] == size]
        configs = [config(case, "many") for case in cases] + ([config("ppo", "resumed")] if size == 2 else [])
        orders = json.dumps([(free_port(), one.to_flat()) for one in configs])
        for status, _, text in ends(launch(size, "-c", EVERY_CASE, orders)):
            assert status == 0, text
    for case in CASES:
        train(config(case, "one"))
    return root


def logged(folder, name="trainer_log.jsonl"):
    return [timeless(json.loads(line)) for line in (folder / name).read_text("utf-8").splitlines()]


@pytest.mark.parametrize("case", CASES)
def test_several_processes_log_what_one_does(runs, case) -> None:
    one, many = (logged(runs / case / name) for name in ("one", "many"))
    assert len(one) == len(many) >= 3
    for alone, together in zip(one, many, strict=True):
        assert together.keys() == alone.keys()
        texts = {name for name, value in alone.items() if isinstance(value, str)}  # of alarms, the same on all
        assert {name: together[name] for name in texts} == {name: alone[name] for name in texts}
        # steps of decoding go by the longest of their slots; each process has slots, and merges adapters, of its own
        numbers = alone.keys() - texts - {f"{part}flops_of_ideal" for part in ("", "decode_", "generate_")}
        # a KL is a difference of large sums
        expected = pytest.approx({name: alone[name] for name in numbers}, rel=1e-5, abs=1e-5)
        assert {name: together[name] for name in numbers} == expected
        for name in {"loss", "eval_loss", "kl_coef", "reward_mean"} & alone.keys():
            assert together[name] == pytest.approx(alone[name], rel=LOSSES), name


@pytest.mark.parametrize("case", CASES)
def test_several_processes_end_with_the_weights_of_one(runs, case) -> None:
    compared = 0
    for path in sorted((runs / case / "one").glob("*.safetensors")):
        one, many = load_file(path), load_file(runs / case / "many" / path.name)
        assert one.keys() == many.keys()
        for name, tensor in one.items():
            assert (many[name] - tensor).abs().max() <= WEIGHTS * tensor.abs().max(), name
            compared += tensor.numel()
    assert compared > 1000


def test_resumed_by_as_many_it_ends_in_the_same_bits(runs) -> None:
    many, resumed = (load_file(runs / "ppo" / name / "adapter_model.safetensors") for name in ("many", "resumed"))
    assert [name for name, tensor in many.items() if not torch.equal(tensor, resumed[name])] == []
    log = logged(runs / "ppo" / "resumed")
    assert log == [row for row in logged(runs / "ppo" / "many") if row["current_steps"] > 2]
    assert log


@pytest.mark.parametrize("case", [case for case in CASES if is_online(CASES[case][1])])
def test_samples_do_not_depend_on_the_process_that_draws_them(runs, case) -> None:
    one, many = (logged(runs / case / name, "completions.jsonl") for name in ("one", "many"))
    assert [row["completion"] for row in many] == [row["completion"] for row in one]
    assert len({row["completion"] for row in one}) > len(one) // 2


@pytest.mark.parametrize("case", CASES)
def test_results_count_all_processes(runs, case) -> None:
    one, many = (json.loads((runs / case / name / "train_results.json").read_text("utf-8")) for name in ("one", "many"))
    for name in ("total_steps", "epoch", "train_tokens", "stopped_at_step"):
        assert many[name] == one[name], name
    per_step = [found["train_samples_per_second"] / found["train_steps_per_second"] for found in (one, many)]
    assert per_step[0] == pytest.approx(per_step[1])


@pytest.fixture
def endless(tiny_config, tmp_path):
    """The file of a run that does not end by itself, and its output folder."""
    keys = {"max_steps": 100_000, "save_steps": 100_000, "val_size": 2}
    flat = tiny_config("sft", tmp_path / "out", **keys).to_flat()
    (tmp_path / "run.json").write_text(json.dumps(flat), encoding="utf-8")
    return tmp_path / "run.json", tmp_path / "out"


def steps_into(folder, processes):
    """Return once the run has logged a few steps."""
    while not (folder / "trainer_log.jsonl").exists() or len(logged(folder)) < 3:
        assert all(process.poll() is None for process in processes), [p.communicate() for p in processes]
        time.sleep(0.05)


def test_when_one_process_dies_the_others_stop_with_a_message(endless) -> None:
    path, out = endless
    processes = launch(2, "-m", "posttrain", "train", str(path))
    steps_into(out, processes)
    processes[1].kill()
    first, killed = ends(processes, timeout=60)
    assert killed[0] == -signal.SIGKILL
    assert first[0] == 1
    assert first[2].count("posttrain: error: process 1 of the 2 processes of this run ended") == 1
    assert "Traceback" not in first[2]


def test_ctrl_c_stops_all_at_one_step_with_a_checkpoint(endless) -> None:
    """Told to one process only; another number of processes goes on from there."""
    path, out = endless
    processes = launch(2, "-m", "posttrain", "train", str(path))
    steps_into(out, processes)
    processes[1].send_signal(signal.SIGINT)
    first, second = ends(processes, timeout=60)
    assert (first[0], second[0]) == (130, 130)
    assert first[2].count("interrupted. The same command") == 1
    assert "posttrain" not in second[2]
    (checkpoint,) = out.glob("checkpoint-*")
    done = int(checkpoint.name.removeprefix("checkpoint-"))
    assert logged(out)[-1]["current_steps"] == done
    results = train(load_config(json.loads(path.read_text("utf-8")) | {"max_steps": done + 1}))
    assert results["stopped_at_step"] == done + 1


def test_torchrun_starts_it_and_a_mistake_is_said_once(tmp_path) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text("stage: sft\nmodel_name_or_path: nowhere\nlearning_rat: 1\n", encoding="utf-8")
    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "posttrain", "train", str(config)]
    ended = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 1
    assert ended.stderr.count("posttrain: error: ") == 1
    assert ended.stderr.count("learning_rat`") == 1
    assert "exitcode  : 2" in ended.stderr


def test_a_command_that_cannot_be_shared_says_so_once(tmp_path) -> None:
    first, second = ends(launch(2, "-m", "posttrain", "export", str(tmp_path / "x.yaml")))
    assert (first[0], second[0]) == (2, 2)
    assert first[2].count("posttrain export is one process: start it without torchrun") == 1
    assert second[2] == ""


ONE_FAILS = """
import os
calls = []

def score(completions):
    calls.append(1)
    late = len(calls) == 3 and os.environ["RANK"] == "1"
    return [float("nan") if late else len(text) for text in completions]
"""


@pytest.mark.slow
def test_completions_that_one_process_cannot_score_stop_all_with_a_checkpoint(tiny_config, tmp_path) -> None:
    (tmp_path / "mine.py").write_text(ONE_FAILS, encoding="utf-8")
    keys = {"reward_model": None, "reward_funcs": f"{tmp_path / 'mine.py'}:score", "max_steps": 5, "save_steps": 100}
    flat = tiny_config("ppo", tmp_path / "out", **keys).to_flat()
    (tmp_path / "run.json").write_text(json.dumps(flat), encoding="utf-8")
    ended = ends(launch(2, "-m", "posttrain", "train", str(tmp_path / "run.json")))
    assert [status for status, _, _ in ended] == [1, 1]
    errors = [line for _, _, text in ended for line in text.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert "mine.py:score gave nan for completion 1 of 4" in errors[0]
    assert errors[0].endswith("The last good checkpoint is checkpoint-2: continue with resume_from_checkpoint: true")
    assert (tmp_path / "out" / "checkpoint-2" / "trainer_state.json").is_file()
