"""The first optimizer steps of DPO, KTO, GRPO and RLOO: TRL 1.16 against posttrain on the same tiny model and batch.

    python benchmarks/first_steps.py trl          writes the fixture, where torch==2.13.0 and trl==1.16.0 are installed
    python benchmarks/first_steps.py posttrain    compares; exit status 1 where a loss or gradient norm differs by 1e-4

TRL's own trainers run, from ``__init__`` to ``train``; only what they would sample and how it is rewarded is given.
Weights and tokens are functions of an integer hash (tests/parity/make_ppo_steps.py), exact on every machine.
"""

from __future__ import annotations

import json
import platform
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
FIXTURE = ROOT / "tests" / "parity" / "first_steps_trl_1_16.json"
MAKER = runpy.run_path(str(ROOT / "tests" / "parity" / "make_ppo_steps.py"))
VOCABULARY, END = MAKER["VOCABULARY"], 1
STEPS, PAIRS, ANSWERS, PROMPTS, GROUP, MAX_LENGTH = 2, 4, 6, 2, 4, 8
OPTIMIZER = {"learning_rate": 3e-3, "max_grad_norm": 1.0}
# The second step goes over the same experience, so that ratios leave 1 and are clipped.
ONLINE = {"num_generations": GROUP, "num_iterations": STEPS, "temperature": 1.0, "epsilon": 0.2}
SCENARIOS: dict[str, dict[str, Any]] = {
    "dpo": {"trainer": "DPO", "settings": {"beta": 0.3}},
    "dpo_ipo": {"trainer": "DPO", "settings": {"beta": 0.3, "loss_type": ["ipo"]}},
    "dpo_robust": {"trainer": "DPO", "settings": {"beta": 0.3, "loss_type": ["robust"], "label_smoothing": 0.1}},
    "kto": {"trainer": "KTO", "settings": {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.8}},
    "grpo": {"trainer": "GRPO", "settings": {**ONLINE, "loss_type": "grpo", "beta": 0.04}},
    "dr_grpo": {
        "trainer": "GRPO",
        "settings": {
            **ONLINE,
            **{"loss_type": "dr_grpo", "scale_rewards": "none", "beta": 0.0, "max_completion_length": MAX_LENGTH},
        },
    },
    "dapo": {
        "trainer": "GRPO",
        "settings": {**ONLINE, "loss_type": "dapo", "epsilon_high": 0.28, "scale_rewards": "batch", "beta": 0.0},
    },
    "gspo": {
        "trainer": "GRPO",
        "settings": {
            **ONLINE,
            **{"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.02, "beta": 0.0},
        },
    },
    "cispo": {"trainer": "GRPO", "settings": {**ONLINE, "loss_type": "cispo", "epsilon_high": 1.28, "beta": 0.0}},
    "rloo": {"trainer": "RLOO", "settings": {**ONLINE, "beta": 0.05}},
}


def tokens(count: int, seed: int) -> list[int]:
    """Tokens that are neither padding nor the end."""
    return (2 + MAKER["hashed"](count, seed) % (VOCABULARY - 2)).tolist()


def pairs() -> list[dict[str, list[int]]]:
    """Prompts and two answers each; every answer ends in the token of the end."""
    found = []
    for row in range(PAIRS):
        lengths = {"prompt": 2 + row % 3, "chosen": 3 + (5 * row) % 4, "rejected": 2 + (3 * row) % 5}
        sides = {name: tokens(length, 70_000 + 10 * row + k) for k, (name, length) in enumerate(lengths.items())}
        found.append({name: ids if name == "prompt" else [*ids, END] for name, ids in sides.items()})
    return found


def answers() -> list[dict[str, Any]]:
    """Prompts and an answer each, good or bad; beside it the answer to the prompt before, as TRL mismatches them."""
    rows = [
        {
            "prompt": tokens(2 + row % 3, 80_000 + 10 * row),
            "completion": [*tokens(2 + (5 * row) % 6, 80_001 + 10 * row), END],
            "label": row % 3 != 1,
        }
        for row in range(ANSWERS)
    ]
    return [{**row, "mismatched": rows[at - 1]["completion"]} for at, row in enumerate(rows)]


def groups() -> list[dict[str, Any]]:
    """Prompts and a group of rewarded completions each; not all end before the longest that is allowed."""
    found = []
    for number in range(PROMPTS):
        seed = 60_000 + 1000 * number
        lengths = [2 + (3 * k + number) % (MAX_LENGTH - 1) for k in range(GROUP)]
        completions = [tokens(length, seed + 10 * k) for k, length in enumerate(lengths)]
        closed = [[*ids[:-1], END] if len(ids) < MAX_LENGTH else ids for ids in completions]
        rewards = [round(float(MAKER["filled"](torch.Size([1]), seed + 5 * k)) * 4, 4) for k in range(GROUP)]
        found.append({"prompt": tokens(2 + number, seed + 7), "completions": closed, "rewards": rewards})
    return found


def text(ids: list[int]) -> str:
    return " ".join(str(token) for token in ids)


def tokenizer() -> Any:
    """A token for every number, with blanks between."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({str(token): token for token in range(VOCABULARY)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token=str(END))


def policy_and_reference() -> tuple[Any, Any]:
    """Two tiny models whose every weight differs."""
    policy, reference = MAKER["language_model"]("llama"), MAKER["language_model"]("llama")
    MAKER["other"](dict(reference.named_parameters()))
    return policy, reference


def dataset(kind: str) -> list[dict[str, Any]]:
    """Rows of text for TRL's own tokenization."""
    if kind == "DPO":
        return [{k: text(ids) if k == "prompt" else " " + text(ids) for k, ids in row.items()} for row in pairs()]
    if kind == "KTO":
        return [
            {"prompt": text(row["prompt"]), "completion": " " + text(row["completion"]), "label": row["label"]}
            for row in answers()
        ]
    return [{"prompt": text(group["prompt"])} for group in groups()]


def recorder(kind: str) -> Any:
    """TRL's trainer, which writes down its losses; an online one, to which completions are given."""
    import trl

    class Recorder(getattr(trl, f"{kind}Trainer")):  # type: ignore[misc]
        losses: list[float]

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            self.losses.append(loss.item())
            return loss

        def _generate(self, prompts: list[str]) -> Any:
            waiting = {text(group["prompt"]): iter(group["completions"]) for group in groups()}
            completions = [next(waiting[prompt]) for prompt in prompts]
            prompt_ids, texts = [[int(token) for token in p.split()] for p in prompts], [text(c) for c in completions]
            if kind == "RLOO":
                return prompt_ids, completions, texts
            return prompt_ids, completions, None, texts, None, {}, None, None

    return Recorder


def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    known = {
        (text(group["prompt"]), text(ids)): score
        for group in groups()
        for ids, score in zip(group["completions"], group["rewards"], strict=True)
    }
    return [known[case] for case in zip(prompts, completions, strict=True)]


def run_trl(scenario: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Losses and gradient norms of TRL's steps, and a digest of the weights behind them."""
    import trl
    from datasets import Dataset

    kind = scenario["trainer"]
    policy, reference = policy_and_reference()
    start = {name: weight.detach().clone() for name, weight in policy.named_parameters()}
    rows = Dataset.from_list(dataset(kind))
    arguments = {
        **{"output_dir": str(folder / "run"), "max_steps": STEPS, "logging_steps": 1, "save_strategy": "no"},
        **{"report_to": "none", "use_cpu": True, "bf16": False, "lr_scheduler_type": "constant", "disable_tqdm": True},
        **{"gradient_checkpointing": False, "per_device_train_batch_size": len(rows), **OPTIMIZER},
    }
    more: dict[str, Any] = {"ref_model": reference}
    if kind in ("GRPO", "RLOO"):
        # These load their reference from where the policy says that it comes from.
        reference.save_pretrained(folder / "reference")
        policy.config._name_or_path = str(folder / "reference")
        arguments["per_device_train_batch_size"] = PROMPTS * GROUP
        more = {"reward_funcs": reward}
    config = getattr(trl, f"{kind}Config")(**{**arguments, **scenario["settings"]})
    trainer = recorder(kind)(policy, args=config, train_dataset=rows, processing_class=tokenizer(), **more)
    trainer.losses = []
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    extra = ("kl", "clip_ratio/region_mean", "cispo_clip_ratio", "rewards/accuracies")
    steps = [
        {"loss": loss, "grad_norm": float(entry["grad_norm"]), **{k: float(entry[k]) for k in extra if k in entry}}
        for loss, entry in zip(trainer.losses, logged, strict=True)
    ]
    return {**scenario, "steps": steps, "weights": MAKER["digest"](dict(policy.named_parameters()), start)}


def write_fixture() -> int:
    import accelerate
    import transformers
    import trl

    torch.set_num_threads(1)
    packages = {"trl": trl, "torch": torch, "transformers": transformers, "accelerate": accelerate}
    scenarios = {}
    for name, scenario in SCENARIOS.items():
        with tempfile.TemporaryDirectory() as folder:
            scenarios[name] = run_trl(scenario, Path(folder))
        print(name, [{k: round(v, 6) for k, v in step.items()} for step in scenarios[name]["steps"]], flush=True)
    fixture = {
        "versions": {**{name: p.__version__ for name, p in packages.items()}, "python": platform.python_version()},
        "optimizer": OPTIMIZER,
        "pairs": pairs(),
        "answers": answers(),
        "groups": groups(),
        "scenarios": scenarios,
    }
    FIXTURE.write_text(json.dumps(MAKER["plain"](fixture)) + "\n", encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(write_fixture())
