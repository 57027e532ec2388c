"""Memory of whole runs, each in a process of its own: what is limited, and what must not grow with the data."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.models.load import load_tokenizer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
MEGABYTE = 1_000_000

# Memory may grow by so many bytes once everything is loaded, while the process trains.
LIMITED = """
import resource, sys
import posttrain.train.run as run
from posttrain.config import load_config
import yaml
config = yaml.safe_load(open(sys.argv[1]))
room = int(sys.argv[2])
fit = run.fit
def limited(parts, notify):
    if room:
        now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + room, resource.RLIM_INFINITY))
    return fit(parts, notify)
run.fit = limited
run.train(load_config(config), notify=lambda sentence: print(sentence, file=sys.stderr))
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        print(int(line.split()[1]) * 1024)
"""


@pytest.fixture(scope="module")
def wide_llama(tmp_path_factory, tiny_llama):
    """A random Llama whose activations weigh more than its weights."""
    folder, tokenizer = tmp_path_factory.mktemp("models") / "wide", load_tokenizer(tiny_llama)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trained(tmp_path, name, model, rows, *, room=0, **keys):
    """(peak bytes, what the run said) of a run in a process of its own."""
    data = tmp_path / f"{name}.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    values = {
        "model_name_or_path": str(model),
        "dataset": str(data),
        "output_dir": str(tmp_path / name),
        "cutoff_len": 256,
        "lora_rank": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
        "preprocessing_num_workers": 1,
        **keys,
    }
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    command = [sys.executable, "-c", LIMITED, str(tmp_path / f"{name}.yaml"), str(room)]
    # what is freed goes back at once: under the limit, address space counts, of which a heap returns only its end
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MEGABYTE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.split()[-1]), done.stderr


def questions(count, words=12):
    return [
        {"instruction": f"name a fruit {i} " + f"like fig {i} " * words, "output": f"fig {i} " * 4}
        for i in range(count)
    ]


@pytest.mark.slow
def test_a_run_that_runs_out_of_memory_learns_the_same_in_smaller_pieces(tmp_path, wide_llama) -> None:
    """Address space is limited for real: allocations of large micro-batches fail, those of halved ones do not."""
    keys = {"stage": "sft", "max_steps": 3, "per_device_train_batch_size": 16, "max_tokens_per_microbatch": 4096}
    rows = questions(48)
    _, said = trained(tmp_path, "free", wide_llama, rows, **keys)
    assert "memory ran out" not in said
    _, said = trained(tmp_path, "limited", wide_llama, rows, room=280 * MEGABYTE, **keys)
    assert "memory ran out on a micro-batch of" in said
    assert "The objective is the same" in said
    free, limited = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("free", "limited"))
    assert max(float(weight.abs().max()) for key, weight in free.items() if "lora_B" in key) > 1e-5
    for key, weight in free.items():
        torch.testing.assert_close(limited[key], weight, atol=1e-5, rtol=1e-5)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "trainer_log.jsonl").read_text().splitlines()]
        for name in ("free", "limited")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.slow
def test_the_peak_does_not_grow_with_the_data(tmp_path, tiny_llama) -> None:
    """The same steps on 1x and 20x the rows; the larger file alone has more megabytes than the peaks may differ by."""
    peaks = []
    keys = {"stage": "sft", "max_steps": 2, "per_device_train_batch_size": 2}
    for times in (1, 20):
        rows, name = questions(1500 * times, words=60), f"times{times}"
        keys["tokenized_path"] = str(tmp_path / f"{name}-tokens")
        trained(tmp_path, name, tiny_llama, rows, **keys)  # tokenizes, and leaves the tokens on the disk
        peaks.append(trained(tmp_path, name, tiny_llama, rows, overwrite_output_dir=True, **keys)[0])
    assert (tmp_path / "times20.jsonl").stat().st_size > 28 * MEGABYTE
    assert peaks[1] - peaks[0] < 25 * MEGABYTE
