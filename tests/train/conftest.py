"""An online run put together by hand, so that sampler and reward can be scripted."""

from __future__ import annotations

import pytest

from posttrain.data.datasets import load_dataset
from posttrain.models.assemble import online_assembly
from posttrain.models.load import load_tokenizer
from posttrain.rewards import ScriptedReward
from posttrain.rollout import SamplingParams, SlotSampler
from posttrain.train.online import OnlineRun
from posttrain.train.pace import Pace
from posttrain.train.parts import make_algorithm, make_engine, make_plan, optimizer_rows


class Notebook:
    """Stands in for the monitor: remembers what it is told."""

    def __init__(self, stop_at=None):
        self.stats, self.steps, self.stop_at = [], [], stop_at
        self.pace = Pace()

    def after_step(self, step, stats):
        self.steps.append(step)
        self.stats.append(dict(stats))
        return step == self.stop_at


@pytest.fixture
def notebook():
    return Notebook


@pytest.fixture
def make_online_run(tiny_config, tiny_llama, trained, tmp_path):
    """(run, iterations) on the tiny model; ``parts`` replace attributes of the run, keywords are config keys."""

    def make(parts=None, *, stage="ppo", **keys):
        config = tiny_config(stage, tmp_path / "out", **{"reward_model": str(trained / "rm"), **keys})
        tokenizer = load_tokenizer(tiny_llama)
        splits = load_dataset(config.data, tokenizer, stage)
        plan = make_plan(config, len(splits.train))
        engine = make_engine(config, online_assembly(config).roles, plan)
        algorithm = make_algorithm(config)
        values = {
            "engine": engine,
            "algorithm": algorithm,
            "sampler": SlotSampler(engine.roles.backbone, num_slots=4),
            "reward": ScriptedReward(lambda ids: float(len(set(ids)))),
            "tokenizer": tokenizer,
            "prompts": splits.train,
            "num_prompts": optimizer_rows(config) * config.online.ppo_buffer_size // algorithm.group_size,
            "sampling": SamplingParams(
                max_new_tokens=config.generation.max_new_tokens,
                temperature=config.generation.temperature,
                stop_token_ids=splits.template.stop_token_ids,
                seed=1,
            ),
            "epochs": config.online.ppo_epochs,
            "minibatch_size": optimizer_rows(config),
            "seed": 1,
        }
        return OnlineRun(**{**values, **(parts or {})}), plan.total

    return make
