"""Exports in several files: none larger than asked for, an index that names all of them, the same model."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from posttrain.config import load_config
from posttrain.models import export
from posttrain.models.export import export_model


@pytest.fixture
def exported(trained, tiny_llama, tmp_path):
    def run(name, said=None, **keys):
        values = {"model_name_or_path": str(tiny_llama), "adapter_name_or_path": str(trained / "sft"), **keys}
        config = load_config({**values, "export_dir": str(tmp_path / name)}, command="export")
        return export_model(config, (said if said is not None else []).append)

    return run


def test_weights_are_cut_into_files_of_the_size_asked_for(exported, monkeypatch):
    whole = exported("whole", export_size=1000)
    assert [path.name for path in whole.glob("*.safetensors")] == ["model.safetensors"]
    assert not (whole / "model.safetensors.index.json").exists()
    monkeypatch.setattr(export, "SHARD_UNIT", "KB")
    said = []
    folder = exported("cut", said, export_size=50)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2
    assert f"{len(files)} files" in said[0]
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert {path.name for path in files} == set(index["weight_map"].values())
    weights = load_file(whole / "model.safetensors")
    for path in files:
        part = load_file(path)
        assert {name for name, place in index["weight_map"].items() if place == path.name} == part.keys()
        assert sum(tensor.nbytes for tensor in part.values()) <= 50_000
        assert all(torch.equal(tensor, weights.pop(name)) for name, tensor in part.items())
    assert weights == {}
    one, many = (AutoModelForCausalLM.from_pretrained(place).state_dict() for place in (whole, folder))
    assert all(torch.equal(one[name], many[name]) for name in one)
