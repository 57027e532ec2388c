import json
import sys

import pytest
import yaml

from posttrain.errors import RunError, UserError
from posttrain.pipeline import run as room
from posttrain.pipeline.run import run_pipeline

# Stands for `posttrain`: notes how it was called, behaves as told, and leaves what a run leaves.
PROGRAM = """
import json, os, pathlib, signal, sys, yaml
notes = pathlib.Path(sys.argv[1])
command, config, overrides = sys.argv[2], yaml.safe_load(open(sys.argv[3], encoding="utf-8")), sys.argv[4:]
folder = pathlib.Path(config["output_dir"])
told = json.loads((notes / "told.json").read_text(encoding="utf-8"))
with open(notes / "calls.jsonl", "a", encoding="utf-8") as file:
    file.write(json.dumps([folder.name, command, overrides]) + "\\n")
status = told.get(folder.name, 0)
if status == 2:
    sys.exit(2)
folder.mkdir(parents=True, exist_ok=True)
if command == "train":
    results, train_config = folder / "all_results.json", folder / "config.yaml"
    if "overwrite_output_dir=true" in overrides:
        results.unlink(missing_ok=True)
    train_config.write_text("begun", encoding="utf-8")
    if status < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if status:
        sys.exit(status)
    results.write_text(json.dumps({"stopped_at_step": 2}), encoding="utf-8")
elif command == "export":
    (folder / "config.json").write_text("{}", encoding="utf-8")
elif command == "label" and not status:
    (folder / "preference_pairs.jsonl").write_text("{}", encoding="utf-8")
else:
    (folder / "eval_results.json").write_text(json.dumps({"task": "loss", "variants": {}}), encoding="utf-8")
sys.exit(status)
"""
PIPELINE = """
output_dir: OUT
defaults:
  model_name_or_path: nothing
  learning_rate: 1.0e-4
stages:
  - {name: pt, stage: pt, dataset: text.txt}
  - {name: sft, stage: sft, dataset: chat.json, adapter_name_or_path: "${pt.output_dir}"}
  - {name: other, stage: sft, dataset: chat.json}
  - {name: merged, stage: export, adapter_name_or_path: "${sft.output_dir}"}
  - {name: score, stage: evaluate, variants: ["base", "sft=${sft.output_dir}"], eval_dataset: chat.json}
"""


class Bench:
    """A pipeline whose stages are played by a script."""

    def __init__(self, folder):
        self.folder, self.out, self.path = folder, folder / "out", folder / "pipeline.yaml"
        self.path.write_text(PIPELINE.replace("OUT", self.out.as_posix()), encoding="utf-8")
        self.said = []
        self.tell()

    def tell(self, **statuses):
        (self.folder / "told.json").write_text(json.dumps(statuses), encoding="utf-8")

    def run(self, *overrides):
        calls = self.folder / "calls.jsonl"
        calls.write_text("", encoding="utf-8")
        self.said.clear()
        try:
            return run_pipeline(self.path, overrides, self.said.append)
        finally:
            lines = calls.read_text(encoding="utf-8").splitlines()
            self.calls = {name: (command, extra) for name, command, extra in map(json.loads, lines)}


@pytest.fixture
def bench(tmp_path, monkeypatch):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    monkeypatch.setattr(room, "PROGRAM", (sys.executable, str(program), str(tmp_path)))
    return Bench(tmp_path)


AGAIN = ["overwrite_output_dir=true", "resume_from_checkpoint=false"]
CONTINUED = ["resume_from_checkpoint=true"]


def test_every_stage_runs_once_in_order(bench):
    report = bench.run()
    assert report == bench.out / "report.md"
    assert list(bench.calls) == ["pt", "sft", "other", "merged", "score"]
    assert bench.calls["sft"] == ("train", [])
    assert [bench.calls[name][0] for name in ("merged", "score")] == ["export", "eval"]
    assert bench.said[0] == f"[1/5] pt · {bench.out.as_posix()}/pt"
    written = yaml.safe_load((bench.out / "configs" / "sft.yaml").read_text(encoding="utf-8"))
    assert written["adapter_name_or_path"] == [f"{bench.out.as_posix()}/pt"]
    state = json.loads((bench.out / "pipeline_state.json").read_text(encoding="utf-8"))["records"]
    assert all(record["finished"] and record["seconds"] > 0 for record in state.values())
    assert all(record["peak_memory_bytes"] > 1_000_000 for record in state.values())
    bench.run()
    assert bench.calls == {}
    assert bench.said[0].endswith("done already")


def test_a_changed_stage_runs_again_with_all_that_was_made_from_it(bench):
    bench.run()
    bench.run("sft.learning_rate=2e-4")
    assert bench.calls["sft"] == ("train", AGAIN)
    assert bench.calls["merged"] == ("export", ["overwrite_output_dir=true"])
    assert list(bench.calls) == ["sft", "merged", "score"]
    assert "again" in bench.said[1]
    bench.run("sft.learning_rate=2e-4")
    assert bench.calls == {}
    bench.run("pt.max_steps=3", "sft.learning_rate=2e-4")
    assert list(bench.calls) == ["pt", "sft", "merged", "score"]


def test_a_changed_data_file_reaches_its_readers(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("one", encoding="utf-8")
    (tmp_path / "chat.json").write_text("[]", encoding="utf-8")
    bench.run()
    bench.run()
    assert bench.calls == {}
    (tmp_path / "chat.json").write_text("[1]", encoding="utf-8")
    bench.run()
    assert list(bench.calls) == ["sft", "other", "merged", "score"]
    assert bench.calls["sft"] == ("train", AGAIN)


def test_another_version_of_ours_runs_everything_again(bench, monkeypatch):
    bench.run()
    monkeypatch.setattr("posttrain.__version__", "0.0.0")
    bench.run()
    assert list(bench.calls) == ["pt", "sft", "other", "merged", "score"]


def test_two_preparations_of_one_generator_are_two(bench, tmp_path):
    small = "num_tables: 10, num_pretrain: 2, num_pretrain_heldout: 2, num_sft: 2, num_pairs: 2, num_heldout_pairs: 2"
    each = "{generator: text2sql, num_heldout: 2, num_prompts: 2, " + small
    text = f"""
output_dir: {bench.out.as_posix()}
prepare:
  - {each}, output: {bench.out.as_posix()}/a}}
  - {each}, output: {bench.out.as_posix()}/b, seed: 7}}
stages:
  - {{name: one, stage: sft, model_name_or_path: x, dataset: text2sql_sft, dataset_dir: {bench.out.as_posix()}/a}}
  - {{name: two, stage: sft, model_name_or_path: x, dataset: text2sql_sft, dataset_dir: {bench.out.as_posix()}/b}}
"""
    bench.path.write_text(text, encoding="utf-8")
    bench.run()
    bench.run()
    assert [line.endswith(("there already", "done already")) for line in bench.said[:4]] == [True] * 4
    assert bench.calls == {}


def test_labels_are_made_once_continued_by_themselves_and_begun_anew_for_another_model(bench):
    text = PIPELINE.replace("OUT", bench.out.as_posix()).partition("  - {name: other")[0] + (
        '  - {name: pairs, stage: label, dataset: chat.json, adapter_name_or_path: "${sft.output_dir}", judge: j}\n'
        '  - {name: rm, stage: rm, dataset: "${pairs.output_dir}/preference_pairs.jsonl"}\n'
    )
    bench.path.write_text(text, encoding="utf-8")
    bench.tell(pairs=1)
    with pytest.raises(RunError, match="stage pairs failed"):
        bench.run()
    bench.tell()
    bench.run()
    assert bench.calls == {"pairs": ("label", []), "rm": ("train", [])}
    bench.run()
    assert bench.calls == {}
    bench.run("sft.learning_rate=2e-4")
    assert bench.calls["pairs"] == ("label", ["overwrite_output_dir=true"])
    assert list(bench.calls) == ["sft", "pairs", "rm"]


def test_how_a_run_is_shown_is_no_change(bench):
    bench.run()
    bench.run("disable_tqdm=true", "report_to=none")
    assert bench.calls == {}


def test_results_that_are_gone_are_made_again(bench):
    bench.run()
    (bench.out / "sft" / "all_results.json").unlink()
    bench.run()
    assert list(bench.calls) == ["sft", "merged", "score"]
    assert bench.calls["sft"][1] == AGAIN


def test_an_interrupted_stage_continues(bench):
    bench.tell(sft=130)
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    assert list(bench.calls) == ["pt", "sft"]
    assert "continues with it" in bench.said[-1]
    bench.tell()
    bench.run()
    assert bench.calls["sft"] == ("train", CONTINUED)
    assert list(bench.calls) == ["sft", "other", "merged", "score"]
    assert "continued" in bench.said[1]


def test_an_interrupted_stage_that_was_changed_starts_afresh(bench):
    bench.tell(sft=130)
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    bench.tell()
    bench.run("sft.learning_rate=2e-4")
    assert bench.calls["sft"] == ("train", AGAIN)


def test_a_refused_change_never_passes_the_old_result_off_as_new(bench):
    bench.run()
    bench.tell(sft=2)
    with pytest.raises(UserError, match="stage sft was refused"):
        bench.run("sft.learning_rate=2e-4")
    assert (bench.out / "sft" / "all_results.json").exists()
    bench.tell()
    bench.run("sft.learning_rate=2e-4")
    assert bench.calls["sft"] == ("train", AGAIN)


def test_what_the_pipeline_did_not_write_is_never_overwritten(bench):
    (bench.out / "pt").mkdir(parents=True)
    (bench.out / "pt" / "config.yaml").write_text("mine", encoding="utf-8")
    bench.tell(pt=2)
    for _ in range(2):
        with pytest.raises(UserError):
            bench.run()
        assert bench.calls["pt"] == ("train", [])
        with pytest.raises(UserError):
            bench.run("pt.learning_rate=3e-4")
        assert bench.calls["pt"] == ("train", [])


def test_a_failed_stage_is_named_and_ends_the_pipeline(bench):
    bench.tell(sft=1)
    with pytest.raises(RunError, match=r"stage sft failed.*posttrain run .*continues with this stage"):
        bench.run()
    assert list(bench.calls) == ["pt", "sft"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_killed_stage_says_so(bench):
    bench.tell(pt=-9)
    with pytest.raises(RunError, match=r"signal 9 .*memory ran out"):
        bench.run()
    bench.tell()
    bench.run()
    assert bench.calls["pt"] == ("train", CONTINUED)


def test_the_time_left_is_judged_by_the_last_time(bench):
    bench.run()
    bench.run("pt.max_steps=3")
    assert "left, judging by the last time" in bench.said[0]


def test_an_output_folder_that_cannot_be_is_one_clear_message(bench):
    bench.out.write_text("a file", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be written to"):
        bench.run()


def test_data_are_made_once_and_a_change_reaches_their_readers(bench, tmp_path):
    small = "num_tables: 10, num_pretrain: 2, num_pretrain_heldout: 2, num_sft: 2, num_pairs: 2, num_heldout_pairs: 2"
    text = f"""
output_dir: {bench.out.as_posix()}
prepare:
  - {{generator: text2sql, num_heldout: 2, num_prompts: 2, {small}}}
stages:
  - {{name: sft, stage: sft, model_name_or_path: x, dataset: text2sql_sft,
      dataset_dir: "${{prepare.text2sql.output}}"}}
  - {{name: other, stage: sft, model_name_or_path: x, dataset: chat.json}}
"""
    bench.path.write_text(text, encoding="utf-8")
    bench.run()
    assert (bench.out / "data" / "manifest.json").is_file()
    assert list(bench.calls) == ["sft", "other"]
    bench.run()
    assert bench.calls == {}
    assert bench.said[0].endswith("there already")
    # made again with the same content: nothing that reads it changes
    (bench.out / "data" / "sft.json").unlink()
    bench.run()
    assert bench.calls == {}
    bench.run("prepare.text2sql.num_sft=3")
    assert list(bench.calls) == ["sft"]
    with pytest.raises(UserError, match="did you mean `num_sft`"):
        bench.run("prepare.text2sql.num_stf=3")
    assert bench.calls == {}
