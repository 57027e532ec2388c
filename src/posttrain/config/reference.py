"""The configuration reference, written from the declarations themselves."""

from __future__ import annotations

from typing import Any

from posttrain.config.defaults import stage_defaults
from posttrain.config.options import type_label
from posttrain.config.renamed import RENAMED
from posttrain.config.run import GROUPS, KEYS, Key
from posttrain.config.script import ALIASES, SPECIAL
from posttrain.config.stages import ONLINE_STAGES

_TITLES = {
    "model": "Model",
    "data": "Data",
    "method": "Stage and trained weights",
    "sft": "Supervised fine-tuning",
    "reward_model": "Reward model",
    "reward": "Rewards",
    "preference": "Preferences",
    "online": "Online stages",
    "ppo": "PPO",
    "alarms": "Alarms",
    "generation": "Generation",
    "train": "Training run",
    "trackers": "Trackers",
    "export": "Export",
    "hub": "Hub",
    "predict": "Prediction",
    "judge": "Judge",
    "evaluate": "Evaluation",
    "serve": "Server",
}

_INTRO = """\
# Configuration reference

<!-- Written by `python -m posttrain.config > docs/configuration.md`; change the dataclasses, not this file. -->

One flat file of `key: value` lines configures a command; `posttrain train sft.yaml learning_rate=1e-4` overrides a
line. Names are LLaMA-Factory's where it has the key. A list is written as `a,b` or as a YAML list; `null` is an empty
value. An unknown key is an error that names the nearest valid one. A key of LLaMA-Factory that has no meaning here is
either ignored with a note or refused with a sentence that says what to do instead.
"""

_PIPELINE = """
## Pipeline files

`posttrain run PIPELINE.yaml` runs stages in order.

| key | meaning |
|---|---|
| `name` | Name of the pipeline; the file's name by default. |
| `output_dir` | Folder of everything it writes; a stage writes to `<output_dir>/<stage name>` by default. |
| `prepare` | Data to generate first: a list of `generator`, `output`, `seed` and the generator's own keys. |
| `defaults` | Flat keys that every stage takes. |
| `stages` | A list; each item has `name`, `stage` (a training stage, or export, evaluate, generate, label) and flat \
keys, or `config` with a file beside the pipeline's that holds them. |

`${sft.output_dir}`, and any other key of an earlier stage, can be used in a value, as can `${output_dir}`, `${name}`
and `${prepare.text2sql.output}`. On the command line `sft.learning_rate=1e-4` overrides a key of one stage,
`max_steps=10` of every stage, `prepare.text2sql.seed=3` of a generator, `output_dir=runs/b` of the pipeline.
"""


_SCRIPT = """
## Flags of a PPO script

The flags of "PPO over four GPT-2 models" ([question generation](question-generation.md)) are read in files and behind
commands; a note says what each became, and a key that is set too wins over a flag.

| flag | read as |
|---|---|
"""
_COUNTED = (
    f"| `max_len` | stages that sample, generate: `cutoff_len` of max_len - query_len - {SPECIAL}, and `cut_prompts`; "
    "other stages: `cutoff_len` |\n"
    "| `batch_size` | training: `per_device_train_batch_size`, times `num_return_sequences` in stages that sample |\n"
    "| `num_episodes`, `max_timesteps` | `max_steps` of num_episodes x max_timesteps / update_timesteps, `save_steps` "
    "of max_timesteps / update_timesteps |\n"
    "| `device` | -1: `device_map: cpu`; else nothing, with a note |\n"
)


def reference_markdown() -> str:
    """Every key with its type, default and meaning, as one Markdown page that ends in a newline."""
    parts = [_INTRO]
    for group, config in GROUPS.items():
        parts.append(
            f"\n## {_TITLES[group]}\n\n{_summary(config)}\n\n| key | type | default | meaning |\n|---|---|---|---|\n"
        )
        parts += [_row(key) for key in KEYS.values() if key.group == group]
    parts.append(
        "\n## Defaults of the stages\n\nWhere a file leaves these out. The stages that sample take their completions "
        "from the policy itself: temperature 1, nothing cut off.\n\n| stage | key | default there |\n|---|---|---|\n"
    )
    for stage in ONLINE_STAGES:
        parts += [f"| {stage} | `{key}` | {_written(value)} |\n" for key, value in stage_defaults(stage).items()]
    parts.append(
        "\n## Former names\n\nRead as the key that they became, with a note.\n\n| written | read as |\n|---|---|\n"
    )
    parts += [f"| `{old}` | `{new}` |\n" for old, new in RENAMED.items()]
    parts.append(_SCRIPT)
    parts += [f"| `{flag}` | `{key}` |\n" for flag, key in ALIASES.items()]
    parts.append(_COUNTED)
    parts.append(_PIPELINE)
    return "".join(parts)


def _summary(config: type) -> str:
    return " ".join((config.__doc__ or "").split())


def _row(key: Key) -> str:
    default = "required" if key.required else _written(key.default)
    return f"| `{key.name}` | {type_label(key.hint)} | {default} | {key.help.replace('|', '/')} |\n"


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return f"`{','.join(map(str, value))}`" if value else "empty"
    if value is None or isinstance(value, bool):
        return f"`{'null' if value is None else str(value).lower()}`"
    return f"`{value}`" if value != "" else "empty"
