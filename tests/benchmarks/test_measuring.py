"""Blocks in turn, kept in a file that a later call goes on from."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from benchmarks.compare import measuring
from benchmarks.compare.blocks import BlockError, Blocks
from benchmarks.compare.measuring import measure

STILL = {"gflops": 100.0, "gbytes": 10.0}
SPEC = {"threads": 1, "steps": 2}


@pytest.fixture
def run(row, answer, tmp_path):
    """Measure with blocks that take 4 s there and 2 s here; what was done, in turn."""
    done = []

    def make(wanted, *, calibrations=None, code="one", spec=SPEC, name="tuned", fails_at=None):
        done.clear()
        given = iter(calibrations or [])

        def block(side):
            done.append(side.variant)
            if len(done) == fails_at:
                raise BlockError("out of luck")
            return answer(4.0 if side.variant == "tuned" else 2.0)

        def calibrate():
            done.append("calibrate")
            return next(given, STILL)

        found = measure(
            row(name), spec, wanted, tmp_path / "sft.json", block, calibrate, code=code, say=lambda sentence: None
        )
        return found, list(done)

    make.done = done
    return make


def test_sides_take_turns_with_a_calibration_around_each(run) -> None:
    found, done = run(2)
    turn = ["tuned", "calibrate", "ours", "calibrate"]
    assert done == ["calibrate", *turn, *turn]
    assert [pair["peer"]["seconds"] for pair in found["pairs"]] == [4.0, 4.0]
    assert [len(pair["calibrations"]) for pair in found["pairs"]] == [3, 3]
    assert found["summary"]["wall"]["value"] == 2


def test_a_pair_during_which_the_machine_moved_is_replaced_and_reported(run) -> None:
    slower = {**STILL, "gflops": 80.0}
    found, done = run(2, calibrations=[STILL, STILL, slower])  # the second pair begins while it is slower, too
    assert done.count("ours") == 4
    assert [pair["drift"] > 0.1 for pair in found["pairs"]] == [True, True, False, False]
    assert (found["summary"]["pairs"], found["summary"]["discarded"]) == (2, 2)


def test_a_restless_machine_is_given_up_on(run) -> None:
    found, done = run(2, calibrations=[{**STILL, "gflops": 100.0 * 2**i} for i in range(20)])
    assert done.count("ours") == measuring.ATTEMPTS * 2
    assert found["summary"] == {"pairs": 0, "discarded": 4}


def test_a_later_call_adds_what_is_missing(run) -> None:
    run(1)
    found, done = run(3)
    assert done.count("tuned") == 2
    assert len(found["pairs"]) == 3
    found, done = run(3)
    assert done == []
    assert len(found["pairs"]) == 3


def test_what_an_interrupted_call_measured_is_kept(run) -> None:
    with pytest.raises(BlockError):
        run(3, fails_at=8)  # the second pair's own side
    found, done = run(3)
    assert done.count("tuned") == 2
    assert len(found["pairs"]) == 3


@pytest.mark.parametrize("change", [{"code": "two"}, {"spec": {**SPEC, "steps": 3}}])
def test_pairs_of_other_code_or_settings_are_replaced(run, change) -> None:
    run(2)
    found, done = run(1, **change)
    assert done.count("tuned") == 1
    assert len(found["pairs"]) == 1


def test_pairs_of_another_machine_are_replaced(run, monkeypatch) -> None:
    run(2)
    monkeypatch.setattr(measuring, "machine", lambda: {"processor": "abacus"})
    found, _ = run(1)
    assert len(found["pairs"]) == 1
    assert found["machine"] == {"processor": "abacus"}


def test_rows_of_one_stage_share_a_file(run, tmp_path) -> None:
    run(1)
    run(2, name="default")
    stored = json.loads((tmp_path / "sft.json").read_text("utf-8"))
    assert {name: len(entry["pairs"]) for name, entry in stored["rows"].items()} == {"tuned": 1, "default": 2}
    assert not list(tmp_path.glob("*.partial"))


def test_the_fingerprint_is_of_the_package_and_the_sides(monkeypatch, tmp_path) -> None:
    for name in ("src/posttrain/a.py", "benchmarks/compare/sides/b.py", "benchmarks/compare/table.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1", encoding="utf-8")
    monkeypatch.setattr(measuring, "ROOT", tmp_path)
    first = measuring.code_fingerprint()
    (tmp_path / "benchmarks/compare/table.py").write_text("2", encoding="utf-8")
    assert measuring.code_fingerprint() == first
    (tmp_path / "benchmarks/compare/sides/b.py").write_text("2", encoding="utf-8")
    assert measuring.code_fingerprint() != first


@pytest.fixture
def blocks(scripts, journal, answer, tmp_path):
    def make(**answers):
        spec = {
            "threads": 1,
            "journal": str(journal.path),
            "answers": {"tuned": answer(4), "ours": answer(2), **answers},
        }
        return Blocks(spec, lambda environment: Path(sys.executable), tmp_path, scripts=scripts)

    return make


def test_a_block_is_a_process_that_reads_a_spec_and_writes_a_result(blocks, row, answer) -> None:
    assert blocks()(row().ours) == answer(2)


def test_every_block_finds_an_empty_cache(blocks, row, journal) -> None:
    run = blocks()
    run(row().ours)
    run(row().ours)
    homes = [home for _, home in journal()]
    assert len(set(homes)) == 2
    assert not any(Path(home).exists() for home in homes)


def test_a_side_that_keeps_its_cache_runs_once_to_fill_it(blocks, row, journal) -> None:
    run = blocks()
    run(row(keeps_cache=True).ours)
    assert len(journal()) == 2
    run(row(keeps_cache=True).ours)
    assert len(journal()) == 3
    assert len({home for _, home in journal()}) == 1


def test_a_side_that_fails_says_how(blocks, row) -> None:
    with pytest.raises(BlockError, match=r"fake.py \(ours\) ended with status 1:\nout of luck"):
        blocks(ours={"fails": True})(row().ours)


def test_a_side_that_measured_nothing_is_refused(blocks, row, answer) -> None:
    with pytest.raises(BlockError, match="measured nothing"):
        blocks(ours=answer(2, live_tokens=0))(row().ours)
    with pytest.raises(BlockError, match="first_loss"):
        blocks(ours={name: value for name, value in answer(2).items() if name != "first_loss"})(row().ours)
