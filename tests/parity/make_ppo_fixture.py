"""Write ``ppo_trl_0_9_6.json``: what TRL 0.9.6's PPO answers to random tensors.

Run once in an environment of its own, never in the project's: ``pip install trl==0.9.6 "transformers<4.45" "numpy<2"``,
then ``python tests/parity/make_ppo_fixture.py``. TRL's methods run unchanged on an object that carries only the
settings they read, so no model is needed.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TARGET = Path(__file__).with_name("ppo_trl_0_9_6.json")
SETTINGS = {
    "gamma": 0.97,
    "lam": 0.9,
    "cliprange": 0.2,
    "cliprange_value": 0.3,
    "vf_coef": 0.1,
    "kl_coef": 0.15,
    "kl_target": 6.0,
    "kl_horizon": 100.0,
}
KL_PENALTIES = {"k1": "kl", "k2": "mse", "abs": "abs"}


def inputs() -> dict[str, Any]:
    import torch

    torch.manual_seed(20240709)
    batch, width, vocabulary = 4, 7, 11
    lengths = torch.tensor([7, 1, 4, 6])
    return {
        "mask": (torch.arange(width) < lengths[:, None]).float(),
        "old_logprobs": -torch.rand(batch, width) * 3,
        "ref_logprobs": -torch.rand(batch, width) * 3,
        "values": torch.randn(batch, width),
        "scores": torch.randn(batch) * 2 + 1,
        "later_scores": torch.randn(batch) * 3 - 1,
        "log_ratio": torch.randn(batch, width) * 0.4,
        "value_change": torch.randn(batch, width) * 0.5,
        "logits": torch.randn(batch, width, vocabulary) * 2,
    }


def trainer(**overrides: Any) -> Any:
    from trl import PPOTrainer
    from trl.trainer.utils import AdaptiveKLController

    subject = PPOTrainer.__new__(PPOTrainer)
    config = {**SETTINGS, "whiten_rewards": False, "kl_penalty": "kl", "ratio_threshold": 10.0, **overrides}
    subject.config = SimpleNamespace(**config)
    subject.kl_ctl = AdaptiveKLController(SETTINGS["kl_coef"], SETTINGS["kl_target"], SETTINGS["kl_horizon"])
    return subject


def credit(given: dict[str, Any], **overrides: Any) -> dict[str, Any]:
    """Rewards with the KL penalty, then advantages and returns."""
    subject = trainer(**overrides)
    mask = given["mask"]
    rewards, _, kl = subject.compute_rewards(given["scores"], given["old_logprobs"], given["ref_logprobs"], mask)
    _, advantages, returns = subject.compute_advantages(given["values"], rewards, mask)
    sequence_kl = float((kl * mask).sum(dim=-1).mean())
    subject.kl_ctl.update(sequence_kl, len(mask))
    return {
        "kl": kl,
        "rewards": rewards,
        "advantages": advantages,
        "returns": returns,
        "sequence_kl": sequence_kl,
        "next_kl_coef": float(subject.kl_ctl.value),
    }


def losses(given: dict[str, Any], credited: dict[str, Any]) -> dict[str, float]:
    subject = trainer()
    policy, value, stats = subject.loss(
        given["old_logprobs"],
        given["values"],
        given["logits"],
        given["values"] + given["value_change"],
        given["old_logprobs"] + given["log_ratio"],
        given["mask"],
        credited["advantages"],
        credited["returns"],
    )
    return {
        "policy_loss": float(policy),
        "value_loss_times_coef": float(value),
        "clip_fraction": float(stats["policy/clipfrac"]),
        "value_clip_fraction": float(stats["val/clipfrac"]),
        "entropy": float(stats["policy/entropy"]),
    }


def running(given: dict[str, Any]) -> list[dict[str, float]]:
    from trl.trainer.utils import RunningMoments

    moments = RunningMoments(SimpleNamespace(use_distributed=False))
    seen = []
    for name in ("scores", "later_scores"):
        moments.update(given[name])
        seen.append({"mean": float(moments.mean), "std": float(moments.std)})
    return seen


def plain(value: Any) -> Any:
    """Tensors as nested lists; float32 numbers survive JSON exactly."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value


def main() -> None:
    import torch
    import transformers
    import trl
    from trl.core import masked_whiten

    given = inputs()
    credited = {kind: credit(given, kl_penalty=penalty) for kind, penalty in KL_PENALTIES.items()}
    fixture = {
        "versions": {
            "trl": trl.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "settings": SETTINGS,
        "inputs": given,
        "whiten": masked_whiten(given["values"], given["mask"]),
        "whiten_keep_mean": masked_whiten(given["values"], given["mask"], shift_mean=False),
        "credit": credited,
        # With padding, TRL's whitened rewards are not 0 there and leak into the last token's advantage: only a full
        # mask says what is meant.
        "credit_whiten_rewards": credit({**given, "mask": torch.ones_like(given["mask"])}, whiten_rewards=True),
        "losses": losses(given, credited["k1"]),
        "running": running(given),
    }
    TARGET.write_text(json.dumps(plain(fixture), indent=1) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
