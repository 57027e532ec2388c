"""Modes of saved files."""

from __future__ import annotations

import os

import pytest

from posttrain.models.saving import share


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
