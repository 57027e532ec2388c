"""What becomes of every key of LLaMA-Factory and TRL, as Markdown tables, written from the tables that decide it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from posttrain.config import trl
from posttrain.config.foreign import FOREIGN, REFUSED_VALUES
from posttrain.config.renamed import ELSEWHERE, RENAMED
from posttrain.config.run import KEYS
from posttrain.config.translate import TRANSLATED

_VALUES: Mapping[str, str] = {
    "warmup_steps": "Below 1 it is read as `warmup_ratio`, with a note.",
    "max_length": "Read as `max_new_tokens`: the limit counts the completion alone.",
    "num_beams": "Only 1; more is refused, completions are sampled.",
    "eval_num_beams": "Ignored with a note: completions are sampled, not searched; more than 1 is refused.",
    "generation_num_beams": "Ignored with a note: completions are sampled, not searched; more than 1 is refused.",
    "generation_max_length": "Read as `max_new_tokens`.",
    "pure_bf16": "Read as `bf16: true`; the optimizer keeps float32 weights.",
    "train_sampling_strategy": "sequential is `disable_shuffling: true`, group_by_length `group_by_length: true`.",
    "lr_scheduler_kwargs": "A block or JSON, names as in transformers.",
    "reward_model_adapters": "Read as `reward_model`: the folder says what it stands on.",
    "task": "The question sets mmlu, ceval and cmmlu are refused.",
    "load_in_4bit": "Read as `quantization_bit: 4`.",
    "load_in_8bit": "Read as `quantization_bit: 8`.",
}
"""Keys whose values are read in a way of their own, in a sentence."""

_KINDS = ("Honoured", "Read as something else", "Ignored, with a note", "Refused")

_HEAD = "| key | here |\n|---|---|\n"


def llamafactory_table(keys: Iterable[str]) -> str:
    """A row for every key that has one, one row for all that share a fate.

    Args:
        keys: of LLaMA-Factory and of the training arguments that it takes over.

    Raises:
        ValueError: a key that nothing is said of.
    """
    fates: dict[str, list[str]] = {}
    for key in sorted(set(keys)):
        fates.setdefault(fate(key), []).append(key)
    kinds: dict[str, list[str]] = {kind: [] for kind in _KINDS}
    for sentence, names in fates.items():
        kind, _, text = sentence.partition("|")
        kinds[kind].append(f"| {', '.join(f'`{name}`' for name in names)} | {text} |")
    parts = []
    for kind, rows in kinds.items():
        parts.append(f"### {kind}\n\n{_HEAD}" + "\n".join(sorted(rows)) + "\n")
    return "\n".join(parts)


def fate(key: str) -> str:
    """``kind|sentence`` of one key.

    Raises:
        ValueError: nothing is said of it.
    """
    if key in KEYS:
        return f"Honoured|{KEYS[key].help.replace('|', '/')}{_more(key)}"
    if key in RENAMED:
        return f"Read as something else|`{RENAMED[key]}`, with a note."
    if key in FOREIGN:
        foreign = FOREIGN[key]
        kind = "Ignored, with a note" if foreign.action == "ignore" else "Refused"
        sentence = foreign.sentence[0].upper() + foreign.sentence[1:]
        return f"{kind}|{sentence}."
    if key in TRANSLATED:
        return f"Read as something else|{_VALUES.get(key, 'Read in its meaning here, with a note.')}"
    if key in ELSEWHERE:
        return f"Refused|A name of LLaMA-Factory v1: the message names `{ELSEWHERE[key]}`."
    raise ValueError(f"nothing is said of {key}")


def _more(key: str) -> str:
    """What is special about some values of a key that is honoured."""
    own = f" {_VALUES[key]}" if key in _VALUES else ""
    refused = [
        f"`{value}` {sentence.split(';')[0]}" for (name, value), sentence in REFUSED_VALUES.items() if name == key
    ]
    return own + (f" Refused: {'; '.join(refused)}." if refused else "")


def trl_table() -> str:
    """Every argument of TRL's trainers and command line, and what `posttrain config convert` makes of it."""
    methods = [
        f"| `trl {name}` | " + ", ".join(f"`{key}: {value}`" for key, value in keys.items()) + " |"
        for name, keys in trl.METHODS.items()
    ]
    read = [f"| `{name}` | {sentence} |" for name, sentence in sorted(trl.TRANSLATED.items())]
    names = [f"| `{name}` | `{key}` |" for name, key in sorted(trl.NAMES.items()) if name not in trl.TRANSLATED]
    gone: dict[str, list[str]] = {}
    for name, sentence in sorted(trl.LOST.items()):
        gone.setdefault(sentence, []).append(name)
    lost = [f"| {', '.join(f'`{name}`' for name in names)} | {why} |" for why, names in gone.items()]
    defaults = [
        f"| `trl {method}` | " + ", ".join(f"`{key}: {value}`" for key, value in values.items()) + " |"
        for method, values in trl.DEFAULTS.items()
    ]
    sections = {
        "Trainers": ("| trainer | here |", methods),
        "Arguments under another name": ("| argument | here |", names),
        "Arguments whose values are translated": ("| argument | here |", read),
        "Not carried over": ("| argument | why |", lost),
        "Defaults of TRL that are written into the file": ("| trainer | where it is left out |", defaults),
    }
    return "\n".join(
        f"### {title}\n\n{head}\n|---|---|\n" + "\n".join(rows) + "\n" for title, (head, rows) in sections.items()
    )


def trl_keys() -> frozenset[str]:
    """Arguments that the table names."""
    return frozenset({*trl.TRANSLATED, *trl.NAMES, *trl.LOST})
