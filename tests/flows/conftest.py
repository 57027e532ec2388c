"""The soak's own program, made to run inside tests: the undisturbed run needs no process of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest

from posttrain.cli import main

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import soak_stages
from soak import Soak


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with the tiny model and the data of the soak."""
    root = tmp_path_factory.mktemp("soak")
    soak_stages.make_place(root, seed=1)
    return root


@pytest.fixture
def run_here(monkeypatch):
    """``posttrain train train.yaml`` in a folder, in this process; returns its exit status."""

    def run(folder, *overrides):
        monkeypatch.chdir(folder)
        return main(["train", "train.yaml", *overrides])

    return run


@pytest.fixture
def reward(place, run_here):
    """The run directory of a reward model."""
    folder = place / "rm-whole"
    if not (folder / "out" / "all_results.json").exists():
        soak_stages.write_configuration(folder, place, "rm", steps=6, seed=1)
        assert run_here(folder) == 0
    return folder / "out"


@pytest.fixture
def soak(place, run_here, monkeypatch):
    """A soak of one stage, its undisturbed run made already."""

    def make(stage, aims, **keys):
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        keys = {"plot_loss": False, "disable_tqdm": True, **keys}
        soak = Soak(place, stage, aims, seed=1, **keys)
        monkeypatch.setattr(soak, "run_whole", lambda: None)
        soak._configure(soak.whole)
        assert run_here(soak.whole) == 0
        results = json.loads((soak.whole / "out" / "all_results.json").read_text(encoding="utf-8"))
        soak.clock = dataclasses.replace(soak.clock, training=results["train_runtime"])
        os.chdir(place)
        return soak

    return make
