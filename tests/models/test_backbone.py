"""In which precision a backbone is loaded."""

from __future__ import annotations

import pytest
import torch

from posttrain.models.backbone import precision

CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, "float32"),
        ({"bf16": True}, "bfloat16"),
        ({"fp16": True}, "float16"),
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "float16", "fp16": True}, "float16"),
    ],
)
def test_auto_follows_bf16_and_fp16_on_a_gpu(tiny_config, tmp_path, keys, expected) -> None:
    config = tiny_config("sft", tmp_path, **keys)
    assert precision(config, CUDA) == (expected, ())
    dtype, notes = precision(config, torch.device("cpu"))
    assert dtype == "float32"
    flags = [flag for flag in ("bf16", "fp16") if keys.get(flag)]
    assert notes == tuple(f"{flag}: true is for a GPU, and there is none; float32 is computed." for flag in flags)


def test_an_explicit_dtype_decides_and_says_so(tiny_config, tmp_path) -> None:
    dtype, notes = precision(tiny_config("sft", tmp_path, dtype="float32", bf16=True), CUDA)
    assert dtype == "float32"
    assert notes == ("dtype: float32 decides the precision; bf16: true changes nothing beside it.",)


@pytest.mark.parametrize("kind", ["full", "freeze"])
def test_weights_that_train_themselves_are_float32(tiny_config, tmp_path, kind) -> None:
    dtype, notes = precision(tiny_config("sft", tmp_path, bf16=True, finetuning_type=kind), CUDA, trains_base=True)
    assert dtype == "float32"
    assert f"finetuning_type: {kind}" in notes[0]
    assert precision(tiny_config("sft", tmp_path, finetuning_type=kind), CUDA, trains_base=True) == ("float32", ())
