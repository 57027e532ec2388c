"""docs/new-algorithm.md, done as it says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from posttrain.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "new-algorithm.md"


def blocks():
    """(language, text) of every code block of the page."""
    return re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


@pytest.fixture
def folder(tmp_path, tiny_llama, tiny_data, monkeypatch):
    """A folder with the files of the page, the tiny model under the name that it uses, and prompts."""
    found = dict(blocks())
    (tmp_path / "median.py").write_text(found["python"], encoding="utf-8")
    yaml = found["yaml"].replace("smollm2-135m-instruct", tiny_llama.as_posix())
    (tmp_path / "median.yaml").write_text(yaml, encoding="utf-8")
    shutil.copy(tiny_data / "prompts.json", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_works(folder) -> None:
    command = dict(blocks())["bash"].split()
    assert command[0] == "posttrain"
    assert main(command[1:]) == 0
    results = json.loads((folder / "runs/median/all_results.json").read_text("utf-8"))
    assert results["total_steps"] == 3


def test_it_costs_less_than_sixty_lines() -> None:
    assert len(dict(blocks())["python"].splitlines()) < 60


def test_the_median_is_what_it_says(folder) -> None:
    from posttrain.config.own_code import load_own
    from posttrain.types import RolloutBatch

    kind = load_own(Path("median.py"), "MedianBaseline", key="algorithm", kind="class")
    mask = torch.tensor([[False, True]] * 5)
    zeros = torch.zeros(5, 2)
    # median 2; distances -2, -1, 0, 1, 7, of mean size 11 / 5
    batch = RolloutBatch(
        input_ids=torch.zeros(5, 2, dtype=torch.long),
        attention_mask=torch.ones(5, 2, dtype=torch.bool),
        loss_mask=mask,
        logprobs=zeros,
        ended=torch.ones(5, dtype=torch.bool),
        ref_logprobs=zeros,
        rewards=torch.tensor([0.0, 1.0, 2.0, 3.0, 9.0]),
    )
    algorithm = kind(kl_coef=0.0)
    credited, _ = algorithm.credit(batch, algorithm.initial_state())
    expected = [d / 2.2001 for d in (-2, -1, 0, 1, 7)]
    assert credited.advantages[:, 1].tolist() == pytest.approx(expected, rel=1e-5)
    assert not credited.advantages[:, 0].any()


@pytest.mark.parametrize(
    ("algorithm", "part"),
    [
        ("median", "write path/to/file.py:Class"),
        ("nowhere.py:Median", "there is no file nowhere.py"),
        ("median.py:MedianBaselin", "did you mean MedianBaseline?"),
        ("plain.py:Plain", "lacks trains, consults"),
    ],
)
def test_what_is_no_algorithm_is_refused(folder, capsys, algorithm, part) -> None:
    (folder / "plain.py").write_text("class Plain:\n    pass\n", encoding="utf-8")
    assert main(["train", "median.yaml", f"algorithm={algorithm}"]) == 2
    said = capsys.readouterr().err
    assert part in said
    assert "Traceback" not in said
