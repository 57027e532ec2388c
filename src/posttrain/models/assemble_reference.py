"""A reference of its own for the preference stages: another model than the policy as it starts."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from posttrain.config import RunConfig
from posttrain.errors import UserError
from posttrain.models.assembly import finish, put_on
from posttrain.models.backbone import load_backbone, model_folder
from posttrain.models.chains import chain, check_links
from posttrain.models.fetch import resolve_model
from posttrain.models.lineage import fingerprint
from posttrain.models.load import disable_dropout, load_tokenizer
from posttrain.models.quantize import quantization
from posttrain.models.roles import Costume, SharedRoles
from posttrain.types import Role


def has_reference_model(config: RunConfig) -> bool:
    """Whether ``ref_model`` or ``ref_model_adapters`` say what the reference is."""
    return bool(config.preference.ref_model or config.preference.ref_model_adapters)


def reference_roles(config: RunConfig) -> tuple[SharedRoles, str]:
    """The reference that the keys name, frozen, and a hash of its weights.

    Raises:
        UserError: a folder is not there, an adapter does not belong on the model, or the model reads other tokens.
    """
    named, links = config.preference.ref_model, chain(config.preference.ref_model_adapters)
    name = named or config.model.model_name_or_path
    folder = model_folder(config) if named is None else resolve_model(named, cache_dir=config.model.cache_dir)
    if named is not None:
        _require_vocabulary(config, str(folder))
    if named is not None:  # the base of the policy has the policy's bits, another model its own
        bits = config.model.ref_model_quantization_bit
        config = replace(config, model=replace(config.model, quantization_bit=bits))
    backbone = load_backbone(config, named)
    mark = fingerprint(backbone)
    check_links(
        links,
        mark,
        key="ref_model_adapters",
        model=name,
        folder=folder,
        allow_mismatch=config.model.allow_mismatch,
    )
    roles = SharedRoles(backbone, {Role.REFERENCE: Costume(wears=put_on(backbone, links, "ref"), head="lm_head")}, {})
    disable_dropout(backbone)
    finish(config, backbone)
    parts = [mark, repr(quantization(backbone)), *(link.fingerprint for link in links)]
    digest = hashlib.sha256("/".join(parts).encode())
    return roles.eval(), digest.hexdigest()


def _require_vocabulary(config: RunConfig, folder: str) -> None:
    options = {"use_fast": config.model.use_fast_tokenizer, "trust_remote_code": config.model.trust_remote_code}
    own = load_tokenizer(model_folder(config), **options).get_vocab()
    theirs = load_tokenizer(folder, **options).get_vocab()
    odd = sorted(token for token, number in own.items() if theirs.get(token) != number)
    if odd:
        raise UserError(
            f"ref_model: {folder} has another vocabulary than {config.model.model_name_or_path} ({len(odd)} of "
            f"{len(own)} tokens differ, {odd[0]!r} among them), so the two cannot be compared token by token. Name a "
            "reference with the same tokenizer."
        )
