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
# Special tokens are found inside words, too: none of the others may contain one.
WORDS = ["<pad>", "<end>", *(str(token) for token in range(2, VOCABULARY))]
TOLERANCE = 1e-4
STEPS, PAIRS, ANSWERS, PROMPTS, GROUP, MAX_LENGTH = 2, 4, 6, 2, 4, 8
OPTIMIZER = {"learning_rate": 3e-3, "max_grad_norm": 1.0}
# The second step goes over the same experience, so that ratios leave 1 and are clipped.
ONLINE = {"num_generations": GROUP, "num_iterations": STEPS, "temperature": 1.0, "epsilon": 0.2}
# By default TRL 1.16 multiplies the KL in the loss by the ratio; GRPO's paper does not, nor do we.
PLAIN_KL = {"use_bias_correction_kl": False}
SCENARIOS: dict[str, dict[str, Any]] = {
    "dpo": {"trainer": "DPO", "settings": {"beta": 0.3}},
    "dpo_ipo": {"trainer": "DPO", "settings": {"beta": 0.3, "loss_type": ["ipo"]}},
    "dpo_robust": {"trainer": "DPO", "settings": {"beta": 0.3, "loss_type": ["robust"], "label_smoothing": 0.1}},
    "kto": {"trainer": "KTO", "settings": {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.8}},
    "grpo": {"trainer": "GRPO", "settings": {**ONLINE, "loss_type": "grpo", "beta": 0.04, **PLAIN_KL}},
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
            "prompt": tokens(2 + row % 3, 82_000 + 10 * row),
            "completion": [*tokens(2 + (5 * row) % 6, 82_001 + 10 * row), END],
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
    return " ".join(WORDS[token] for token in ids)


def tokenizer() -> Any:
    """A token for every word, with blanks between."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: token for token, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=WORDS[0], eos_token=WORDS[END])


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
            prompt_ids = [[WORDS.index(word) for word in prompt.split()] for prompt in prompts]
            texts = [text(ids) for ids in completions]
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


def algorithm(scenario: dict[str, Any]) -> Any:
    """Ours with TRL's settings."""
    from posttrain import algorithms

    given, kind = scenario["settings"], scenario["trainer"]
    if kind == "DPO":
        pref_loss = given.get("loss_type", ["sigmoid"])[0]
        return algorithms.DPO(
            beta=given["beta"], pref_loss=pref_loss, label_smoothing=given.get("label_smoothing", 0.0)
        )
    if kind == "KTO":
        return algorithms.KTO(**given)
    common = {"group_size": GROUP, "kl_coef": given["beta"], "clip": given["epsilon"]}
    if kind == "RLOO":
        return algorithms.RLOO(**common, importance="completion", loss_average="sequence")
    averages = {"grpo": "sequence", "dr_grpo": "budget", "dapo": "token", "cispo": "token"}
    bounds = {"clip_high": given.get("epsilon_high")}
    if given["loss_type"] == "cispo":  # TRL's epsilon_high is the bound itself, and it has none from below
        bounds = {"policy_loss": "cispo", "clip": 1.0, "clip_high": given["epsilon_high"] - 1}
    return algorithms.GRPO(
        **{**common, **bounds},
        loss_average=averages[given["loss_type"]],
        budget=MAX_LENGTH,
        importance=given.get("importance_sampling_level", "token"),
        scale_rewards=given.get("scale_rewards", "group"),
    )


def make_engine(ours: Any) -> Any:
    """An engine over a policy whose every weight trains, a frozen reference beside it; micro-batches are small."""
    from posttrain.engine import Engine, OptimizerSettings
    from posttrain.models.forward import prepare_trunk
    from posttrain.models.roles import Costume, SharedRoles
    from posttrain.models.separate import SeparateRoles
    from posttrain.types import Role

    policy, reference = policy_and_reference()
    for model in (policy, reference):
        prepare_trunk(model, ("sdpa",))  # as TRL's: after some steps of Adam the order of sums shows
    names = frozenset(name for name, _ in policy.named_parameters())
    trained = {Role.ACTOR: Costume(wears=(), head="lm_head", trains="base")}
    frozen = {Role.REFERENCE: Costume(wears=(), head="lm_head")}
    members = {
        "policy": SharedRoles(policy, trained, {}, base_trains=names),
        "reference": SharedRoles(reference, frozen, {}),
    }
    return Engine(SeparateRoles(members), ours, OptimizerSettings(**OPTIMIZER), lambda step: 1.0, max_tokens=24)


def columns(rows: list[tuple[list[int], list[int]]]) -> dict[str, Any]:
    """Prompts and answers as a padded table."""
    lengths = [len(prompt) + len(answer) for prompt, answer in rows]
    at, ends = torch.arange(max(lengths)), torch.tensor(lengths)[:, None]
    starts = torch.tensor([[len(prompt)] for prompt, _ in rows])
    ids = [prompt + answer + [0] * (max(lengths) - len(prompt) - len(answer)) for prompt, answer in rows]
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": at < ends,
        "loss_mask": (at >= starts) & (at < ends),
    }


def unscored(rows: list[tuple[list[int], list[int]]]) -> Any:
    from posttrain.types import RolloutBatch

    table = columns(rows)
    nothing = torch.zeros(table["input_ids"].shape)
    return RolloutBatch(**table, logprobs=nothing, ended=torch.ones(len(rows), dtype=torch.bool))


def reference_logps(engine: Any, rows: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """[B] log-probability of whole answers under the reference."""
    from posttrain.types import Role

    return engine.consult((Role.REFERENCE,), unscored(rows)).ref_logprobs.sum(dim=1)


def experience(engine: Any, ours: Any) -> Any:
    """The groups as a credited batch."""
    from posttrain.types import Role

    rows = [(group["prompt"], completion) for group in groups() for completion in group["completions"]]
    rewards = torch.tensor([score for group in groups() for score in group["rewards"]])
    batch = engine.consult((Role.ACTOR, Role.REFERENCE), unscored(rows)).with_columns(rewards=rewards)
    batch, engine.algorithm_state = ours.credit(batch, engine.algorithm_state)
    return batch


def offline_batch(engine: Any, ours: Any) -> Any:
    """The pairs, or the judged answers with the reference point of the policy as it is now."""
    from posttrain.types import Batch, PreferenceBatch, UnpairedBatch

    if type(ours).__name__ == "DPO":
        rows = [(pair["prompt"], pair[side]) for pair in pairs() for side in ("chosen", "rejected")]
        return PreferenceBatch(**columns(rows), ref_logps=reference_logps(engine, rows))
    matched, twins = (
        [(answer["prompt"], answer[name]) for answer in answers()] for name in ("completion", "mismatched")
    )
    batch = UnpairedBatch(
        **columns(matched),
        desirable=torch.tensor([answer["label"] for answer in answers()]),
        ref_logps=reference_logps(engine, matched),
        mismatched=Batch(**columns(twins)),
        mismatched_ref_logps=reference_logps(engine, twins),
    )
    return ours.with_reference_point(batch, engine.sequence_logps(batch.mismatched))


def run_posttrain(scenario: dict[str, Any]) -> dict[str, Any]:
    """The same as ``run_trl`` of our engine and algorithms."""
    from posttrain.types import Role

    ours = algorithm(scenario)
    engine = make_engine(ours)
    policy = dict(engine.roles.member(Role.ACTOR).named_parameters())
    start = {name: weight.detach().clone() for name, weight in policy.items()}
    online = scenario["trainer"] in ("GRPO", "RLOO")
    batch, steps = experience(engine, ours) if online else None, []
    for _ in range(STEPS):
        engine.accumulate(ours, offline_batch(engine, ours) if batch is None else batch)
        steps.append(engine.optimizer_step())
    return {"steps": steps, "weights": MAKER["digest"](policy, start)}


def compare() -> int:
    """Print both sides; 1 where a loss or a gradient norm differs by ``TOLERANCE``, relatively above 1."""
    torch.set_num_threads(1)
    fixture = json.loads(FIXTURE.read_text(encoding="utf-8"))
    print(f"{'':12}{'':14}" + "".join(f"{name:>14}" for name in (f"trl {fixture['versions']['trl']}", "posttrain")))
    worst = 0.0
    for name, scenario in fixture["scenarios"].items():
        found = run_posttrain(scenario)
        for number, (theirs, own) in enumerate(zip(scenario["steps"], found["steps"], strict=True), start=1):
            for figure in ("loss", "grad_norm"):
                print(f"{name:12}{number} {figure:12}{theirs[figure]:14.7f}{own[figure]:14.7f}")
                worst = max(worst, abs(theirs[figure] - own[figure]) / max(1.0, abs(theirs[figure])))
    print(f"largest difference: {worst:.1e}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    if sys.argv[1:] not in (["trl"], ["posttrain"]):
        sys.exit(__doc__)
    sys.exit(write_fixture() if sys.argv[1] == "trl" else compare())
