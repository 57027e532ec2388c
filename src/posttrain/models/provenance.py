"""What an exported folder says of itself: lineage, copies of the adapters merged in, and the model card."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import posttrain
from posttrain.models.adapter_files import read_adapter, write_adapter
from posttrain.models.chains import Link, chain
from posttrain.models.lineage import Backbone, Lineage, Parent, adapter_fingerprint, read_lineage, write_lineage

_USE_LM = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
"""
_USE_REWARD = """\
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForSequenceClassification.from_pretrained("{name}")
text = tokenizer.apply_chat_template(
    [{{"role": "user", "content": "..."}}, {{"role": "assistant", "content": "..."}}], tokenize=False
)
score = model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits[0, 0]
"""


def describe(folder: Path, source: Path, base: Backbone, links: Sequence[Link], *, weights: str) -> tuple[Link, ...]:
    """Write ``lineage.json`` and ``adapters/0`` ... into an exported folder.

    Paths of the copies are relative to the folder, so that it can be moved. Where the source was merged itself, its
    base and its adapters come first: the folder then still stands on what was never merged.

    Args:
        folder: to describe. source: of the model that the adapters were merged into.
        base: that model. links: the adapters. weights: fingerprint of the result.

    Returns:
        All adapters that lie in the folder now, innermost first.
    """
    recorded = read_lineage(source)
    outer = links[-1].files.lineage if links else recorded
    earlier: tuple[Link, ...] = ()
    if recorded is not None and (recorded.merged or not links):
        base = recorded.base
        earlier = chain(source / parent.path for parent in recorded.parents) if recorded.merged else ()
    parents: list[Parent] = []
    for link in (*earlier, *links):
        parents.append(_copy(link, folder, parents, base.name_or_path))
    write_lineage(
        folder,
        Lineage(
            stage="export",
            base=base,
            parents=tuple(parents),
            template=outer.template if outer else None,
            template_example=outer.template_example if outer else None,
            merged=bool(parents),
            weights=weights,
        ),
    )
    return chain(folder / parent.path for parent in parents)


def _copy(link: Link, folder: Path, before: Sequence[Parent], base: str) -> Parent:
    """One adapter as ``adapters/N``, its own parents pointing to the copies before it."""
    place = folder / "adapters" / str(len(before))
    write_adapter(place, link.files.config, link.files.state, base_model_name_or_path=base)
    if link.files.head is not None:
        link.files.head.save(place)
    if link.files.lineage is not None:
        stands_on = {parent.fingerprint for parent in link.files.lineage.parents}
        beneath = tuple(
            Parent(path=f"../{Path(parent.path).name}", fingerprint=parent.fingerprint)
            for parent in before
            if parent.fingerprint in stands_on
        )
        write_lineage(place, dataclasses.replace(link.files.lineage, parents=beneath))
    mark = adapter_fingerprint(read_adapter(place).state)
    return Parent(path=f"adapters/{len(before)}", fingerprint=mark)


def model_card(
    *, name: str, base: str, links: Sequence[Link], dtype: str, is_reward: bool, findings: Sequence[str]
) -> str:
    """The text of the card.

    Args:
        name: of the folder. base: the model underneath, as its lineage names it.
        links: the adapters that were merged in, innermost first.
        dtype: of the weights. is_reward: a sequence classifier that scores, else a language model.
        findings: sentences about what was checked and chosen.
    """
    kind = "text-classification" if is_reward else "text-generation"
    tags = ["posttrain", *(["reward-model"] if is_reward else [])]
    front = ["library_name: transformers", f"pipeline_tag: {kind}", "tags:", *(f"- {tag}" for tag in tags)]
    what = "A reward model: one score for a whole conversation." if is_reward else "A language model."
    stages = [
        f"{number + 1}. `adapters/{number}`"
        + (f": stage {link.files.lineage.stage}" if link.files.lineage else "")
        + f", LoRA rank {link.files.config.r}, weights {link.fingerprint[:12]}"
        for number, link in enumerate(links)
    ]
    merged = [f"Made from `{base}` by adding these adapters to its weights, in this order:", "", *stages]
    made = merged if links else [f"Trained from `{base}`; no adapter had to be merged."]
    use = (_USE_REWARD if is_reward else _USE_LM).format(name=name)
    lines = [
        "---",
        *front,
        "---",
        "",
        f"# {name}",
        "",
        what,
        "",
        *made,
        "",
        f"Weights are {dtype}. Written by posttrain {posttrain.__version__}.",
        "",
        "## Checked",
        "",
        *(f"- {finding}" for finding in findings),
        "",
        "## Use",
        "",
        "```python",
        use.rstrip(),
        "```",
    ]
    return "\n".join(lines) + "\n"
