"""Pipeline files: order of precedence, references, and messages that name the stage."""

import pytest

from posttrain.config import load_config, load_pipeline
from posttrain.errors import UserError

PIPELINE = """\
name: demo
output_dir: runs/demo
prepare:
  - generator: text2sql
    output: ${output_dir}/sql
    seed: 3
    num_tables: 40
defaults:
  model_name_or_path: smollm2-135m-instruct
  dataset_dir: ${prepare.text2sql.output}
  kl_coef: 0.1
  lora_rank: 16
stages:
  - name: sft
    config: sft.yaml
    dataset: train_sft
  - name: rm
    stage: rm
    dataset: pairs
    adapter_name_or_path: ["${sft.output_dir}"]
  - name: ppo
    stage: ppo
    dataset: prompts
    reward_model: ${rm.output_dir}
    lora_rank: ${sft.lora_rank}
  - name: merged
    stage: export
    adapter_name_or_path: ${sft.output_dir},${ppo.output_dir}
  - name: score
    stage: evaluate
    task: sql
    model_name_or_path: ${merged.output_dir}
    database_dir: ${prepare.text2sql.output}/db
"""

SFT = "stage: sft\nlearning_rate: 1e-4\nlora_rank: 4\nevaluation_strategy: no\n"


@pytest.fixture
def load(tmp_path):
    (tmp_path / "sft.yaml").write_text(SFT, encoding="utf-8")

    def read(old="", new="", overrides=()):
        assert old in PIPELINE
        path = tmp_path / "pipeline.yaml"
        path.write_text(PIPELINE.replace(old, new) if old else PIPELINE, encoding="utf-8")
        return load_pipeline(path, overrides)

    return read


def test_stages_keep_their_order_and_know_earlier_outputs(load):
    pipeline = load()
    assert (pipeline.name, pipeline.output_dir) == ("demo", "runs/demo")
    assert [(stage.name, stage.kind, stage.command) for stage in pipeline.stages] == [
        ("sft", "sft", "train"),
        ("rm", "rm", "train"),
        ("ppo", "ppo", "train"),
        ("merged", "export", "export"),
        ("score", "evaluate", "eval"),
    ]
    sft, rm, ppo, merged, score = (stage.values for stage in pipeline.stages)
    assert sft["output_dir"] == "runs/demo/sft"
    assert rm["adapter_name_or_path"] == ["runs/demo/sft"]
    assert ppo["reward_model"] == "runs/demo/rm"
    assert merged["adapter_name_or_path"] == ["runs/demo/sft", "runs/demo/ppo"]
    assert merged["export_dir"] == merged["output_dir"] == "runs/demo/merged"
    assert score["model_name_or_path"] == "runs/demo/merged"
    assert score["database_dir"] == "runs/demo/sql/db"
    assert "stage" not in score


def test_precedence_is_defaults_file_stage_override(load):
    values = {stage.name: stage.values for stage in load(overrides=["max_steps=2", "sft.learning_rate=3"]).stages}
    assert values["sft"]["lora_rank"] == 4
    assert values["rm"]["lora_rank"] == 16
    assert values["ppo"]["lora_rank"] == 4
    assert values["sft"]["learning_rate"] == 3.0
    assert values["rm"]["max_steps"] == 2
    assert "learning_rate" not in values["rm"]


def test_defaults_of_another_stage_are_left_out(load):
    pipeline = load()
    assert "kl_coef" not in pipeline.stages[0].values
    assert pipeline.stages[2].values["kl_coef"] == 0.1
    assert pipeline.warnings == ("stage sft: `evaluation_strategy` is called `eval_strategy` here and read as such.",)


def test_every_stage_loads_as_a_configuration(load):
    for stage in load().stages:
        config = load_config(stage.values, command=stage.command)
        assert config.warnings == ()
        assert config.model.model_name_or_path


def test_prepared_data(load):
    data = load(overrides=["prepare.text2sql.seed=9", "output_dir=b"]).prepare[0]
    assert (data.generator, data.output, data.seed) == ("text2sql", "b/sql", 9)
    assert data.options == {"num_tables": 40}
    assert load("    output: ${output_dir}/sql\n", "").prepare[0].output == "runs/demo/data"


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        (
            "${rm.output_dir}",
            "${rn.output_dir}",
            ["line 24", "stage ppo", "Did you mean ${rm.output_dir}?", "${sft.output_dir}"],
        ),
        (
            "${sft.output_dir}",
            "${ppo.output_dir}",
            ["stage rm refers to ${ppo.output_dir}, which nothing above it provides"],
        ),
        ("stage: ppo", "stage: pqo", ["`stage: pqo` of stage ppo", "did you mean ppo?"]),
        ("    stage: rm\n", "", ["stage rm has no `stage`"]),
        ("task: sql", "tsk: sql", ["stage score: ", "line 31", "did you mean `task`?"]),
        ("kl_coef: 0.1", "kl_cof: 0.1", ["line 11", "did you mean `kl_coef`?"]),
        ("defaults:", "default:", ["unknown key `default` in a pipeline", "did you mean `defaults`?"]),
        ("name: ppo", "name: rm", ["two stages called rm"]),
        ("name: ppo", "name: p.po", ["needs a `name`", "`p.po`"]),
        ("config: sft.yaml", "config: sf.yaml", ["`config` of stage sft", "sf.yaml: no such file"]),
        ("    reward_model: ${rm.output_dir}\n", "", ["stage ppo: ", "`reward_model` is missing"]),
        ("output_dir: runs/demo\n", "", ["`output_dir` is missing", "output_dir: runs/demo"]),
        ("generator: text2sql", "generater: text2sql", ["needs a `generator`"]),
        ("seed: 3", "seed: three", ["`seed` of generator text2sql must be a whole number"]),
    ],
)
def test_messages_name_the_stage_and_the_fix(load, old, new, parts):
    with pytest.raises(UserError) as caught:
        load(old, new)
    for part in parts:
        assert part in str(caught.value)


def test_an_override_for_no_stage(load):
    with pytest.raises(UserError, match=r"`foo\.x` names no stage; the stages are sft, rm, ppo, merged, score"):
        load(overrides=["foo.x=1"])


@pytest.mark.parametrize("text", ["output_dir: o\n", "output_dir: o\nstages: a\n", "output_dir: o\nstages: [a]\n"])
def test_stages_are_a_list_of_blocks(tmp_path, text):
    path = tmp_path / "p.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="stages"):
        load_pipeline(path)
