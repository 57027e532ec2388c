"""Arithmetic executed by the default runs, counted, against the formula for live tokens: padding may not come back.

A forward of n tokens of which m need logits costs 2 N n + 2 L a d n² + 2 H m, N the trunk's matmul parameters, H the
head's. LoRA training costs two forwards of frozen weights and three of its own (with the head's second product made
in the forward). A token that several rows share is alive once.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from posttrain.engine import Engine
from posttrain.errors import UserError
from posttrain.models import assembly
from posttrain.models.packing import packed
from posttrain.rollout import SlotSampler
from posttrain.train import run as train_run
from posttrain.types import Role

SLACK = 1.1  # attention within segments is counted in whole squares, and kernels differ between versions
aten = torch.ops.aten


def attention_flops(query, key, value, *args, out_shape=None, **kwargs):
    """Scores and weighted values of one attention; torch counts this kernel on the GPU only."""
    batch, heads, queries, width = query
    return 4 * batch * heads * queries * key[2] * width


def attention_backward_flops(grad, query, key, value, *args, out_shape=None, **kwargs):
    """Scores again, and the gradients of values, weights, queries and keys: five products."""
    return attention_flops(query, key, value) * 5 // 2


MAPPING = {
    aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
}


@dataclass
class Costs:
    """What one token costs in the layers that wear adapters, in floating point operations."""

    trunk: int
    head: int
    lora: int
    attention: int

    @classmethod
    def of(cls, roles):
        """Read from the shapes of the backbone; one adapter is worn."""
        named = {n: m for n, m in roles.backbone.named_modules() if hasattr(m, "base_layer")}
        linear, layers = list(named.values()), {n.partition(".layers.")[2].partition(".")[0] for n in named}
        adapter = linear[0].lora_A
        name = next(iter(adapter))
        config = roles.backbone.config
        return cls(
            trunk=2 * sum(m.base_layer.weight.numel() for m in linear),
            head=2 * roles.backbone.lm_head.weight.numel(),
            lora=2 * sum(m.lora_A[name].weight.numel() + m.lora_B[name].weight.numel() for m in linear),
            attention=4 * len(layers) * config.hidden_size,
        )

    def forward(self, plan, targets, adapters):
        """One forward: live tokens, attention within segments, logits of trained tokens only."""
        seen = 0
        for segment, past in zip(plan.segments, plan.past, strict=True):
            seen += segment.length * (segment.length + past)
        return (self.trunk + adapters * self.lora) * plan.num_tokens + self.attention * seen + self.head * targets

    def training(self, plan, targets, adapters):
        """Forward and backward of an adapter on frozen weights."""
        own = self.lora * plan.num_tokens
        attention = self.forward(plan, 0, 0) - self.trunk * plan.num_tokens
        return 2 * self.forward(plan, targets, adapters) + own + attention // 2


class Ledger:
    """Counts what engine and sampler execute in a run, and what the formula allows for the same rows."""

    def __init__(self, monkeypatch):
        self.executed = {"train": 0, "score": 0, "generate": 0}
        self.allowed = {"train": 0, "score": 0, "generate": 0}
        self._patch(monkeypatch)

    @contextmanager
    def counting(self, phase):
        with FlopCounterMode(display=False, custom_mapping=MAPPING) as counter:
            yield
        self.executed[phase] += counter.get_total_flops()

    def _patch(self, monkeypatch):
        accumulate, consult, scores, generate = Engine.accumulate, Engine.consult, Engine.scores, SlotSampler.generate

        def counted_accumulate(engine, algorithm, batch):
            with self.counting("train"):
                accumulate(engine, algorithm, batch)
            targets = int(batch.loss_mask[:, 1:].sum()) if Role.ACTOR in algorithm.trains else 0
            self.allowed["train"] += Costs.of(engine.roles).training(packed(batch), targets, 1)

        def counted_consult(engine, roles, batch, **options):
            with self.counting("score"):
                found = consult(engine, roles, batch, **options)
            costs, plan, targets = Costs.of(engine.roles), packed(batch), int(batch.loss_mask[:, 1:].sum())
            # the critic is seldom asked: its values are recorded while sampling
            self.allowed["score"] += costs.forward(plan, targets, 0) * (Role.REFERENCE in roles)
            self.allowed["score"] += costs.forward(plan, 0, 1) * (Role.CRITIC in roles)
            return found

        def counted_scores(engine, batch):
            with self.counting("score"):
                found = scores(engine, batch)
            self.allowed["score"] += Costs.of(engine.roles).forward(packed(batch), 0, 1)
            return found

        def counted_generate(sampler, prompts, params, progress=None):
            with self.counting("generate"):
                found = generate(sampler, prompts, params, progress)
            layers = [m.base_layer for m in sampler.model.modules() if hasattr(m, "base_layer")]
            trunk = 2 * sum(layer.weight.numel() for layer in layers)
            head, config = 2 * sampler.model.lm_head.weight.numel(), sampler.model.config
            spread = 4 * config.num_hidden_layers * config.hidden_size
            for completion in found:
                start, length = len(prompts[completion.prompt_index].input_ids), len(completion.token_ids)
                # every token but the last goes through the trunk; each is drawn from one row of logits
                past = sum(start + t for t in range(1, length))
                self.allowed["generate"] += trunk * (length - 1) + head * length + spread * past
            self.allowed["generate"] += sum(trunk * len(p.input_ids) + spread * len(p.input_ids) ** 2 for p in prompts)
            return found

        monkeypatch.setattr(Engine, "accumulate", counted_accumulate)
        monkeypatch.setattr(Engine, "consult", counted_consult)
        monkeypatch.setattr(Engine, "scores", counted_scores)
        monkeypatch.setattr(SlotSampler, "generate", counted_generate)

    def shares(self):
        """Phase -> executed / allowed, of the phases that ran."""
        return {phase: self.executed[phase] / n for phase, n in self.allowed.items() if n}


@pytest.fixture
def uneven_data(tmp_path):
    """Rows of very different lengths, as real data has them."""
    fruit = ["fig", "plum pear lime", "kiwi date " * 3, "grape mango berry melon " * 3]
    chats = [{"instruction": f"name {fruit[i % 4]}", "output": fruit[(i * 3 + 1) % 4]} for i in range(12)]
    pairs = [
        {"prompt": row["instruction"], "chosen": row["output"], "rejected": "no " + fruit[i % 4]}
        for i, row in enumerate(chats)
    ]
    for name, rows in (("sft", chats), ("rm", pairs), ("ppo", chats)):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8", newline="\n")
    return tmp_path


@pytest.fixture
def measured(tiny_config, trained, uneven_data, tmp_path, monkeypatch):
    """Run a stage with default keys and return executed / allowed by phase."""

    def run(stage, *, reward_adapter="all", **keys):
        reward = trained / "rm"
        if reward_adapter == "top":
            reward = tmp_path / "rm"
            train_run.train(tiny_config("rm", reward, save_strategy="no", trainable_layers=1))
        keys = {"dataset": str(uneven_data / f"{stage}.json"), "cutoff_len": 160, "save_strategy": "no", **keys}
        if stage == "ppo":
            keys |= {"reward_model": str(reward), "num_return_sequences": 2, "max_new_tokens": 16}
        ledger = Ledger(monkeypatch)
        train_run.train(tiny_config(stage, tmp_path / "out", **keys))
        return ledger.shares()

    return run


@pytest.mark.parametrize("stage", ["sft", "rm", "ppo"])
def test_default_runs_execute_what_live_tokens_need(measured, stage) -> None:
    shares = measured(stage)
    assert shares.keys() == ({"train", "score", "generate"} if stage == "ppo" else {"train"})
    for phase, share in shares.items():
        assert 0.8 < share <= SLACK, f"{phase}: {share:.2f} of the formula"


def test_adapters_on_the_last_layers_cost_those_layers(measured) -> None:
    """Updates and scoring begin above the frozen layers, whose states are there already."""
    shares = measured("ppo", trainable_layers=1, reward_adapter="top")
    for phase in ("train", "score"):
        assert 0.7 < shares[phase] <= SLACK, f"{phase}: {shares[phase]:.2f} of the formula"


def test_frozen_layers_that_run_in_every_pass_exceed_the_bound(measured, monkeypatch) -> None:
    monkeypatch.setattr(Engine, "with_lower_states", lambda engine, batch: batch)
    shares = measured("ppo", trainable_layers=1, reward_adapter="top")
    assert shares["train"] > SLACK, shares
    assert shares["score"] > 1.3, shares


@pytest.mark.parametrize("stage", ["sft", "rm"])
def test_the_padded_fallback_exceeds_the_bound(measured, monkeypatch, stage) -> None:
    """Proof that the test above would notice: with padded batches the same run needs a good deal more."""
    monkeypatch.setattr(assembly, "prepare_trunk", lambda model: False)
    shares = measured(stage)
    assert shares["train"] > 1.2, shares


def test_unshared_prefixes_exceed_the_bound_too(measured, monkeypatch) -> None:
    """Pairs whose prompt is computed twice, PPO groups whose prompt is computed once per completion."""
    from posttrain.models import forward

    monkeypatch.setattr(forward, "packed", lambda batch: packed(batch, share_prefixes=False))
    assert measured("rm")["train"] > SLACK


def test_ppo_does_not_run_padded_at_all(measured, monkeypatch) -> None:
    monkeypatch.setattr(assembly, "prepare_trunk", lambda model: False)
    with pytest.raises(UserError, match="LlamaForCausalLM cannot run with packed attention, which sampling needs"):
        measured("ppo")
