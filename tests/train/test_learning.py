"""Every stage learns: stated amounts within stated steps on the tiny model."""

from __future__ import annotations

import json

import pytest

from posttrain.rewards import ScriptedReward
from posttrain.train import online
from posttrain.train.run import train

WANTED = range(100, 140)


def log(folder):
    return [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("critic", ["value_head", "adapter"])
def test_ppo_raises_a_scripted_reward(make_online_run, notebook, critic) -> None:
    """The reward is the share of forty tokens among 320: an eighth by chance, twice a fifth after 30 iterations.

    (0.59 to 0.74 over three seeds.)
    """
    reward = ScriptedReward(lambda ids: sum(i in WANTED for i in ids) / len(ids))
    run, _ = make_online_run(
        {"reward": reward},
        critic=critic,
        learning_rate=2e-2,
        lora_rank=8,
        per_device_train_batch_size=16,
        ppo_buffer_size=3,
        num_return_sequences=4,
        ppo_epochs=2,
        kl_coef=0.0,
        ppo_target=None,
        lr_scheduler_type="constant",
    )
    notes = notebook()
    online.fit(run, 30, notes, lambda *_: None)
    rewards = [stats["reward_mean"] for stats in notes.stats]
    assert sum(rewards[:2]) / 2 < 0.2
    assert sum(rewards[-3:]) / 3 > 0.4


# name: (stage, keys, iterations, the reward that is reached); beside it what three seeds reached
ONLINE = {
    "rloo": ("rloo", {}, 20, 0.28),  # 0.45 to 0.64
    "grpo": ("grpo", {}, 20, 0.28),  # 0.59 to 0.64
    "Dr. GRPO": ("grpo", {"scale_rewards": "none", "loss_average": "budget"}, 20, 0.28),  # 0.42 to 0.57
    "DAPO": ("grpo", {"loss_average": "token", "clip_range_high": 0.28}, 20, 0.25),  # 0.38 to 0.44
    "GSPO": (
        "grpo",
        {"importance_sampling_level": "sequence", "clip_range": 3e-4, "clip_range_high": 4e-4},
        *(20, 0.28),  # 0.52 to 0.64
    ),
    "CISPO": ("grpo", {"policy_loss": "cispo", "loss_average": "token"}, 20, 0.28),  # 0.61 to 0.77
    "REINFORCE++": ("reinforce", {}, 20, 0.28),  # 0.52 to 0.62
    "REINFORCE++ with groups": ("reinforce", {"reinforce_baseline": "group"}, 20, 0.28),  # 0.44 to 0.68
    "ReMax": ("remax", {"ppo_epochs": 1}, 30, 0.2),  # 0.32 to 0.79
    "online DPO": ("online_dpo", {}, 20, 0.28),  # 0.49 to 0.59
    "rejection": ("rejection", {}, 20, 0.2),  # 0.30 to 0.40
}


@pytest.mark.parametrize("name", ONLINE)
def test_every_online_algorithm_raises_a_scripted_reward(make_online_run, notebook, name) -> None:
    """The reward of PPO above: an eighth of the tokens are wanted ones by chance."""
    stage, keys, iterations, reached = ONLINE[name]
    keys = {
        **{"learning_rate": 2e-2, "lora_rank": 8, "lr_scheduler_type": "constant", "kl_coef": 0.0, "ppo_epochs": 2},
        **{"per_device_train_batch_size": 16, "ppo_buffer_size": 3, "num_return_sequences": 4},
        **keys,
    }
    reward = ScriptedReward(lambda ids: sum(i in WANTED for i in ids) / len(ids))
    run, _ = make_online_run({"reward": reward}, stage=stage, **keys)
    notes = notebook()
    online.fit(run, iterations, notes, lambda *_: None)
    rewards = [stats["reward_mean"] for stats in notes.stats]
    assert sum(rewards[:2]) / 2 < 0.18
    assert sum(rewards[-3:]) / 3 > reached


# name: (stage, keys, the margin that is reached on held-out pairs); beside it what three seeds reached
OFFLINE = {
    "DPO": ("dpo", {}, 0.75),  # 1.5 to 2.0
    "IPO": ("dpo", {"pref_loss": "ipo"}, 0.12),  # 0.25 to 0.36
    "hinge": ("dpo", {"pref_loss": "hinge"}, 0.45),  # 0.94 to 1.2
    "robust": ("dpo", {"pref_loss": "robust", "dpo_label_smoothing": 0.1}, 0.75),  # 1.5 to 2.2
    "ORPO": ("dpo", {"pref_loss": "orpo"}, 0.12),  # 0.23 to 0.27
    "CPO": ("dpo", {"pref_loss": "cpo"}, 0.7),  # 1.3 to 1.5
    "SimPO": ("dpo", {"pref_loss": "simpo", "pref_beta": 2.0}, 3.0),  # 5.9 to 7.0
    "KTO": ("kto", {}, 0.75),  # 1.5 to 1.8
}


@pytest.mark.parametrize("name", OFFLINE)
def test_every_offline_algorithm_separates_held_out_pairs(tiny_config, tiny_data, tmp_path, name) -> None:
    """The pairs of the reward model below, those of KTO as single answers; untrained, margins are about 0."""
    stage, keys, reached = OFFLINE[name]
    config = tiny_config(
        stage,
        tmp_path / "out",
        dataset=str(tiny_data / "pairs.json"),
        learning_rate=1e-2,
        num_train_epochs=15,
        val_size=4,
        save_strategy="no",
        lora_rank=8,
        **keys,
    )
    results = train(config)
    assert results["eval_rewards/accuracies"] == 1.0
    assert results["eval_rewards/chosen"] - results["eval_rewards/rejected"] > reached


def test_the_penalty_holds_the_policy_back(make_online_run, notebook) -> None:
    """The same reward under a large fixed coefficient: KL stays a fraction of what it is without one."""
    found = {}
    for kl_coef in (0.0, 1.0):
        reward = ScriptedReward(lambda ids: sum(i in WANTED for i in ids) / len(ids))
        run, _ = make_online_run(
            {"reward": reward},
            learning_rate=1e-2,
            per_device_train_batch_size=12,
            kl_coef=kl_coef,
            ppo_target=None,
            lr_scheduler_type="constant",
        )
        notes = notebook()
        online.fit(run, 12, notes, lambda *_: None)
        found[kl_coef] = notes.stats[-1]["kl_k3"]
    assert found[1.0] < 0.5 * found[0.0]


# LoRA leaves final norm and head as they are, and those bound the logits: 0.86 is what this random head can say.
@pytest.mark.parametrize(("kind", "reached"), [("lora", 0.95), ("full", 0.05)])
def test_sft_memorises_eight_rows(tiny_config, tmp_path, kind, reached) -> None:
    config = tiny_config(
        "sft",
        tmp_path / "out",
        finetuning_type=kind,
        max_samples=8,
        learning_rate=1e-2,
        num_train_epochs=60,
        per_device_train_batch_size=8,
        lora_rank=16,
        lr_scheduler_type="cosine",
        warmup_steps=5,
        save_strategy="no",
    )
    train(config)
    losses = [line["loss"] for line in log(tmp_path / "out")]
    assert losses[0] > 4.0
    assert losses[-1] < reached


def test_the_reward_model_separates_held_out_pairs(tiny_config, tmp_path) -> None:
    """Chosen answers end in an exclamation mark, rejected ones begin with "no": that carries over to new pairs."""
    config = tiny_config(
        "rm", tmp_path / "out", learning_rate=1e-2, num_train_epochs=15, val_size=4, save_strategy="no", lora_rank=8
    )
    results = train(config)
    assert results["eval_accuracy"] == 1.0
    assert results["eval_margin"] > 2.0
    assert results["eval_loss"] < 0.2


def test_centring_holds_scores_at_zero(tiny_config, tmp_path) -> None:
    sums = {}
    for coef in (0.0, 1.0):
        config = tiny_config(
            "rm",
            tmp_path / f"out{coef}",
            learning_rate=1e-2,
            num_train_epochs=10,
            center_rewards_coef=coef,
            save_strategy="no",
        )
        train(config)
        last = log(tmp_path / f"out{coef}")[-1]
        sums[coef] = abs(last["chosen_score"] + last["rejected_score"])
    assert sums[1.0] < 0.5
    assert sums[1.0] < sums[0.0]


def test_pretraining_lowers_held_out_perplexity(tiny_config, tmp_path) -> None:
    config = tiny_config(
        "pt", tmp_path / "out", learning_rate=2e-2, num_train_epochs=15, val_size=3, save_strategy="no", lora_rank=8
    )
    results = train(config)
    assert results["eval_perplexity"] < 0.1 * results["eval_perplexity_before"]
