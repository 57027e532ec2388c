"""Where a trainer's tensors go when they are read back."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from posttrain.engine import state


def stepped():
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    parameter.grad = torch.ones(2, 2)
    optimizer.step()
    return optimizer, {"weight": parameter}


def write_all(folder) -> None:
    optimizer, parameters = stepped()
    state.write_weights(folder, parameters)
    state.write(folder, optimizer, parameters, {"step": 1})


def test_the_whole_state_lies_where_the_parameter_does(tmp_path) -> None:
    """Also the step count, which a fused optimizer wants on the GPU; the meta device stands in for one here."""
    write_all(tmp_path)
    parameter = nn.Parameter(torch.ones(2, 2, device="meta"))
    optimizer = torch.optim.AdamW([parameter])
    assert state.read(tmp_path, optimizer, {"weight": parameter}) == {"step": 1}
    assert {name: value.device.type for name, value in optimizer.state[parameter].items()} == {
        "step": "meta",
        "exp_avg": "meta",
        "exp_avg_sq": "meta",
    }


@pytest.mark.skipif(os.name != "posix", reason="Windows has no modes")
def test_files_have_the_mode_of_any_other_file(tmp_path) -> None:
    before = os.umask(0o022)
    try:
        write_all(tmp_path)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}
