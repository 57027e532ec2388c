"""Uploads to the Hugging Face hub: asked about before anything slow begins, done when it has ended well."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.config import RunConfig
from posttrain.errors import RunError, UserError

CARD = "README.md"
# The model, what it is read with, and what was measured; never rows, samples or what resuming needs.
_UPLOADED = (
    *(CARD, "LICENSE*", "config.json", "generation_config.json", "adapter_config.json", "lineage.json", "config.yaml"),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"),
    *("value_head.safetensors", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("chat_template*", "spiece.model", "*_results.json", "trainer_log.jsonl", "training_*.png", "adapters/*"),
)
_MADE = "made with `posttrain`"
_SHOWN = ("eval_loss", "eval_perplexity", "eval_accuracy", "eval_reward", "train_loss")


@dataclass(frozen=True, kw_only=True)
class Upload:
    """Where a folder is going to be uploaded to.

    Attributes:
        repository: ``name`` or ``owner/name``. key: that asked for it. private, revision: see ``HubConfig``.
    """

    repository: str
    key: str
    private: bool | None = None
    revision: str | None = None


def planned_upload(config: RunConfig, folder: str | Path, *, export: bool = False) -> Upload | None:
    """The upload that the keys ask for, None where they ask for none.

    Args:
        config: with the keys of ``HubConfig``. folder: to be uploaded; its name is the repository's by default.
        export: whether it is an export, not a run.

    Raises:
        UserError: no token to upload with, or no possible name.
    """
    keys = config.hub
    if not (keys.export_hub_model_id if export else keys.push_to_hub):
        return None
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    named = keys.export_hub_model_id if export else keys.hub_model_id
    key = "export_hub_model_id" if export else "hub_model_id" if named else "push_to_hub"
    repository = named or Path(folder).resolve().name
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        fix = "" if named else "; name the repository with hub_model_id"
        raise UserError(f"{key}: {repository!r} cannot be the name of a repository ({error}){fix}") from error
    if not get_token():
        raise UserError(
            f"{key} needs a token of the Hugging Face hub that may write: set HF_TOKEN, or run `hf auth login`; or "
            f"take {key} out and upload the folder yourself later"
        )
    return Upload(repository=repository, key=key, private=keys.hub_private_repo, revision=keys.hub_revision)


def upload(folder: Path, planned: Upload) -> str:
    """Upload a finished folder: the model and its figures, without checkpoints, events, rows and samples.

    Returns:
        The address it has there.

    Raises:
        RunError: it could not be uploaded; the folder is as it was, and the message says how to do it later.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        made = hub.create_repo(planned.repository, private=planned.private, exist_ok=True)
        if planned.revision:
            hub.create_branch(made.repo_id, branch=planned.revision, exist_ok=True)
        hub.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            revision=planned.revision,
            commit_message="Upload from posttrain",
            allow_patterns=list(_UPLOADED),
        )
    except Exception as error:  # HTTP, a network that is not there, files: each with classes of its own
        lines = str(error).strip().splitlines()
        raise RunError(
            f"{planned.key}: {folder} is complete, but could not be uploaded to {planned.repository} "
            f"({lines[0] if lines else type(error).__name__}). Upload it later with `hf upload {planned.repository} "
            f"{folder}`"
        ) from error
    return str(made)


def model_card(config: RunConfig, folder: Path, results: Mapping[str, Any]) -> str:
    """A README for the hub: what the model was made from, and what was measured.

    Args:
        config: of the run. folder: with the model. results: numbers of the run; {} where there are none.
    """
    from huggingface_hub import ModelCardData

    stage, base = config.method.stage, config.model.model_name_or_path
    is_adapter = (folder / "adapter_config.json").is_file()
    front: dict[str, Any] = {"library_name": "peft" if is_adapter else "transformers", "tags": ["posttrain", stage]}
    if base.count("/") == 1 and not Path(base).expanduser().exists():
        front["base_model"] = base
    shown = {name: results[name] for name in _SHOWN if isinstance(results.get(name), int | float)}
    datasets = ", ".join(Path(name).name for name in config.data.dataset)
    lines = [
        "---",
        ModelCardData(**front).to_yaml(),
        "---",
        "",
        f"# {folder.resolve().name}",
        "",
        f"{_article(is_adapter)} {_MADE}, stage `{stage}`, on `{Path(base).name if _is_path(base) else base}`.",
        *(["", f"Data: {datasets}."] if datasets else []),
        *_table(shown),
        "",
        "`lineage.json` says exactly which weights it stands on; `config.yaml`, where it is there, has every key.",
    ]
    return "\n".join(lines) + "\n"


def write_card(config: RunConfig, folder: Path) -> None:
    """Put ``model_card`` beside the model, unless the folder has a README of somebody else."""
    if (folder / CARD).exists() and _MADE not in (folder / CARD).read_text(encoding="utf-8", errors="replace"):
        return
    found = folder / "all_results.json"
    results: dict[str, Any] = json.loads(found.read_text(encoding="utf-8")) if found.is_file() else {}
    (folder / CARD).write_text(model_card(config, folder, results), encoding="utf-8", newline="\n")


def _table(numbers: Mapping[str, float]) -> Sequence[str]:
    if not numbers:
        return ()
    return ("", "| measured | |", "|---|---|", *(f"| {name} | {value:.4g} |" for name, value in numbers.items()))


def _article(is_adapter: bool) -> str:
    return "A LoRA adapter" if is_adapter else "A model"


def _is_path(name: str) -> bool:
    return name.count("/") != 1 or Path(name).expanduser().exists()
