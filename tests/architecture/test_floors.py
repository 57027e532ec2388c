"""A room imports only from floors below it, and each heavy library has its rooms."""

import ast
import configparser
import logging

import pytest
from importlinter.cli import lint_imports

# Library -> who may import it, by path from src/posttrain. A library that is not here is free.
ALLOWED = {
    "accelerate": ("engine/",),
    "torch.distributed": ("engine/",),
    "vllm": ("rollout/vllm.py",),
    "peft": ("models/",),
    "transformers": ("models/", "data/"),
    "huggingface_hub": ("models/", "data/hub.py"),
    "gguf": ("models/",),
    "bitsandbytes": ("models/", "engine/"),
    "matplotlib": ("train/", "pipeline/", "evaluate/"),
    "tensorboard": ("train/",),
    "torch.utils.tensorboard": ("train/",),
    "tqdm": ("train/", "models/"),
    "yaml": ("config/", "train/", "pipeline/", "cli/", "data/"),
    "sqlglot": ("data/text2sql/", "rewards/sql/"),
    "sqlite3": ("data/text2sql/", "evaluate/", "rewards/"),
    "psycopg": ("rewards/sql/postgres.py",),
    "sqlalchemy": ("rewards/sql/places.py",),
    "datasets": ("data/hub.py",),
    "modelscope": ("data/hub.py",),
    "pyarrow": ("data/columnar.py",),
    "zstandard": ("data/files.py",),
    "pandas": (),
    "numpy": (),
    "trl": (),
    "wandb": ("train/trackers.py",),
    "swanlab": ("train/trackers.py",),
    "mlflow": ("train/trackers.py",),
    "requests": (),
    "sacrebleu": ("evaluate/text_scores.py",),
    "rouge_score": ("evaluate/text_scores.py",),
    "jieba": ("evaluate/text_scores.py",),
    "lm_eval": ("evaluate/lm_harness.py",),
    "fastapi": ("serve/server/",),
    "starlette": ("serve/server/",),
    "uvicorn": ("serve/server/",),
    "pydantic": ("serve/server/",),
}
# Names for annotations, free in every room that is handed such an object.
TYPES = ("transformers.PreTrainedModel", "transformers.PreTrainedTokenizerBase")
FRONT_DOOR = ("posttrain.ChatModel", "posttrain.Response", "posttrain.export_model", "posttrain.run_exp")
TORCH_FREE = ("config/", "cli/", "errors.py", "__init__.py")


def is_part_of(name, library):
    return name == library or name.startswith(library + ".")


def test_the_floors_hold(root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    loggers = [logger for logger in logging.Logger.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    status = lint_imports(config_filename=str(root / ".importlinter"), no_cache=True)
    for logger in loggers:  # it configures logging anew and silences those that exist
        logger.disabled = False
    assert status == 0, capsys.readouterr().out


def test_every_room_has_its_floor(root):
    config = configparser.ConfigParser()
    config.read(root / ".importlinter", encoding="utf-8")
    contract = config["importlinter:contract:floors"]
    assert contract.getboolean("exhaustive")
    floors = [[room.strip() for room in line.split("|")] for line in contract["layers"].split("\n") if line]
    entries = (root / "src" / "posttrain").iterdir()
    rooms = {entry.stem for entry in entries if entry.suffix == ".py" or (entry / "__init__.py").is_file()}
    assert sorted(room for floor in floors for room in floor) == sorted(rooms - {"__init__", "__main__"})
    assert floors[-1] == ["errors", "types"]


@pytest.mark.parametrize("library", ALLOWED)
def test_a_heavy_library_stays_in_its_rooms(package_files, library):
    strangers = [
        f"{file.path}:{line} imports {name}"
        for file in package_files
        for line, name in file.imports()
        if is_part_of(name, library) and name not in TYPES
        if not file.path.removeprefix("src/posttrain/").startswith(ALLOWED[library])
    ]
    assert strangers == []


def test_functional_knows_torch_and_itself_only(package_files):
    known = ("torch", "posttrain.functional", "__future__", "typing", "collections", "functools", "math", "dataclasses")
    strangers = [
        f"{file.path}:{line} imports {name}"
        for file in package_files
        if file.room == "functional"
        for line, name in file.imports()
        if not any(is_part_of(name, library) for library in known)
    ]
    assert strangers == []


def test_the_light_rooms_never_import_torch_at_the_top(package_files):
    strangers = []
    for file in package_files:
        if not file.path.removeprefix("src/posttrain/").startswith(TORCH_FREE):
            continue
        top = [node.lineno for node in file.tree.body]
        strangers += [f"{file.path}:{n}" for n, name in file.imports() if is_part_of(name, "torch") and n in top]
    assert strangers == []


def test_rooms_import_each_other_by_full_name_and_never_through_the_front_door(package_files):
    strangers = []
    for file in package_files:
        imports = [(line, name) for line, name in file.imports() if name.startswith(".") or name in FRONT_DOOR]
        uses = [node for node in ast.walk(file.tree) if isinstance(node, ast.Attribute)]
        imports += [(node.lineno, ast.unparse(node)) for node in uses if ast.unparse(node) in FRONT_DOOR]
        strangers += [f"{file.path}:{line} {name}" for line, name in imports]
    assert strangers == []
