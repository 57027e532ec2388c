"""PPO with reward models that others wrote: reward and critic say what the folder's own code says, and a run learns.

Each folder is named in ``reward_model`` of a PPO configuration whose actor is another model of the same tokenizer.
"""

from __future__ import annotations

import json
import math

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    GPT2PreTrainedModel,
)

from posttrain.models.assemble import online_assembly
from posttrain.train.run import train
from posttrain.types import Role

ROWS = [[5, 9, 40, 41, 42, 60, 12], [5, 9, 40, 57, 12], [3, 8, 8]]
WIDTH = 32


class RewardModel(GPT2PreTrainedModel):
    """GPT-2 under a layer called value_fn."""

    def __init__(self, config):
        super().__init__(config)
        self.transformer = GPT2Model(config)
        self.value_fn = nn.Linear(config.n_embd, 1, bias=False)
        self.post_init()


def saved_linear(folder, name):
    """A linear layer in a file of its own, as LLaMA-Factory writes its value head."""
    torch.manual_seed(5)
    layer = nn.Linear(WIDTH, 1)
    state = {f"v_head.summary.{key}": tensor.detach() for key, tensor in layer.named_parameters()}
    torch.save(state, folder / name) if name.endswith(".bin") else save_file(state, folder / name)
    return layer


def classifier(base, folder, tokenizer):
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).eval()
    torch.manual_seed(6)
    nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return lambda ids: model.score(model.model(ids)[0])


def peft_classifier(base, folder, tokenizer):
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    torch.manual_seed(7)
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    wrapped = get_peft_model(model, config).eval()
    inner = wrapped.base_model.model
    nn.init.normal_(inner.score.modules_to_save["default"].weight)
    wrapped.save_pretrained(folder)
    return lambda ids: inner.score(inner.model(ids)[0])


def whole_language_model(base, folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    model.save_pretrained(folder)
    head = saved_linear(folder, "value_head.safetensors")
    return lambda ids: head(model.model(ids)[0])


def adapter_with_value_head(base, folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(8)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=["v_proj"], init_lora_weights=False)).eval()
    wrapped.save_pretrained(folder)
    head = saved_linear(folder, "value_head.bin")
    return lambda ids: head(model.model(ids)[0])


def gpt2_with_value_fn(base, folder, tokenizer):
    torch.manual_seed(9)
    size = {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.2}
    model = RewardModel(GPT2Config(vocab_size=len(tokenizer), **size)).eval()
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return lambda ids: model.value_fn(model.transformer(ids)[0])


KINDS = [classifier, peft_classifier, whole_language_model, adapter_with_value_head, gpt2_with_value_fn]


@pytest.fixture
def make_ppo(tiny_llama, tiny_config, tmp_path):
    """A PPO configuration on a foreign reward model, and the folder's own value after each token."""

    def make(kind, **keys):
        tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
        (tmp_path / "rm").mkdir()
        with torch.random.fork_rng(devices=[]):
            own = kind(tiny_llama, tmp_path / "rm", tokenizer)
        return tiny_config("ppo", tmp_path / "out", reward_model=str(tmp_path / "rm"), critic="adapter", **keys), own

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_reward_and_critic_say_what_the_folder_says(kind, make_ppo, make_batch) -> None:
    config, own = make_ppo(kind)
    roles, batch = online_assembly(config).roles, make_batch(ROWS, starts=[1, 1, 1])
    with torch.no_grad():
        scores = roles(batch, (Role.REWARD,)).scores.cpu()
        values = roles(batch, (Role.CRITIC,)).values.cpu()
        expected = [own(torch.tensor([row]))[0, :, 0] for row in ROWS]
    torch.testing.assert_close(scores, torch.stack([row[-1] for row in expected]), atol=1e-5, rtol=0)
    for b, row in enumerate(expected):
        torch.testing.assert_close(values[b, 1 : len(row)], row[:-1], atol=1e-5, rtol=0)
    assert scores.std() > 0.01


def test_a_gpt2_actor_learns_from_its_gpt2_reward_model(make_ppo, tiny_llama, tmp_path) -> None:
    """The third reference flow at its smallest: two GPT-2 models, and a critic that starts from the reward model."""
    tokenizer, base = AutoTokenizer.from_pretrained(tiny_llama), tmp_path / "actor"
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    size = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256}  # narrower than the reward model
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **size, **ends)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    config, _ = make_ppo(gpt2_with_value_fn, model_name_or_path=str(base), max_steps=2)
    train(config)
    rows = [json.loads(line) for line in (tmp_path / "out" / "completions.jsonl").read_text("utf-8").splitlines()]
    assert rows
    assert all(math.isfinite(row["reward"]) for row in rows)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
