"""Write ``ppo_steps_trl_0_9_6.json``: the first optimizer steps of TRL 0.9.6's ``PPOTrainer`` on tiny models.

Run once in an environment of its own, never in the project's, where ``pip install torch==2.13.0 trl==0.9.6
"transformers<4.45" "numpy<2" "datasets<4" "pyarrow<20" rich`` has been run: ``python tests/parity/make_ppo_steps.py``.
Weights, prompts and answers are functions of an integer hash, exact on every machine, so the file holds digests of the
weights only. Every parameter trains, the value head with them.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TARGET = Path(__file__).with_name("ppo_steps_trl_0_9_6.json")
BATCH, VOCABULARY = 4, 29
SIZES: dict[str, dict[str, Any]] = {
    "llama": {
        **{"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64},
        **{"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "attention_dropout": 0.0},
    },
    "gpt2": {
        **{"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
        **{"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "summary_dropout_prob": 0.0},
    },
}
SETTINGS = {
    **{"learning_rate": 3e-3, "gamma": 0.97, "lam": 0.9, "cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 0.1},
    **{"init_kl_coef": 0.15, "target": 0.05, "horizon": 30, "ppo_epochs": 2, "mini_batch_size": BATCH},
}
SCENARIOS: dict[str, dict[str, Any]] = {
    "adaptive_kl": {"family": "llama", "reference": "copy", "steps": 3, "config": {"adap_kl_ctrl": True}},
    "normalised_scores": {
        **{"family": "gpt2", "reference": "other", "steps": 3},
        "config": {
            **{"adap_kl_ctrl": False, "use_score_scaling": True, "use_score_norm": True, "score_clip": 0.9},
            **{"mini_batch_size": 2},
        },
    },
    "whitened_rewards": {
        **{"family": "llama", "reference": "other", "steps": 2, "even": True},
        "config": {"adap_kl_ctrl": True, "whiten_rewards": True, "target": 1.2},
    },
    # Where rows are padded TRL's whitened rewards are not: one step, whose credit alone is compared.
    "whitened_rewards_padded": {
        **{"family": "llama", "reference": "other", "steps": 1},
        "config": {"adap_kl_ctrl": True, "whiten_rewards": True},
    },
}


def hashed(count: int, seed: int) -> Tensor:
    """[count] int64 below 2³², a fixed function of position and seed."""
    low = 0xFFFFFFFF
    x = (torch.arange(count, dtype=torch.int64) * 2654435761 + seed * 40503 + 12345) & low
    for shift, factor in ((16, 0x45D9F3B), (15, 0x2C1B3C6D)):
        x = ((x ^ (x >> shift)) * factor) & low
    return x ^ (x >> 16)


def filled(shape: torch.Size, seed: int) -> Tensor:
    """Float32 numbers between -1/2 and 1/2, exact on every machine."""
    count = int(torch.tensor(shape).prod())
    return ((hashed(count, seed) >> 8).double() / 2**24 - 0.5).float().view(shape)


def fill(parameters: dict[str, Tensor], seed: int = 0) -> None:
    """Write weights into parameters, each a function of its place in the alphabet of names."""
    with torch.no_grad():
        for number, name in enumerate(sorted(parameters)):
            weight = parameters[name]
            values = filled(weight.shape, 1000 * seed + number)
            is_gain = weight.dim() == 1 and name.endswith("weight")
            weight.copy_(1 + 0.4 * values if is_gain else 0.8 * values)


def other(parameters: dict[str, Tensor]) -> None:
    """Move weights a little, to those of a reference that is not where the policy starts."""
    with torch.no_grad():
        for number, name in enumerate(sorted(parameters)):
            parameters[name] += 0.1 * filled(parameters[name].shape, 5000 + number)


def experience(step: int, *, even: bool = False) -> dict[str, Any]:
    """Prompts and answers as token ids, and their scores; ``even``: all rows equally long."""
    rows: dict[str, Any] = {"queries": [], "responses": [], "scores": []}
    for row in range(BATCH):
        seed = 90_000 + 100 * step + row
        prompt_length, length = 2 + row % 3, 3 + (row * 5 + step) % 6
        if even:
            length = 9 - prompt_length
        ids = (1 + hashed(prompt_length + length, seed) % (VOCABULARY - 1)).tolist()
        rows["queries"].append(ids[:prompt_length])
        rows["responses"].append(ids[prompt_length:])
        rows["scores"].append(float(filled(torch.Size([1]), seed + 50)) * 3 + 0.5)
    return rows


def language_model(family: str) -> Any:
    import transformers

    kinds = {"llama": ("LlamaConfig", "LlamaForCausalLM"), "gpt2": ("GPT2Config", "GPT2LMHeadModel")}
    config, model = (getattr(transformers, name) for name in kinds[family])
    built = model(config(**SIZES[family], bos_token_id=0, eos_token_id=1, pad_token_id=0))
    fill(dict(built.named_parameters()))
    return built.eval()


def with_value_head(family: str, *, moved: bool = False) -> Any:
    from trl import AutoModelForCausalLMWithValueHead

    model = AutoModelForCausalLMWithValueHead(language_model(family), summary_dropout_prob=0.0)
    fill(dict(model.v_head.named_parameters()), seed=1)
    if moved:
        other(dict(model.pretrained_model.named_parameters()))
    model.is_peft_model = False
    return model


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({str(i): i for i in range(VOCABULARY)}, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="1", padding_side="right")


def recorder(config: Any, model: Any, reference: Any) -> Any:
    """A ``PPOTrainer`` that writes down what its own methods are given and answer."""
    from trl import PPOTrainer

    class Recorder(PPOTrainer):
        seen: dict[str, Any]

        def compute_rewards(self, scores: Any, logprobs: Any, ref_logprobs: Any, masks: Any) -> Any:
            rewards, penalty, kl = super().compute_rewards(scores, logprobs, ref_logprobs, masks)
            self.seen |= {"mask": masks, "logprobs": logprobs, "ref_logprobs": ref_logprobs, "token_rewards": rewards}
            self.seen["used_scores"] = scores
            return rewards, penalty, kl

        def compute_advantages(self, values: Any, rewards: Any, mask: Any) -> Any:
            credited = super().compute_advantages(values, rewards, mask)
            self.seen |= dict(zip(("values", "advantages", "returns"), credited, strict=True))
            return credited

        def loss(self, *columns: Any) -> Any:
            policy, value, stats = super().loss(*columns)
            names = ("policy/entropy", "policy/clipfrac", "policy/approxkl", "val/clipfrac")
            found = {
                "policy_loss": policy.detach(),
                "value_loss_times_coef": value.detach(),
                **{name: stats[name] for name in names},
            }
            self.seen["updates"].append({name: float(number) for name, number in found.items()})
            return policy, value, stats

    return Recorder(config, model, reference, tokenizer())


def digest(named: dict[str, Tensor], start: dict[str, Tensor]) -> dict[str, Any]:
    """Norm of every weight and of its way from the start, and four of its entries.

    Left out is GPT-2's bias of the keys: softmax does not see it, so its gradient is 0, and what Adam divides by its
    own size there is rounding.
    """
    found = {}
    for name, weight in named.items():
        now, before = weight.detach().flatten(), start[name].flatten()
        if name.endswith("c_attn.bias"):
            third = len(now) // 3
            now, before = (torch.cat([x[:third], x[2 * third :]]) for x in (now, before))
        entries = now[:: max(1, len(now) // 4)][:4].clone()
        found[name] = {"norm": now.norm(), "moved": (now - before).norm(), "entries": entries}
    return found


def run(scenario: dict[str, Any]) -> dict[str, Any]:
    import numpy
    from trl import PPOConfig

    settings = {**SETTINGS, **scenario["config"]}
    model = with_value_head(scenario["family"])
    reference = with_value_head(scenario["family"], moved=scenario["reference"] == "other")
    trainer = recorder(PPOConfig(batch_size=BATCH, seed=7, **settings), model, reference)
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    permutation, orders = numpy.random.permutation, []

    def recorded(count: int) -> Any:
        orders.append(permutation(count))
        return orders[-1]

    steps = []
    for number in range(scenario["steps"]):
        given = experience(number, even=scenario.get("even", False))
        trainer.seen = {"updates": []}
        orders.clear()
        numpy.random.permutation = recorded
        try:
            tensors = {name: [torch.tensor(row) for row in given[name]] for name in ("queries", "responses", "scores")}
            stats = trainer.step(tensors["queries"], tensors["responses"], tensors["scores"])
        finally:
            numpy.random.permutation = permutation
        trainer.seen |= {"orders": [order.tolist() for order in orders], "kl": float(stats["objective/kl"])}
        trainer.seen |= {
            "next_kl_coef": float(trainer.kl_ctl.value),
            "weights": digest(dict(model.named_parameters()), start),
        }
        steps.append({"given": given, **trainer.seen})
    return {**scenario, "settings": settings, "steps": steps}


def plain(value: Any) -> Any:
    """Tensors as nested lists, numbers with the nine digits that tell every float32 from the next."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, list):
        return [plain(item) for item in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def main() -> None:
    import accelerate
    import transformers
    import trl

    torch.set_num_threads(1)
    fixture = {
        "versions": {
            "trl": trl.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
            "python": platform.python_version(),
        },
        "sizes": SIZES,
        "scenarios": {name: run(scenario) for name, scenario in SCENARIOS.items()},
    }
    TARGET.write_text(json.dumps(plain(fixture)) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
