"""``posttrain doctor`` from the command line: what is printed, and with which status it ends."""

import json
import sys

from posttrain.cli import main


def test_a_sound_run_ends_with_0(work, capsys, tmp_path):
    assert main(["doctor", work(max_steps=20, save_steps=5)]) == 0
    lines = capsys.readouterr().out.splitlines()
    checks = [line.split()[1].rstrip(":") for line in lines if line.startswith(("ok ", "warning ", "error "))]
    assert {"versions", "template", "labels", "learning", "memory", "disk", "step", "time"} <= set(checks)
    assert lines[-1].startswith("0 errors, ")
    assert any("{+SELECT count(*)" in line for line in lines)
    assert not (tmp_path / "run").exists()


def test_an_error_ends_with_2_and_says_what_to_do(work, capsys):
    assert main(["doctor", work(), "--fast", "dataset=data/none.json"]) == 2
    captured = capsys.readouterr()
    assert "error    rows: dataset 'data/none.json': no such file" in captured.out
    assert "Traceback" not in captured.err
    assert captured.out.splitlines()[-1].startswith("1 error, ")


def test_what_is_wrong_with_the_configuration_is_a_finding(work, capsys):
    assert main(["doctor", work(), "--fast", "learning_rat=1"]) == 2
    assert "error    configuration: " in capsys.readouterr().out
    assert main(["doctor", "none.yaml", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert "no such file" in found["findings"][0]["message"]


def test_json_holds_what_the_lines_say(work, capsys):
    assert main(["doctor", work(), "--fast", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    disk = next(finding for finding in found["findings"] if finding["check"] == "disk")
    assert disk["needed_bytes"] > 0
    assert disk["free_bytes"] > disk["needed_bytes"]


def test_colours_are_for_terminals(work, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["doctor", work(), "--fast"]) == 0
    assert "\x1b[32mok" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["doctor", "sft.yaml", "--fast"]) == 0
    assert "\x1b" not in capsys.readouterr().out
