"""Chains of adapters: parents found, checked and worn once."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from posttrain.errors import UserError
from posttrain.models.adapter_files import write_adapter
from posttrain.models.chains import base_of, chain, common_prefix
from posttrain.models.lineage import Backbone, Lineage, write_lineage


@pytest.fixture
def make_adapter(tmp_path):
    """Write an adapter folder under ``tmp_path`` that stands on the given links."""

    def make(name, *parents, seed=None, folder=None):
        where = (folder or tmp_path) / name
        torch.manual_seed(hash(name) % 1000 if seed is None else seed)
        state = {f"base_model.model.layer.lora_{part}.weight": torch.randn(2, 2) for part in "AB"}
        write_adapter(where, LoraConfig(r=2, target_modules=["layer"]), state, base_model_name_or_path="base")
        records = tuple(link.parent for link in parents)
        write_lineage(where, Lineage(stage="sft", base=Backbone(name_or_path="base", fingerprint="f"), parents=records))
        return chain([where])[-1]

    return make


def names(links):
    return [link.folder.name for link in links]


def test_parents_come_first(make_adapter) -> None:
    pt = make_adapter("pt", seed=1)
    sft = make_adapter("sft", pt, seed=2)
    reward = make_adapter("reward", pt, sft, seed=3)
    assert names(chain([reward.folder])) == ["pt", "sft", "reward"]
    assert names(chain([sft.folder])) == ["pt", "sft"]


def test_an_adapter_named_twice_is_worn_once(make_adapter) -> None:
    pt = make_adapter("pt", seed=1)
    sft = make_adapter("sft", pt, seed=2)
    assert names(chain([pt.folder, sft.folder])) == ["pt", "sft"]
    assert names(chain([pt.folder, pt.folder])) == ["pt"]
    assert chain([]) == ()


def test_a_missing_parent_is_named(make_adapter) -> None:
    pt = make_adapter("pt", seed=1)
    sft = make_adapter("sft", pt, seed=2)
    pt.folder.rename(pt.folder.with_name("elsewhere"))
    with pytest.raises(UserError, match=r"sft was trained on top of the adapter .*pt, which is not there.*beside sft"):
        chain([sft.folder])


def test_a_parent_trained_again_is_refused(make_adapter) -> None:
    pt = make_adapter("pt", seed=1)
    sft = make_adapter("sft", pt, seed=2)
    make_adapter("pt", seed=9)
    with pytest.raises(UserError, match=r"sft was trained on top of the adapter .*pt, whose weights have changed"):
        chain([sft.folder])


def test_runs_that_moved_together_find_each_other(make_adapter, tmp_path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    pt = make_adapter("pt", seed=1, folder=old)
    make_adapter("sft", pt, seed=2, folder=old)
    old.rename(tmp_path / "new")
    links = chain([tmp_path / "new" / "sft"])
    assert [link.folder for link in links] == [tmp_path / "new" / "pt", tmp_path / "new" / "sft"]


def test_a_moved_run_prefers_the_recorded_weights(make_adapter, tmp_path) -> None:
    """Where the recorded place holds another adapter by now, the right one beside the child is taken."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    pt = make_adapter("pt", seed=1, folder=old)
    make_adapter("sft", pt, seed=2, folder=old)
    old.rename(new)
    old.mkdir()
    make_adapter("pt", seed=7, folder=old)
    assert chain([new / "sft"])[0].folder == new / "pt"


def test_common_prefix(make_adapter) -> None:
    pt = make_adapter("pt", seed=1)
    sft, other = make_adapter("sft", pt, seed=2), make_adapter("other", pt, seed=3)
    one, two = chain([sft.folder]), chain([other.folder])
    assert common_prefix((one, two)) == 1
    assert common_prefix((one, one)) == 2
    assert common_prefix((one, ())) == 0


def test_the_base_is_that_of_the_outermost(make_adapter) -> None:
    assert base_of(()) is None
    lineage = base_of(chain([make_adapter("pt", seed=1).folder]))
    assert lineage is not None
    assert lineage.base.fingerprint == "f"


def test_a_folder_that_is_no_adapter(tmp_path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        chain([tmp_path / "nowhere"])
