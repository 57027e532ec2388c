import json
import shutil
from pathlib import Path

import pytest

from posttrain.config import load_config


@pytest.fixture(scope="session")
def sql_data(tmp_path_factory):
    """A small generated text-to-SQL data set with its databases."""
    from posttrain.data.text2sql import generate

    folder = tmp_path_factory.mktemp("text2sql")
    generate(
        folder,
        num_tables=10,
        num_pretrain=4,
        num_pretrain_heldout=4,
        num_sft=4,
        num_pairs=4,
        num_heldout_pairs=4,
        num_prompts=4,
        num_heldout=6,
    )
    return folder


@pytest.fixture(scope="session")
def eval_config(tiny_llama, tiny_data):
    """The resolved configuration of an evaluation of the tiny model; keywords are keys of the YAML file."""

    def make(**keys):
        values = {"model_name_or_path": str(tiny_llama), "eval_dataset": str(tiny_data / "chat.json"), "seed": 1}
        return load_config({**values, **keys}, command="eval")

    return make


@pytest.fixture(scope="session")
def ppo_folder(trained, tmp_path_factory):
    """An adapter on ``pt`` whose lineage says that PPO made it."""
    folder = tmp_path_factory.mktemp("ppo") / "ppo"
    shutil.copytree(trained / "sft_on_pt", folder)
    lineage = json.loads((folder / "lineage.json").read_text(encoding="utf-8"))
    (folder / "lineage.json").write_text(json.dumps({**lineage, "stage": "ppo"}), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def fluent(tiny_config, tmp_path_factory):
    """An adapter on the tiny model that knows the answers of chat.json by heart."""
    from posttrain.train.run import train

    folder = tmp_path_factory.mktemp("fluent") / "sft"
    keys = {"num_train_epochs": 60, "learning_rate": 1e-2, "lora_rank": 16, "save_strategy": "no", "logging_steps": 60}
    train(tiny_config("sft", folder, **keys))
    return folder


@pytest.fixture(scope="session")
def shared():
    """The folder of public data sets beside the repository."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no public data sets beside the repository")
    return folder
