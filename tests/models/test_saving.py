"""Modes and bytes of saved files."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors import safe_open

from posttrain.models.saving import save_tensors, share


@pytest.mark.skipif(os.name != "posix", reason="Windows has no modes")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_umask_decides_and_stays(tmp_path, mask) -> None:
    outside = tmp_path / "outside"
    outside.touch()
    outside.chmod(0o600)
    folder = tmp_path / "model"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").touch()
    (folder / "link").symlink_to(outside)
    folder.chmod(0o700)
    before = os.umask(mask)
    try:
        share(folder)
    finally:
        assert os.umask(before) == mask
    found = [path.stat().st_mode & 0o777 for path in (folder, folder / "inner", folder / "inner" / "file", outside)]
    assert found == [0o777 & ~mask, 0o777 & ~mask, 0o666 & ~mask, 0o600]


def test_the_same_tensors_are_the_same_bytes(tmp_path) -> None:
    """safetensors itself orders four entries of metadata in 24 ways, anew in every file."""
    metadata = {"format": "pt", "kind": "score", "skips": "3", "甲": "乙"}
    tensors = {"b": torch.arange(4.0), "a": torch.ones(2, 2)}
    for number in range(12):
        save_tensors(tensors, tmp_path / str(number), metadata)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    with safe_open(tmp_path / "0", "pt") as file:
        assert file.metadata() == metadata
        assert {name: file.get_tensor(name).tolist() for name in file.keys()} == {  # noqa: SIM118
            name: tensor.tolist() for name, tensor in tensors.items()
        }
