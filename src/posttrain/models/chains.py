"""Adapter chains: an adapter folder together with the recorded parents it stands on, checked against the backbone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.errors import UserError
from posttrain.models.adapter_files import AdapterFiles, read_adapter
from posttrain.models.lineage import Lineage, Parent, adapter_fingerprint, check_backbone


@dataclass(frozen=True)
class Link:
    """One adapter of a chain: its folder, its files and the fingerprint of its weights."""

    folder: Path
    files: AdapterFiles
    fingerprint: str

    @property
    def parent(self) -> Parent:
        """How a child records it."""
        return Parent(path=str(self.folder.resolve()), fingerprint=self.fingerprint)


def chain(folders: Iterable[str | Path]) -> tuple[Link, ...]:
    """The adapters to wear, innermost first: recorded parents before the folder that records them, each once.

    Raises:
        UserError: if a folder is missing, or a parent is no longer what its child was trained on.
    """
    links: list[Link] = []
    for folder in folders:
        own = _link(Path(folder).expanduser())
        for parent in own.files.lineage.parents if own.files.lineage else ():
            if parent.fingerprint not in {link.fingerprint for link in links}:
                links.append(_parent_link(own.folder, parent))
        if own.fingerprint not in {link.fingerprint for link in links}:
            links.append(own)
    return tuple(links)


def common_prefix(chains: Sequence[Sequence[Link]]) -> int:
    """How many adapters all chains begin with."""
    count = 0
    for links in zip(*chains, strict=False):
        if len({link.fingerprint for link in links}) != 1:
            break
        count += 1
    return count


def base_of(links: Sequence[Link]) -> Lineage | None:
    """The lineage of the outermost adapter, which names the backbone under the chain; None where unknown."""
    return links[-1].files.lineage if links else None


def check_links(
    links: Iterable[Link], found: str, *, key: str, model: str, folder: str | Path, allow_mismatch: bool
) -> tuple[str, ...]:
    """Refuse adapters that were trained on another backbone than the one they are about to be put on.

    A recorded lineage is compared by the weights' fingerprint. Without one, as in adapters of other programs, the
    name in ``base_model_name_or_path`` is all there is to go by.

    Args:
        links: the adapters.
        found: fingerprint of the backbone at hand.
        key: the configuration key that named them.
        model: what the user calls the backbone. folder: where it lies.
        allow_mismatch: the user's own decision.

    Returns:
        Sentences for the user.

    Raises:
        UserError: they differ.
    """
    notes = []
    for link in links:
        if link.files.lineage is None:
            notes.append(_check_name(link, key, model, folder, allow_mismatch))
            continue
        note = check_backbone(
            link.files.lineage, found, folder=link.folder, key=key, backbone=model, allow_mismatch=allow_mismatch
        )
        notes += [note] if note else []
    return tuple(notes)


def names_model(named: str, model: str, folder: str | Path) -> bool:
    """Whether the name that an adapter gives its base can mean a model; nothing is fetched or compared.

    Args:
        named: ``base_model_name_or_path`` of the adapter.
        model: the model's name. folder: where it lies.
    """
    place = Path(named).expanduser()
    if place.is_dir():
        return place.resolve() == Path(folder).expanduser().resolve()
    # a model that was moved, or came from the hub, keeps the last part of its name
    return _last_part(named) in (_last_part(model), _last_part(str(folder)))


def _last_part(name: str) -> str:
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1].lower()


def _check_name(link: Link, key: str, model: str, folder: str | Path, allow_mismatch: bool) -> str:
    named = link.files.base_model_name_or_path
    if not named or names_model(named, model, folder):
        return (
            f"{key}: {link.folder} does not record what it was trained on beyond the name {named or '(none)'}; "
            f"it is taken to fit {model}."
        )
    differ = f"{key}: {link.folder} names {named} as the model it was trained on, but the backbone is {model}"
    if allow_mismatch:
        return f"{differ}; used all the same, as allow_mismatch says."
    raise UserError(
        f"{differ}. On other weights an adapter means nothing. Use the model it was trained on, or write "
        "allow_mismatch: true if the two are the same or to go on all the same."
    )


def _link(folder: Path) -> Link:
    files = read_adapter(folder)
    return Link(folder, files, adapter_fingerprint(files.state))


def _parent_link(child: Path, parent: Parent) -> Link:
    recorded = Path(parent.path)
    # a tree of runs that was moved as a whole still has the parent beside the child
    places = [place for place in (recorded, child.parent / recorded.name) if place.is_dir()]
    if not places:
        raise UserError(
            f"{child} was trained on top of the adapter {recorded}, which is not there. Put it back, or place it "
            f"beside {child.name}."
        )
    for place in places:
        link = _link(place)
        if link.fingerprint == parent.fingerprint:
            return link
    raise UserError(
        f"{child} was trained on top of the adapter {recorded}, whose weights have changed since (trained again?). "
        f"Train {child.name} again on the new one."
    )
