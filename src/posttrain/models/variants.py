"""Several models that are one backbone and different adapters on it: which they are, and putting all of them on."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from posttrain.config import RunConfig, is_online
from posttrain.errors import UserError
from posttrain.models.adapters import add_adapter, check_stack, fold, wear
from posttrain.models.chains import Link, common_prefix
from posttrain.models.quantize import is_quantized

ONLY = "model"
"""The name of the one variant of a configuration that lists none."""


def variant_folders(config: RunConfig) -> dict[str, tuple[str, ...]]:
    """Variant name -> the adapter folders it names, as ``variants`` and ``adapter_name_or_path`` say.

    Raises:
        UserError: an entry of ``variants`` is malformed, or two have one name.
    """
    if not config.evaluate.variants:
        return {ONLY: config.model.adapter_name_or_path}
    found: dict[str, tuple[str, ...]] = {}
    for entry in config.evaluate.variants:
        name, separator, folders = (part.strip() for part in entry.partition("="))
        paths = tuple(part.strip() for part in folders.split("+") if part.strip())
        if not name or (separator and not paths) or name in found:
            wrong = "is there twice" if name in found else "is not name=folder"
            raise UserError(f"variants: `{entry}` {wrong}; write, for example, variants: base, sft=runs/sft")
        found[name] = (*config.model.adapter_name_or_path, *paths)
    return found


def put_on_all(backbone: PreTrainedModel, chains: Sequence[tuple[Link, ...]]) -> dict[str, str]:
    """Add every adapter once: fingerprint -> its name in the model; "" for those folded into the weights."""
    # a reference stays without the adapter above it, even where every variant wears that
    shared = common_prefix([*chains, *(links[:-1] for links in chains if is_policy(links))])
    shared = 0 if is_quantized(backbone) else shared
    for number, link in enumerate(chains[0][:shared]):
        add_adapter(backbone, f"folded{number}", link.files.config, link.files.state)
    if shared:
        fold(backbone, [f"folded{number}" for number in range(shared)])
    names = {link.fingerprint: "" for link in chains[0][:shared]}
    for link in (link for links in chains for link in links):
        if link.fingerprint not in names:
            names[link.fingerprint] = f"adapter{len(names)}"
            add_adapter(backbone, names[link.fingerprint], link.files.config, link.files.state)
    if names:
        wear(backbone, ())
    if is_quantized(backbone):
        for links in chains:
            check_stack(backbone, [names[link.fingerprint] for link in links])
    backbone.requires_grad_(False)
    return names


def is_policy(links: Sequence[Link]) -> bool:
    """Whether the outermost adapter was trained online, from the policy beneath it."""
    lineage = links[-1].files.lineage if links else None
    return lineage is not None and is_online(lineage.stage)
