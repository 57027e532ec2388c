"""Commands end to end on a tiny model, and every way a command can end."""

import argparse
import json
import signal
import subprocess
import sys

import pytest

import posttrain
from posttrain.cli import failures, main
from posttrain.cli.failures import explained
from posttrain.errors import RunError


def ending(error, command="train", **keys):
    def run(args):
        if error is not None:
            raise error
        return 0

    return explained(argparse.Namespace(run=run, command=command, **keys))


def test_a_training_run_prints_its_metrics(work, tmp_path, capsys):
    assert main(["train", work(val_size=2), "max_steps=2", "fp16=true"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == "***** train metrics *****"
    assert "***** eval metrics *****" in lines
    assert any(line.startswith("  train_runtime ") and " = 0:00:" in line for line in lines)
    assert any(line.strip().startswith("eval_loss ") for line in lines)
    assert len({line.index(" = ") for line in lines[1 : lines.index("***** eval metrics *****")]}) == 1
    assert "posttrain: " in captured.err
    assert json.loads((tmp_path / "run" / "all_results.json").read_text(encoding="utf-8"))["total_steps"] == 2


def test_from_training_to_a_merged_model_that_chats(work, tmp_path, capsys, monkeypatch):
    assert main(["train", work()]) == 0
    config = work("merge.yaml", adapter_name_or_path="run", export_dir="merged")
    capsys.readouterr()
    assert main(["export", config]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "merged")
    chat = work("chat.yaml", model_name_or_path="merged", max_new_tokens=4)
    monkeypatch.setattr(sys, "stdin", open_text(tmp_path, "hello\n/exit\n"))
    assert main(["chat", chat]) == 0
    assert capsys.readouterr().out.count("\n") >= 1
    assert main(["generate", chat, "output_file=out.jsonl", "do_sample=false"]) == 0
    assert "***** predict metrics *****" in capsys.readouterr().out
    assert len((tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()) == 8


def open_text(folder, text):
    path = folder / "stdin.txt"
    path.write_text(text, encoding="utf-8", newline="\n")
    return path.open(encoding="utf-8")


def test_evaluation_prints_a_table(work, capsys):
    assert main(["eval", work(output_dir=None)]) == 0
    output = capsys.readouterr().out
    assert "***** eval metrics *****" in output
    assert any(line.split()[:1] == ["loss"] for line in output.splitlines())


def test_variants_are_told_apart_line_by_line(work, capsys):
    assert main(["train", work()]) == 0
    capsys.readouterr()
    assert main(["eval", work("eval.yaml", output_dir=None, variants=["base", "tuned=run"])]) == 0
    assert any(
        line.startswith("tuned - base: loss ") and ", p " in line for line in capsys.readouterr().out.splitlines()
    )


def test_no_command_is_answered_with_the_help(capsys):
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "commands:" in captured.err


def test_arguments_that_argparse_refuses(capsys):
    for arguments in (["fly"], ["export"], ["data", "text2sql"], ["model", "fetch"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_failed_run_is_status_1(capsys):
    assert ending(RunError("loss is nan at step 3")) == 1
    assert capsys.readouterr().err == "posttrain: error: loss is nan at step 3\n"


def test_an_interruption_is_status_130_and_says_how_to_go_on(capsys, tmp_path):
    assert ending(KeyboardInterrupt()) == failures.INTERRUPTED == 130
    assert "interrupted." in capsys.readouterr().err
    (tmp_path / "checkpoint-4").mkdir()
    assert ending(KeyboardInterrupt(), output_dir=str(tmp_path)) == 130
    assert "continues" not in capsys.readouterr().err  # a checkpoint of the model only
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text("{}", encoding="utf-8")
    assert ending(KeyboardInterrupt(), output_dir=str(tmp_path)) == 130
    assert "continues from the newest checkpoint" in capsys.readouterr().err


def test_a_fault_of_our_own_leaves_its_traceback_in_a_file(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("POSTTRAIN_DEBUG", raising=False)
    assert ending(ZeroDivisionError("by nothing\nsecond line"), output_dir=str(tmp_path)) == 1
    message = capsys.readouterr().err
    assert "ZeroDivisionError: by nothing" in message
    assert "second line" not in message
    (file,) = tmp_path.iterdir()
    assert str(file) in message
    assert "Traceback (most recent call last)" in file.read_text(encoding="utf-8")


def test_debugging_shows_the_traceback(capsys, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_DEBUG", "1")
    assert ending(ZeroDivisionError("by nothing")) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_the_environment_names_versions_and_device(capsys):
    assert main(["env"]) == 0
    output = capsys.readouterr().out
    assert output.splitlines()[0].split() == ["posttrain", posttrain.__version__]
    for name in ("python", "torch", "transformers", "peft", "device", "threads"):
        assert f"\n{name} " in output
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"posttrain {posttrain.__version__}\n"


def test_models_are_listed_with_where_they_lie(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path))
    assert main(["model", "list"]) == 0
    assert "smollm2-135m-instruct" in capsys.readouterr().out
    folder = tmp_path / "models" / "smollm2-135m-instruct"
    folder.mkdir(parents=True)
    (folder / "source.json").write_text("{}", encoding="utf-8")
    assert main(["model", "fetch", "smollm2-135m-instruct"]) == 0
    assert capsys.readouterr().out.strip() == str(folder)


def test_text_to_sql_data_with_the_flags_of_its_generator(capsys, tmp_path):
    counts = [f"--num-{name}=3" for name in ("pretrain", "pretrain-heldout", "sft", "pairs", "prompts", "heldout")]
    arguments = ["--output", str(tmp_path / "t2s"), "--languages", "zh", "--num-tables=12", "--num-heldout-pairs=3"]
    assert main(["data", "text2sql", *arguments, *counts, "--seed=5"]) == 0
    manifest = json.loads((tmp_path / "t2s" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["seed"] == 5
    assert set(manifest["counts"].values()) == {3}
    assert "dataset_dir" in capsys.readouterr().err


def test_the_module_is_the_command_and_a_process_ends_as_it_should(work, tmp_path):
    (tmp_path / "bad.yaml").write_text("model_name_or_path: [\n", encoding="utf-8")
    command = [sys.executable, "-m", "posttrain"]
    done = subprocess.run(
        [*command, "train", "bad.yaml"], capture_output=True, text=True, encoding="utf-8", check=False, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith("posttrain: error: bad.yaml, line")
    assert "Traceback" not in done.stderr
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stdout) == (0, f"posttrain {posttrain.__version__}\n")


def test_termination_of_a_run_is_an_interruption(work, tmp_path, capsys, monkeypatch):
    """Outside the loop too, here while the data are read."""
    from posttrain.train import run

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(run, "load_dataset", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    assert main(["train", work()]) == 130
    assert "interrupted." in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_rows_are_shown_with_overrides_behind_options(work, capsys, monkeypatch):
    assert main(["data", "show", work(), "--rows", "2", "cutoff_len=40", "--ids", "val_size=3"]) == 0
    output = capsys.readouterr().out
    assert "cutoff_len 40" in output
    assert output.count("-- row ") == 2
    assert "5 training rows" in output
    assert "{+SELECT count(*)" in output
    assert "\x1b" not in output
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["data", "show", "sft.yaml"]) == 0
    assert "\x1b[" in capsys.readouterr().out
    for unwanted in ("--plain", None):
        if unwanted is None:
            monkeypatch.setenv("NO_COLOR", "1")
        assert main(["data", "show", "sft.yaml", *([unwanted] if unwanted else [])]) == 0
        assert "\x1b" not in capsys.readouterr().out


def test_showing_rows_needs_a_tokenizer_and_a_number(work, capsys):
    assert main(["data", "show", work(model_name_or_path=None)]) == 2
    assert "`model_name_or_path` is missing" in capsys.readouterr().err
    assert main(["data", "show", work(), "--rows", "0"]) == 2
    assert "--rows 0" in capsys.readouterr().err


def test_checking_data_ends_with_2_where_a_run_would_stop(work, tmp_path, capsys):
    assert main(["data", "check", "data/sft.json"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 errors, 0 warnings, 4 ok"
    assert main(["data", "check", "data/sft.json", "data/pairs.json", "--json", "stage=sft"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [table["rows"] for table in found["datasets"]] == [8, 4]
    assert found["lengths"]["unit"] == "characters"
    (tmp_path / "data" / "sft.json").write_text('[{"instruction": "q", "output": 1}]', encoding="utf-8")
    assert main(["data", "check", work(), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert {"level": "error", "check": "schema"}.items() <= found["findings"][0].items()
    assert main(["data", "check", "data/none.json"]) == 2
    assert "no such file" in capsys.readouterr().out
