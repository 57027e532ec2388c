"""What is compared: for each stage its rows, each of a peer's side and one of ours, and what is to be reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.compare.venvs import OWN

STAGES = ("sft", "rm", "dpo", "grpo", "ppo", "decode")


@dataclass(frozen=True)
class Side:
    """A script under ``sides/``, what it is told to be, and the environment that it runs in.

    Attributes:
        keeps_cache: whether later blocks find what an earlier block has cached; the first one then only fills.
    """

    script: str
    variant: str
    environment: str
    keeps_cache: bool = False


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        stage, peer_name, name: together they name it.
        says: what the peer is given and what ours is.
        spec: keys of SPEC.json beyond ``COMMON`` and the stage's.
        speed, memory: what is to be reached: live tokens per second as a multiple, peak memory as a share.
    """

    stage: str
    peer_name: str
    name: str
    says: str
    peer: Side
    ours: Side
    speed: float | None = None
    memory: float | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sampled(self) -> bool:
        """Whether the sides sample their answers, so that live tokens differ."""
        return self.stage in ("grpo", "ppo")

    def settings(self, common: Mapping[str, Any]) -> dict[str, Any]:
        """SPEC.json without folders and variant."""
        return {**COMMON, **BY_STAGE[self.stage], **self.spec, **common, "stage": self.stage}


COMMON: dict[str, Any] = {
    "cutoff_len": 512,
    "batch": 4,
    "accumulation": 1,
    "epochs": 1,
    "max_new_tokens": 64,
    "group_size": 1,
    "beta": 0.1,
    "learning_rate": 1e-4,
    "lora_rank": 8,
    "lora_alpha": 16,
    "seed": 42,
    "threads": 2,
}
# LLaMA-Factory 0.8.2 begins with TRL's coefficient of the penalty, which no key changes; top_p and top_k are those of
# the setting that is compared, the temperature is its default.
_PPO = {
    **{"epochs": 4, "num_rows": 8, "steps": 1, "beta": 0.2, "ppo_target": 6.0, "learning_rate": 1e-5},
    **{"temperature": 0.95, "top_p": 0.9, "top_k": 0},
}
BY_STAGE: dict[str, dict[str, Any]] = {
    "sft": {"steps": 4, "num_rows": 16},
    "rm": {"steps": 4, "num_rows": 16},
    "dpo": {"steps": 2, "num_rows": 8},
    "grpo": {"steps": 1, "num_rows": 8, "batch": 8, "accumulation": 8, "group_size": 8, "beta": 0.04},
    "ppo": {**_PPO, "batch": 1, "accumulation": 8, "max_new_tokens": 128},
    "decode": {"steps": 1, "num_rows": 64, "slots": 16, "max_new_tokens": 256},
}

_OURS = Side("posttrain_offline.py", "ours", OWN)
_CACHED = Side("posttrain_offline.py", "ours_cached", OWN, keeps_cache=True)
_ONLINE = Side("posttrain_online.py", "ours", OWN)
_TOP = Side("posttrain_online.py", "ours_top_third", OWN)
_BALANCED = {"batch": 4, "accumulation": 2, "max_new_tokens": 48}
_THIRD = {"trainable_layers": 10}
_TUNED = "float32, no gradient checkpointing"
_DEFAULT = "its defaults, but float32"


def _trl(variant: str, script: str = "trl_offline.py") -> Side:
    return Side(script, variant, "trl")


def _factory(variant: str) -> Side:
    return Side("llamafactory_ppo.py", variant, "llamafactory")


_SPEC_4X2_TOP = {**_BALANCED, **_THIRD}
ROWS: tuple[Row, ...] = (
    Row("sft", "trl", "tuned", _TUNED, _trl("tuned"), _OURS, 2.5, 0.5),
    Row("sft", "trl", "default", _DEFAULT, _trl("default"), _OURS),
    Row("rm", "trl", "tuned", _TUNED, _trl("tuned"), _OURS, 2.0, 0.5),
    Row("rm", "trl", "default", _DEFAULT, _trl("default"), _OURS),
    Row("dpo", "trl", "uncached", f"{_TUNED}; ours asks its reference, too", _trl("tuned"), _OURS, 2.3, 0.35),
    Row("dpo", "trl", "cached", f"{_TUNED}; ours has asked before", _trl("tuned"), _CACHED, 3.0, 0.35),
    Row("dpo", "trl", "default", f"{_DEFAULT}; ours asks its reference, too", _trl("default"), _OURS),
    Row("grpo", "trl", "tuned", _TUNED, _trl("tuned", "trl_grpo.py"), _ONLINE, 3.0, 1.0),
    Row("grpo", "trl", "default", _DEFAULT, _trl("default", "trl_grpo.py"), _ONLINE),
    Row("ppo", "llamafactory", "1x8", f"{_TUNED}; batch 1 x 8, 128 tokens", _factory("tuned"), _ONLINE, 2.5, 1.0),
    Row("ppo", "llamafactory", "1x8-default", "its defaults; batch 1 x 8, 128 tokens", _factory("default"), _ONLINE),
    Row(
        *("ppo", "llamafactory", "4x2", f"{_TUNED}; batch 4 x 2, 48 tokens", _factory("tuned"), _ONLINE, 1.4, 1.0),
        spec=_BALANCED,
    ),
    Row(
        *("ppo", "llamafactory", "4x2-default", "its defaults; batch 4 x 2, 48 tokens", _factory("default"), _ONLINE),
        spec=_BALANCED,
    ),
    Row(
        *("ppo", "llamafactory", "4x2-top-third", f"{_TUNED}; ours trains the top 10 of 30 layers", _factory("tuned")),
        *(_TOP, 5.0, 1.0),
        spec=_SPEC_4X2_TOP,
    ),
    Row(
        *("decode", "transformers", "batch16", "greedy, batches of 16; ours 16 slots"),
        *(Side("transformers_decode.py", "tuned", "trl"), Side("posttrain_decode.py", "ours", OWN), 2.0),
    ),
)


def chosen(stage: str, peer: str, names: tuple[str, ...] = ()) -> list[Row]:
    """The rows of a stage against a peer, all of them unless some are named.

    Raises:
        ValueError: there are none, or not those.
    """
    found = [row for row in ROWS if (row.stage, row.peer_name) == (stage, peer)]
    known = [row.name for row in found]
    if not found:
        peers = sorted({row.peer_name for row in ROWS if row.stage == stage})
        raise ValueError(f"stage {stage} is compared with {', '.join(peers)}, not with {peer}")
    for name in names:
        if name not in known:
            raise ValueError(f"no row {name!r} in stage {stage}; there are {', '.join(known)}")
    return [row for row in found if not names or row.name in names]
