"""``posttrain config check``: what a file will do, where each value came from, and what would stop it."""

import json

import pytest

from posttrain.cli import main


@pytest.fixture
def checked(capsys):
    """(status, what was printed, what was said) of a check."""

    def check(*arguments):
        capsys.readouterr()
        status = main(["config", "check", *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return check


def facts(checked, *arguments, status=0):
    found, out, _ = checked(*arguments, "--json")
    assert found == status
    return json.loads(out)


def test_values_say_where_they_come_from(checked, work):
    found = facts(checked, work(lora_rank=4, seed=7), "lora_dropout=0.1", "--keys-only")
    assert found["command"] == "train"
    assert found["set"]["lora_dropout"] == {"value": 0.1, "source": "command line"}
    assert found["set"]["lora_rank"]["source"].startswith("sft.yaml, line ")
    assert found["derived"]["lora_alpha"] == {"value": 8, "source": "derived"}
    assert found["derived"]["data_seed"] == {"value": 7, "source": "derived"}
    assert "learning_rate" not in {**found["set"], **found["derived"]}


def test_defaults_of_a_stage_are_named_as_such(checked, work):
    found = facts(checked, work(stage="grpo", reward_funcs="exact_match"), "--keys-only")
    assert found["derived"]["num_return_sequences"] == {"value": 8, "source": "default of the stage"}
    assert found["derived"]["kl_coef"]["value"] == 0.04


def test_steps_are_those_of_the_run(checked, work, tmp_path):
    name = work(max_steps=None, num_train_epochs=3, gradient_accumulation_steps=2, warmup_ratio=0.2, save_steps=2)
    found = facts(checked, name, "save_total_limit=2")
    # 8 rows in micro-batches of 2, two at a time: 2 steps an epoch, 6 in all, a fifth of them rising
    assert found["rows"] == 8
    assert found["steps"] == {"total": 6, "per_epoch": 2, "warmup": 2, "rows_per_step": 4, "optimizer_steps": 6}
    assert found["disk"]["checkpoints"] == 2
    assert not (tmp_path / "run").exists()
    assert main(["train", name]) == 0
    results = json.loads((tmp_path / "run" / "train_results.json").read_text("utf-8"))
    assert results["total_steps"] == found["steps"]["total"]
    assert results["train_tokens"] == 3 * found["tokens"]


def test_an_online_stage_counts_iterations_and_completions(checked, work):
    name = work(stage="ppo", reward_funcs="exact_match", max_steps=None, num_train_epochs=1, ppo_buffer_size=2)
    found = facts(checked, name, "max_new_tokens=9", "ppo_epochs=3")
    assert found["steps"]["rows_per_step"] == 4
    assert found["steps"]["total"] == 2
    assert found["steps"]["optimizer_steps"] == 2 * 2 * 3
    assert found["memory"]["kv_cache_bytes"] > 0
    assert found["memory"]["models"][0]["roles"] == ["actor", "reference", "critic"]


def test_the_page_for_readers(checked, work):
    status, out, err = checked(work(warmup_steps=0.5, dataloader_num_workers=2), "val_size=2")
    assert (status, err) == (0, "")
    for part in (
        "sft.yaml: posttrain train, stage sft",
        "Set\n",
        "Follows\n",
        "command line",
        "taken as a share of the run",
        "`dataloader_num_workers: 2` changes nothing",
        "read 6 rows, kept 6",
        "2 rows held out",
        "1, 3 an epoch",
        "Memory on ",
        "of them train",
        "a checkpoint",
    ):
        assert part in out, part


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({"dataset": "data/gone.json"}, "data/gone.json"),
        ({"model_name_or_path": "nowhere/at/all"}, "does not exist"),
        ({"template": "qwem"}, "qwem"),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": 9}, "freeze_trainable_layers is 9"),
    ],
)
def test_what_would_stop_the_run_is_said_after_what_is_known(checked, work, keys, part):
    status, out, err = checked(work(**keys))
    assert status == 2
    assert part in err
    assert err.count("posttrain: error: ") == 1
    assert "Set\n" in out


def test_what_data_and_model_lack_comes_in_one_message(checked, work):
    status, _, err = checked(work(dataset="data/gone.json", lora_target="nothing"))
    assert status == 2
    assert "gone.json" in err
    assert "lora_target names nothing" in err


@pytest.mark.parametrize(
    ("keys", "command"),
    [
        ({}, "train"),
        ({"export_dir": "merged", "dataset": None, "output_dir": None}, "export"),
        ({"dataset": None, "output_dir": None, "stage": None}, "chat"),
        ({"output_file": "o.jsonl", "output_dir": None}, "generate"),
        ({"task": "loss", "output_dir": None}, "eval"),
    ],
)
def test_the_command_goes_by_the_keys(checked, work, keys, command):
    assert facts(checked, work(**keys), "--keys-only")["command"] == command


def test_a_command_can_be_named(checked, work):
    status, _, err = checked(work(), "--for", "export")
    assert status == 2
    assert "`export_dir` is missing" in err


def test_a_pipeline_is_listed_stage_by_stage(checked, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (
        f"name: two\noutput_dir: runs\ndefaults:\n  model_name_or_path: {base}\nstages:\n"
        "  - name: sft\n    stage: sft\n    dataset: d.json\n    dataloader_num_workers: 3\n"
        "  - name: merged\n    stage: export\n    adapter_name_or_path: ${sft.output_dir}\n    export_dir: m\n"
    )
    (tmp_path / "p.yaml").write_text(text, encoding="utf-8")
    status, out, _ = checked("p.yaml")
    assert status == 0
    assert "p.yaml: posttrain run, 2 stages into runs" in out
    assert "merged: posttrain export" in out
    assert "sft: `dataloader_num_workers: 3` changes nothing" in out
    assert [stage["name"] for stage in facts(checked, "p.yaml")["stages"]] == ["sft", "merged"]


def test_a_set_up_of_another_program_becomes_a_file_that_checks(checked, work, base, tmp_path, capsys):
    work()
    flags = ["--model_name_or_path", str(base), "--dataset_name", "data/sft.json", "--use_peft", "--bf16", "false"]
    assert (
        main(["config", "convert", "--output", "new.yaml", "trl", "sft", *flags, "--packing", "--max_steps", "2"]) == 0
    )
    said = capsys.readouterr().err
    assert "not carried over: packing: true: stage sft computes rows without padding" in said
    assert "written to new.yaml" in said
    found = facts(checked, "new.yaml")
    assert found["set"]["lora_rank"]["value"] == 16
    assert found["steps"]["total"] == 2
    assert found["problems"] == []
    assert main(["config", "convert", "--output", "new.yaml", "trl", "sft", *flags]) == 2
    assert "new.yaml is there already" in capsys.readouterr().err


def test_a_set_up_that_lacks_its_dataset_is_written_and_named(checked, work, base, capsys):
    work()
    assert main(["config", "convert", "trl", "dpo", "--model_name_or_path", str(base)]) == 2
    captured = capsys.readouterr()
    assert "stage: dpo" in captured.out
    assert "what came out is not complete: `dataset` is missing" in captured.err
