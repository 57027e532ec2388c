"""Adapter chains: an adapter folder together with the recorded parents it stands on, checked against the backbone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.errors import UserError
from posttrain.models.adapter_files import AdapterFiles, read_adapter
from posttrain.models.lineage import Lineage, Parent, adapter_fingerprint


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
