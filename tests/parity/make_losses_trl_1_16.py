"""Write ``losses_trl_1_16.json``: what the losses and advantages of TRL 1.16 answer to random tensors.

Run once in an environment of its own, never in the project's: ``pip install torch==2.13.0 trl==1.16.0``, then
``python tests/parity/make_losses_trl_1_16.py``. TRL's methods run unchanged on objects that carry only the settings
they read; in the place of a model stands a table of log-probabilities, of which the gradient is written down, too.
"""

from __future__ import annotations

import json
import platform
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

TARGET = Path(__file__).with_name("losses_trl_1_16.json")
PAIRS, WIDTH = 5, 8
BETAS = (0.1, 0.8)
SMOOTHING = 0.15
DPO_KINDS = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust"),
    *("sppo_hard", "apo_zero", "apo_down", "sigmoid_norm"),
)
KTO_CASES = {
    "plain": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0, "shift": 0.6},
    "weighed": {"beta": 0.5, "desirable_weight": 1.5, "undesirable_weight": 0.7, "shift": 0.6},
    "negative_kl": {"beta": 0.5, "desirable_weight": 1.0, "undesirable_weight": 1.0, "shift": -0.9},
}
CLIP = {"epsilon_low": 0.2, "epsilon_high": 0.28}
MAX_LENGTH = 12
GRPO_CASES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo"},
    "grpo_kl": {"loss_type": "grpo", "beta": 0.04},
    "grpo_delta": {"loss_type": "grpo", "delta": 1.5},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "dapo": {"loss_type": "dapo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.3},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.06},
}
GROUP = 4
SCALES = ("group", "batch", "none")
RLOO_CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "kl": {"beta": 0.2},
    "clipped": {"beta": 0.2, "reward_clip_range": (-1.0, 1.0)},
    "normalised": {"normalize_advantages": True},
}


class Table:
    """Stands where a model is asked for: its answers are given beforehand."""

    training = True
    is_gradient_checkpointing = False

    def __init__(self, answers: dict[int, Tensor] | None = None) -> None:
        self.answers = answers or {}

    def __call__(self, *, input_ids: Tensor, **_: Any) -> Any:
        logps = self.answers[int(input_ids[0, 0])]
        nothing = torch.zeros(logps.shape)
        named = {"entropy": nothing, "mean_logits": nothing, "is_top1": nothing.bool()}
        return SimpleNamespace(log_probs=logps, **named)


def lonely() -> Any:
    """An accelerator of one process."""
    same = {"gather": lambda x: x, "gather_for_metrics": lambda x: x, "reduce": lambda x, reduction: x}
    return SimpleNamespace(device=torch.device("cpu"), num_processes=1, process_index=0, sync_gradients=True, **same)


def subject(kind: Any, **settings: Any) -> Any:
    """An object of TRL's class with the settings that its methods read, and nothing else."""
    made = kind.__new__(kind)
    common = {
        "accelerator": lonely(),
        "model": Table(),
        "aux_loss_enabled": False,
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    for name, value in {**common, **settings}.items():
        setattr(made, name, value)
    return made


def masks(lengths: list[int], prompts: list[int], width: int) -> Tensor:
    """[B, T] int64, 1 on the tokens of answers that stand behind prompts."""
    at = torch.arange(width)
    first, count = torch.tensor(prompts)[:, None], torch.tensor(lengths)[:, None]
    return ((at >= first) & (at < first + count)).long()


def pair_inputs() -> dict[str, Tensor]:
    """Log-probabilities [P, T] of both answers to each prompt, 0 outside of them, and those under the reference."""
    generator = torch.Generator().manual_seed(20240229)
    prompts = [1, 2, 3, 1, 4]
    found = {
        "chosen_mask": masks([7, 3, 5, 1, 4], prompts, WIDTH),
        "rejected_mask": masks([2, 6, 5, 7, 1], prompts, WIDTH),
    }
    for side in ("chosen", "rejected"):
        mask = found[f"{side}_mask"]
        found[f"{side}_logps"] = -3 * torch.rand(PAIRS, WIDTH, generator=generator) * mask
        moved = found[f"{side}_logps"] + torch.randn(PAIRS, WIDTH, generator=generator)
        found[f"ref_{side}_logps"] = moved.clamp(max=-0.01) * mask
    return found


def dpo(given: dict[str, Tensor], kind: str, beta: float) -> list[dict[str, float]]:
    """Loss of every pair, and its slope along the log-probability of each answer."""
    from trl import DPOTrainer

    settings = {"beta": beta, "label_smoothing": SMOOTHING, "loss_types": [kind], "loss_weights": [1.0]}
    read = {"ld_alpha": None, "precompute_ref_logps": True, "f_divergence_type": "reverse_kl", "use_weighting": False}
    trainer, found = subject(DPOTrainer, **settings, **read), []
    for pair in range(PAIRS):
        rows = slice(pair, pair + 1)
        mask = torch.cat([given["chosen_mask"][rows], given["rejected_mask"][rows]])
        # TRL's column t is the token t + 1, and its first token is never an answer's.
        logps = torch.cat([given["chosen_logps"][rows], given["rejected_logps"][rows]])[:, 1:].requires_grad_()
        batch = {
            "input_ids": torch.zeros_like(mask),
            "attention_mask": torch.ones_like(mask),
            "completion_mask": mask,
            "ref_chosen_logps": given["ref_chosen_logps"][rows].sum(dim=1),
            "ref_rejected_logps": given["ref_rejected_logps"][rows].sum(dim=1),
        }
        loss = trainer._compute_loss(Table({0: logps}), batch, False)
        (grad,) = torch.autograd.grad(loss, logps)
        slopes = grad[:, -1].tolist()  # every token's is the same: it is the sum that counts
        found.append({"loss": loss.item(), "chosen_slope": slopes[0], "rejected_slope": slopes[1]})
    return found


def unpaired_inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(20240202)
    mask = masks([6, 3, 1, 7, 4, 2], [2, 1, 3, 1, 2, 5], WIDTH)
    mismatched_mask = masks([2, 6, 3, 1, 6, 3], [2, 1, 3, 1, 2, 5], WIDTH)
    found = {"label": torch.tensor([True, False, True, True, False, False])}
    for name, where in (("", mask), ("mismatched_", mismatched_mask)):
        shape = where.shape
        found[f"{name}mask"] = where
        found[f"{name}logps"] = -3 * torch.rand(shape, generator=generator) * where
        found[f"{name}noise"] = 0.7 * torch.randn(shape, generator=generator) * where
    return found


def kto(given: dict[str, Tensor], case: dict[str, float]) -> dict[str, Any]:
    """Loss of every row beside the same mismatched rows, its slope, and the reference point."""
    from trl import KTOTrainer

    settings = {name: case[name] for name in ("beta", "desirable_weight", "undesirable_weight")}
    trainer = subject(KTOTrainer, **settings, loss_type="kto", calculate_KL=True, precompute_ref_logps=True)
    ref_mismatched = (given["mismatched_logps"] - given["mismatched_noise"]).sum(dim=1) - case["shift"]
    ref = (given["logps"] - given["noise"]).sum(dim=1)
    rows = []
    for row in range(len(ref)):
        at = slice(row, row + 1)
        logps = given["logps"][at, 1:].clone().requires_grad_()
        mask, mismatched = given["mask"][at], given["mismatched_mask"]
        batch = {
            "input_ids": torch.zeros_like(mask),
            "attention_mask": torch.ones_like(mask),
            "completion_mask": mask,
            "KL_input_ids": torch.ones_like(mismatched),
            "KL_attention_mask": torch.ones_like(mismatched),
            "KL_completion_mask": mismatched,
            "label": given["label"][at],
            "ref_logps": ref[at],
            "ref_KL_logps": ref_mismatched,
        }
        loss = trainer._compute_loss(Table({0: logps, 1: given["mismatched_logps"][:, 1:]}), batch, False)
        (grad,) = torch.autograd.grad(loss, logps)
        rows.append({"loss": loss.item(), "slope": grad[0, -1].item()})
    kl = trainer._metrics["train"]["kl"][-1]
    return {**case, "ref_logps": ref, "ref_mismatched_logps": ref_mismatched, "kl": kl, "rows": rows}


def rollout_inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(20250718)
    mask = masks([8, 1, 5, 3, 7, 2, 6, 4], [0] * 8, WIDTH)
    old = -3 * torch.rand(8, WIDTH, generator=generator)
    logps = old + 0.4 * torch.randn(8, WIDTH, generator=generator)
    return {
        "mask": mask,
        "old_logps": old,
        "logps": logps,
        "ref_logps": old + 0.5 * torch.randn(8, WIDTH, generator=generator),
        "advantages": torch.randn(8, generator=generator),
        "rewards": torch.tensor([0.5, 2.0, -1.0, 0.25, 1.0, 1.0, 1.0, 1.0]),
    }


def answer(logps: Tensor) -> Any:
    """In the place of the method that asks a model for log-probabilities of tokens."""
    return lambda *_, **__: (logps, torch.zeros(logps.shape), None)


def online_batch(given: dict[str, Tensor], **columns: Tensor) -> dict[str, Tensor]:
    mask = given["mask"]
    prompt = torch.ones(len(mask), 2, dtype=torch.long)
    tokens = {"prompt_ids": prompt, "prompt_mask": prompt, "completion_ids": torch.zeros_like(mask)}
    return {**tokens, "completion_mask": mask, "advantages": given["advantages"], **columns}


def grpo(given: dict[str, Tensor], case: dict[str, Any]) -> dict[str, Any]:
    """The loss of the batch and its gradient along every log-probability."""
    from trl import GRPOTrainer

    settings = {"beta": 0.0, "importance_sampling_level": "token", "delta": None, **CLIP, **case}
    logps = given["logps"].clone().requires_grad_()
    args = SimpleNamespace(delta=settings.pop("delta"), use_bias_correction_kl=False, steps_per_generation=1)
    read = {
        **{"top_entropy_quantile": 1.0, "off_policy_mask_threshold": None, "use_vllm": False},
        **{"_entropy_bonus_enabled": False, "current_gradient_accumulation_steps": 1},
    }
    more = {"args": args, "max_completion_length": MAX_LENGTH, "_get_per_token_logps_and_entropies": answer(logps)}
    trainer = subject(GRPOTrainer, **settings, **read, **more)
    columns = {"old_per_token_logps": given["old_logps"], "ref_per_token_logps": given["ref_logps"]}
    batch = online_batch(given, **columns, num_items_in_batch=given["mask"].sum())
    loss = trainer._compute_loss(trainer.model, batch)
    (grad,) = torch.autograd.grad(loss, logps)
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    wanted = ("kl", "clip_ratio/region_mean", "cispo_clip_ratio")
    return {**case, "loss": loss, "grad": grad, "metrics": {name: metrics[name] for name in wanted if name in metrics}}


def rloo(given: dict[str, Tensor]) -> dict[str, Any]:
    """One ratio for each whole answer: the loss of the batch and its gradient."""
    from trl import RLOOTrainer

    logps = (given["old_logps"] + 0.2 * (given["logps"] - given["old_logps"])).requires_grad_()
    trainer = subject(RLOOTrainer, **CLIP, _get_per_token_logps_and_entropies=answer(logps))
    old = (given["old_logps"] * given["mask"]).sum(dim=1)
    loss = trainer._compute_loss(trainer.model, online_batch(given, old_logps=old))
    (grad,) = torch.autograd.grad(loss, logps)
    clipped = trainer._metrics["train"]["clip_ratio/region_mean"][-1]
    return {"loss": loss, "grad": grad, "logps": logps.detach(), "clip_fraction": clipped}


def scored(kind: Any, given: dict[str, Tensor], **settings: Any) -> Tensor:
    """Advantages of two groups, through the method that generates and scores, its sampler and its reward replaced."""
    lists = [[7] * int(count) for count in given["mask"].sum(dim=1)]
    prompts = [[5, 5]] * len(lists)
    args = {"gradient_accumulation_steps": 1, "steps_per_generation": 1, "per_device_train_batch_size": len(lists)}
    table, reference = Table(), Table()

    def logps(model: Any, *_: Any, **__: Any) -> tuple[Tensor, None, None]:
        return given["ref_logps" if model is reference else "old_logps"], None, None

    read = {
        **{"model": table, "ref_model": reference, "tools": [], "environments": None, "environment_factories": None},
        **{"num_iterations": 1, "num_generations": GROUP, "reward_func_names": ["given"], "pad_to_multiple_of": None},
        **{"mask_truncated_completions": False, "use_vllm": False, "vllm_importance_sampling_correction": False},
        **{"multi_objective_aggregation": "sum_then_normalize", "beta": 0.0, "reward_clip_range": None},
        **{"normalize_advantages": False, "reward_weights": torch.ones(1), "_pending_extra_logs": {}},
        **{"_pending_metrics": {}, "_logs": defaultdict(list, rewards=defaultdict(list))},
        "args": SimpleNamespace(**args, gradient_checkpointing_kwargs=None),
        "_tokenizer": SimpleNamespace(pad_token_id=0),
        "_get_per_token_logps_and_entropies": logps,
        "_calculate_rewards": lambda *_: given["rewards"][:, None],
    }
    three = (prompts, lists, [""] * len(lists))
    eight = (prompts, lists, None, three[2], None, {}, None, None)
    answers = eight if kind.__name__ == "GRPOTrainer" else three
    trainer = subject(kind, **{**read, **settings}, _generate=lambda _: answers)
    return trainer._generate_and_score_completions([{"prompt": ""}] * len(lists))["advantages"]


def plain(value: Any) -> Any:
    """Tensors as nested lists, numbers with the nine digits that tell every float32 from the next."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def main() -> None:
    import accelerate
    import transformers
    import trl

    accelerate.PartialState(cpu=True)
    packages = {"trl": trl, "torch": torch, "transformers": transformers, "accelerate": accelerate}
    versions = {name: package.__version__ for name, package in packages.items()}
    pairs, unpaired, online = pair_inputs(), unpaired_inputs(), rollout_inputs()
    advantages = {name: scored(trl.GRPOTrainer, online, scale_rewards=name) for name in SCALES}
    fixture = {
        "versions": {**versions, "python": platform.python_version()},
        "dpo": {
            "inputs": pairs,
            "label_smoothing": SMOOTHING,
            "cases": {f"{kind}/{beta}": dpo(pairs, kind, beta) for kind in DPO_KINDS for beta in BETAS},
        },
        "kto": {"inputs": unpaired, "cases": {name: kto(unpaired, case) for name, case in KTO_CASES.items()}},
        "online": {"inputs": online, **CLIP, "max_completion_length": MAX_LENGTH, "group_size": GROUP},
        "grpo": {name: grpo(online, case) for name, case in GRPO_CASES.items()},
        "grpo_advantages": advantages,
        "rloo": rloo(online),
        "rloo_advantages": {name: scored(trl.RLOOTrainer, online, **case) for name, case in RLOO_CASES.items()},
        "rloo_settings": RLOO_CASES,
    }
    TARGET.write_text(json.dumps(plain(fixture)) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
