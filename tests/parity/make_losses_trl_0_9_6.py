"""Write ``losses_trl_0_9_6.json``: what TRL 0.9.6's ORPO, CPO, SimPO and smoothed DPO answer to random numbers.

Run once in an environment of its own, never in the project's: ``pip install torch==2.13.0 trl==0.9.6
"transformers<4.45" "numpy<2" "datasets<4" "pyarrow<20" rich``, then ``python tests/parity/make_losses_trl_0_9_6.py``.
TRL's methods run unchanged on objects that carry only the settings they read.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

TARGET = Path(__file__).with_name("losses_trl_0_9_6.json")
CPO_CASES: dict[str, dict[str, Any]] = {
    "sigmoid": {"loss_type": "sigmoid", "beta": 0.1, "label_smoothing": 0.0},
    "smoothed": {"loss_type": "sigmoid", "beta": 0.4, "label_smoothing": 0.2},
    "hinge": {"loss_type": "hinge", "beta": 0.3, "label_smoothing": 0.0},
    "simpo": {"loss_type": "simpo", "beta": 2.0, "label_smoothing": 0.0, "simpo_gamma": 0.7},
}
DPO_CASES: dict[str, dict[str, Any]] = {
    "sigmoid": {"loss_type": "sigmoid", "beta": 0.1, "label_smoothing": 0.0},
    "smoothed": {"loss_type": "sigmoid", "beta": 0.3, "label_smoothing": 0.2},
    "robust": {"loss_type": "robust", "beta": 0.3, "label_smoothing": 0.2},
}


def inputs() -> dict[str, Tensor]:
    """Log-probabilities of whole answers [P], and means over tokens [P], below 0 as the real ones are."""
    generator = torch.Generator().manual_seed(20240312)
    sums, means = ("chosen", "rejected", "ref_chosen", "ref_rejected"), ("chosen_mean", "rejected_mean")
    found = {name: -12 * torch.rand(6, generator=generator) for name in sums}
    return {**found, **{name: -2.5 * torch.rand(6, generator=generator) - 0.02 for name in means}}


def subject(kind: Any, **settings: Any) -> Any:
    made = kind.__new__(kind)
    accelerator = SimpleNamespace(device=torch.device("cpu"))
    for name, value in {"accelerator": accelerator, **settings}.items():
        setattr(made, name, value)
    return made


def sloped(loss: Any, *sides: Tensor) -> dict[str, Tensor]:
    """Losses [P] and their slopes along both answers."""
    moving = [side.clone().requires_grad_() for side in sides]
    losses = loss(*moving)[0]
    chosen, rejected = torch.autograd.grad(losses.sum(), moving[:2])
    return {"loss": losses.detach(), "chosen_slope": chosen, "rejected_slope": rejected}


def orpo(given: dict[str, Tensor], beta: float) -> dict[str, Any]:
    """TRL subtracts what its method answers from the negative log-likelihood: β log σ, of which ours is −log σ."""
    from trl import ORPOTrainer

    trainer = subject(ORPOTrainer, beta=beta)
    return {"beta": beta, **sloped(trainer.odds_ratio_loss, given["chosen_mean"], given["rejected_mean"])}


def cpo(given: dict[str, Tensor], case: dict[str, Any]) -> dict[str, Any]:
    from trl import CPOTrainer

    names = ("chosen_mean", "rejected_mean") if case["loss_type"] == "simpo" else ("chosen", "rejected")
    trainer = subject(CPOTrainer, **case)
    return {**case, **sloped(trainer.cpo_loss, *(given[name] for name in names))}


def dpo(given: dict[str, Tensor], case: dict[str, Any]) -> dict[str, Any]:
    from trl import DPOTrainer
    from trl.trainer.dpo_config import FDivergenceType

    trainer = subject(DPOTrainer, **case, reference_free=False, f_divergence_type=FDivergenceType.REVERSE_KL)
    columns = (given[name] for name in ("chosen", "rejected", "ref_chosen", "ref_rejected"))
    return {**case, **sloped(trainer.dpo_loss, *columns)}


def plain(value: Any) -> Any:
    """Tensors as nested lists, numbers with the nine digits that tell every float32 from the next."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (Tensor, list)):
        return [plain(item) for item in (value.tolist() if isinstance(value, Tensor) else value)]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def main() -> None:
    import transformers
    import trl

    given = inputs()
    packages = {"trl": trl, "torch": torch, "transformers": transformers}
    fixture = {
        "versions": {**{name: p.__version__ for name, p in packages.items()}, "python": platform.python_version()},
        "inputs": given,
        "orpo": orpo(given, 0.3),
        "cpo": {name: cpo(given, case) for name, case in CPO_CASES.items()},
        "dpo": {name: dpo(given, case) for name, case in DPO_CASES.items()},
    }
    TARGET.write_text(json.dumps(plain(fixture)) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
