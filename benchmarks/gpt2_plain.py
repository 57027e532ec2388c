"""PPO over four GPT-2 models in plain transformers and torch, as tutorials write it: the baseline of ``gpt2_ppo.py``.

Padded batches, logits of every token, a model for each of actor, critic, reference and reward, an Adam for each of the
two that train, and a minibatch that is the sampled batch. Steps and figures are those of the tutorial's listing; its
own ``model.py`` is not printed there, so models are transformers' classes with a linear value layer.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertTokenizer, GPT2LMHeadModel

KL_COEF, CLIP, REWARD_CLIP, LAMBDA, EPOCHS = 0.02, 0.2, 5.0, 0.95, 2


class Scorer(nn.Module):
    """A GPT-2 trunk with a linear layer: a value for every token."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.trunk = GPT2LMHeadModel.from_pretrained(folder).transformer
        state = load_file(folder / "model.safetensors")
        self.value_fn = nn.Linear(self.trunk.config.n_embd, 1)
        self.value_fn.load_state_dict({"weight": state["value_fn.weight"], "bias": state["value_fn.bias"]})

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[B, T] a value after each token."""
        return self.value_fn(self.trunk(ids, attention_mask=mask).last_hidden_state).squeeze(-1)


def token_logprobs(model: GPT2LMHeadModel, ids: Tensor, mask: Tensor) -> Tensor:
    """[B, T - 1] log-probability of each token but the first, from the logits of all."""
    logits = model(ids, attention_mask=mask).logits[:, :-1]
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)


def advantages(values: Tensor, rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Advantages and returns [B, R] of one answer each, from its values and token rewards, without discount."""
    last, found = torch.zeros_like(values[:, 0]), []
    for t in reversed(range(values.shape[1])):
        following = values[:, t + 1] if t + 1 < values.shape[1] else 0.0
        last = rewards[:, t] + following - values[:, t] + LAMBDA * last
        found.append(last)
    stacked = torch.stack(found[::-1], dim=1)
    return stacked, stacked + values


@torch.no_grad()
def experience(models: dict[str, Any], prompts: dict[str, Tensor], query_len: int, tokens: tuple[int, int]) -> dict:
    """Sample answers and measure them with all four models."""
    start = prompts["input_ids"].shape[1]
    for name in ("actor", "critic"):
        models[name].eval()
    pad, end = tokens
    sampled = models["actor"].generate(
        **prompts,
        **{"max_length": start + query_len, "do_sample": True, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.4},
        **{"pad_token_id": pad, "eos_token_id": end},
    )
    ended = (sampled[:, start:] == end).cumsum(1) - (sampled[:, start:] == end).long() > 0
    mask = torch.cat([prompts["attention_mask"], (~ended).long()], dim=1)
    logprobs = token_logprobs(models["actor"], sampled, mask)
    rewards = -KL_COEF * (logprobs - token_logprobs(models["reference"], sampled, mask))
    values = models["critic"](sampled, mask)[:, :-1]
    lengths = mask[:, start:].sum(1)
    scores = models["reward"](sampled, mask)[torch.arange(len(sampled)), start + lengths - 1]
    rewards[torch.arange(len(sampled)), start + lengths - 2] += scores.clamp(-REWARD_CLIP, REWARD_CLIP)
    answer = mask[:, start:].float()
    found, returns = advantages(values[:, start - 1 :] * answer, rewards[:, start - 1 :] * answer)
    columns = {"ids": sampled, "mask": mask, "logprobs": logprobs[:, start - 1 :], "values": values[:, start - 1 :]}
    return {**columns, "answer": answer, "advantages": found, "returns": returns, "start": start}


def learn(models: dict[str, Any], optimizers: dict[str, torch.optim.Optimizer], batch: dict[str, Any]) -> None:
    """Two epochs over one batch, a step of the actor and one of the critic in each."""
    answer, start = batch["answer"], batch["start"]
    for name in ("actor", "critic"):
        models[name].train()
    for _ in range(EPOCHS):
        logprobs = token_logprobs(models["actor"], batch["ids"], batch["mask"])[:, start - 1 :]
        ratio = (logprobs - batch["logprobs"]).exp()
        gains = torch.min(ratio * batch["advantages"], ratio.clamp(1 - CLIP, 1 + CLIP) * batch["advantages"])
        _step(models["actor"], optimizers["actor"], -(gains * answer).sum() / answer.sum())
        values = models["critic"](batch["ids"], batch["mask"])[:, :-1][:, start - 1 :]
        near = batch["values"] + (values - batch["values"]).clamp(-CLIP, CLIP)
        losses = torch.max((values - batch["returns"]) ** 2, (near - batch["returns"]) ** 2)
        _step(models["critic"], optimizers["critic"], 0.5 * (losses * answer).sum() / answer.sum())


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def plain(folder: Path, size: dict[str, Any], batch: int, iterations: int) -> dict[str, Any]:
    """``iterations`` batches; seconds without loading."""
    torch.manual_seed(2048)
    models: dict[str, Any] = {
        "actor": GPT2LMHeadModel.from_pretrained(folder / "sft_model"),
        "reference": GPT2LMHeadModel.from_pretrained(folder / "sft_model").eval(),
        "critic": Scorer(folder / "rm_model"),
        "reward": Scorer(folder / "rm_model").eval(),
    }
    optimizers = {name: torch.optim.Adam(models[name].parameters(), lr=1e-5, eps=1e-5) for name in ("actor", "critic")}
    tokenizer = BertTokenizer.from_pretrained(folder / "sft_model", padding_side="left")
    tokens = (tokenizer.pad_token_id, tokenizer.sep_token_id)
    rows = json.loads((folder / "ppo_train.json").read_text(encoding="utf-8"))
    limit = size["max_len"] - size["query_len"] - 3
    phases = {"experience": 0.0, "train": 0.0}
    for number in range(iterations):
        chosen = [row["instruction"] for row in rows[number * batch : (number + 1) * batch]]
        prompts = tokenizer(chosen, return_tensors="pt", max_length=limit, truncation=True, padding=True)
        began = time.perf_counter()
        wanted = {name: prompts[name] for name in ("input_ids", "attention_mask")}
        found = experience(models, wanted, size["query_len"], tokens)
        middle = time.perf_counter()
        learn(models, optimizers, found)
        phases["experience"] += (middle - began) / (batch * iterations)
        phases["train"] += (time.perf_counter() - middle) / (batch * iterations)
    return {
        **{"batch": batch, "samples": batch * iterations, "seconds_per_sample": sum(phases.values())},
        "phases": phases,
    }
