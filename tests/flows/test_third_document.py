"""The third reference flow: four GPT-2 models of their own, a WordPiece tokenizer, a reward whose head is ``value_fn``.

Folders hold what its author's do: config.json, pytorch_model.bin and vocab.txt. Figures are those of its command line;
sizes and lengths are smaller.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import posttrain
from posttrain.engine import Engine
from posttrain.models.load import load_tokenizer
from posttrain.train.monitor import Monitor
from posttrain.types import Role

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"大莱龙铁路位于山东省北部沿海地区全长公里什么哪里有多少位置是的在和?。,0123456789",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """sft_model, rm_model and ppo_train.json."""
    root = tmp_path_factory.mktemp("third-document")
    words = list(dict.fromkeys(WORDS))
    config = GPT2Config(vocab_size=len(words), n_embd=32, n_layer=2, n_head=4, n_positions=128)
    for seed, name in ((1, "sft_model"), (2, "rm_model")):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = GPT2LMHeadModel(config)
            value = nn.Linear(32, 1)
        (root / name).mkdir()
        state = dict(model.state_dict())
        if name == "rm_model":
            state = {key: tensor for key, tensor in state.items() if key != "lm_head.weight"}
            state |= {"value_fn.weight": 20 * value.weight.detach(), "value_fn.bias": value.bias.detach()}
        torch.save(state, root / name / "pytorch_model.bin")
        (root / name / "config.json").write_text(json.dumps({**config.to_dict(), "torch_dtype": "float32"}))
        (root / name / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    texts = [f"大莱龙铁路位于山东省,全长{n}公里。" for n in range(11, 27)]
    rows = [{"instruction": text, "input": "", "output": ""} for text in texts]
    (root / "ppo_train.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return root


def keys(place, output):
    return {
        "model_name_or_path": str(place / "sft_model"),
        "reward_model": str(place / "rm_model"),
        "reward_model_type": "full",
        "stage": "ppo",
        "finetuning_type": "full",
        "critic": "model",
        "template": "empty",
        "dataset": str(place / "ppo_train.json"),
        "output_dir": str(place / output),
        "cutoff_len": 64,
        "max_new_tokens": 8,
        "per_device_train_batch_size": 4,
        "ppo_buffer_size": 2,
        "ppo_epochs": 2,
        "num_return_sequences": 1,
        "repetition_penalty": 1.4,
        "kl_coef": 0.02,
        "ppo_target": 0,
        "clip_range": 0.2,
        "clip_range_value": 0.2,
        "gae_lambda": 0.95,
        "gamma": 1.0,
        "value_coef": 1.0,
        "reward_clip": 5.0,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "adam_epsilon": 1e-5,
        "max_grad_norm": 1.0,
        "clip_grad_per_role": True,
        "max_steps": 2,
        "save_steps": 1,
        "logging_steps": 1,
        "seed": 2048,
        "report_to": "none",
        "disable_tqdm": True,
    }


@pytest.fixture(scope="module")
def ran(place):
    """The run, its engine, how the roles began, and the gradient norms that the optimizer met."""
    seen, norms = {}, []
    with pytest.MonkeyPatch.context() as patch:
        make, step = Engine.__init__, torch.optim.AdamW.step

        def built(self, roles, *rest, **more):
            make(self, roles, *rest, **more)
            seen["engine"] = self
            seen["began"] = {name: p.detach().clone() for name, p in roles.named_parameters()}

        def stepped(self, *rest, **more):
            roles = seen["engine"].roles
            for role in (Role.ACTOR, Role.CRITIC):
                found = [p.grad.norm() for p in roles.parameters_of(role).values() if p.grad is not None]
                norms.append(float(torch.stack(found).norm()))
            return step(self, *rest, **more)

        patch.setattr(Engine, "__init__", built)
        patch.setattr(torch.optim.AdamW, "step", stepped)
        posttrain.run_exp(keys(place, "ppo_model"))
    return {**seen, "norms": norms}


def test_four_models_of_which_two_train(place, ran) -> None:
    roles, began = ran["engine"].roles, ran["began"]
    assert len({id(roles.backbone_of(role)) for role in Role}) == 4
    trains = set(roles.parameters_of(Role.ACTOR)) | set(roles.parameters_of(Role.CRITIC))
    changed = {name for name, p in roles.named_parameters() if not torch.equal(p, began[name])}
    assert changed <= trains  # reference and reward are what they were, to the bit
    assert {name.split(".")[1] for name in changed} == {"actor", "critic"}
    assert "members.critic.heads.value.weight" in changed
    for one, other in (("actor", "reference"), ("critic", "reward")):
        inside = f"members.{one}.backbone."
        for name in (name for name in began if name.startswith(inside)):
            assert torch.equal(began[name], began[name.replace(inside, f"members.{other}.backbone.")])


def test_the_optimizer_is_the_documents(ran) -> None:
    optimizer = ran["engine"].optimizer
    assert {group["eps"] for group in optimizer.param_groups} == {1e-5}
    assert len(ran["norms"]) == 2 * 2 * 2 * 2  # iterations, epochs, batches of the buffer, roles
    assert max(ran["norms"]) <= 1.0 + 1e-4
    # both reach the bound in one step: clipped together, the two would share it
    pairs = zip(ran["norms"][::2], ran["norms"][1::2], strict=True)
    assert any(min(pair) > 0.8 for pair in pairs), ran["norms"]


def test_what_it_saves(place, ran) -> None:
    folder = place / "ppo_model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(ran["engine"].roles.backbone_of(Role.ACTOR).named_parameters())[name])
    ids = load_tokenizer(place / "sft_model")("铁路全长")["input_ids"]
    assert AutoTokenizer.from_pretrained(folder)("铁路全长")["input_ids"] == ids
    lines = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text("utf-8").splitlines()]
    assert [line["current_steps"] for line in lines if "kl" in line] == [1, 2]
    assert abs(lines[0]["kl"]) < 1e-3
    assert all(line["kl_coef"] == 0.02 for line in lines if "kl_coef" in line)


def test_a_resumed_run_ends_in_the_same_bits(place, ran, monkeypatch) -> None:
    class CutError(Exception):
        pass

    after = Monitor.after_step

    def cut(self, step, stats):
        after(self, step, stats)
        if step == 1:
            raise CutError

    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "after_step", cut)
        with pytest.raises(CutError):
            posttrain.run_exp(keys(place, "again"))
    posttrain.run_exp({**keys(place, "again"), "resume_from_checkpoint": True})
    for name in ("model.safetensors", "checkpoint-2/trainer_weights.safetensors"):
        one, two = (load_file(place / folder / name) for folder in ("ppo_model", "again"))
        assert one.keys() == two.keys()
        assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())
