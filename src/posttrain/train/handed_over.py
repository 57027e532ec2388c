"""Model, tokenizer and adapter as Python hands them over, as keys of a configuration and what stands beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import UserError
from posttrain.models.fetch import resolve_model
from posttrain.models.given import Given, GivenModel, given_tokenizer, reads_alike, tokenizer_of
from posttrain.models.peft_keys import lora_keys

INPUTS = "inputs"


@dataclass(frozen=True, kw_only=True)
class HandedOver:
    """What a trainer was given.

    Attributes:
        keys: of the configuration, those for model and adapter added.
        given: model and tokenizer to use instead of loading them.
        home: folder to write the model to before it is used; None where it lies somewhere already.
        notes: sentences for the user.
    """

    keys: dict[str, Any]
    given: Given
    home: Path | None
    notes: tuple[str, ...]

    def settle(self, *, continues: bool = False) -> str | None:
        """Write the model to its home, where it has none yet; returns a sentence about it.

        Args:
            continues: a run on it is going to be continued, so it must be the model that lies there.

        Raises:
            UserError: another model lies there.
        """
        model, tokenizer = self.given.model, self.given.tokenizer
        if self.home is None or model is None or model.first_mark is not None or model.lies_in(self.home):
            return None
        if continues:
            raise UserError(
                f"model: {model.name} has other weights than those that the run in {self.home.parent.parent} began "
                "with (has it been trained since?): load it again to continue, give another output_dir, or "
                "overwrite_output_dir=True to start afresh"
            )
        assert tokenizer is not None
        model.write(self.home, tokenizer)
        return (
            f"model: no folder holds the weights of {model.name}, so they are kept in {self.home}, which is what the "
            "result stands on"
        )


def handed_over(
    model: object, tokenizer: object, peft_config: object, keys: Mapping[str, Any], *, scores: bool = False
) -> HandedOver:
    """Take in what a trainer was given.

    Args:
        model: a name, a folder, a model of transformers, or None where ``keys`` name one.
        tokenizer: of transformers; None is the one that lies with the model.
        peft_config: a ``peft.LoraConfig``, or None.
        keys: flat keys.
        scores: a reward model is to be trained.

    Raises:
        UserError: one of them cannot be used, or they contradict each other.
    """
    keys = dict(keys)
    notes: list[str] = []
    taken, home = None, None
    if model is not None and "model_name_or_path" in keys:
        raise UserError("`model` and `model_name_or_path` both name a model; keep one")
    if isinstance(model, str | Path):
        keys["model_name_or_path"] = str(model)
    elif model is not None:
        taken = GivenModel(model, scores=scores)
        lies = taken.home()
        if lies is None:
            home = _new_home(taken, keys)
        keys["model_name_or_path"] = str(home) if lies is None else lies
    name = None if home is not None else keys.get("model_name_or_path")
    own = _tokenizer(tokenizer, taken, name)
    if taken is not None:
        notes += taken.notes(trains_base=peft_config is None and keys.get("finetuning_type", "full") != "lora")
        if taken.head is not None:
            notes.append("model: the score head starts from the classifier's own, which config.yaml cannot name")
    beside = tokenizer_of(name) if own is not None and name is not None else None
    if own is not None and beside is not None and not reads_alike(own, beside):
        notes.append(
            f"tokenizer: another one than lies with {name}, which config.yaml cannot say; continue this run from "
            "Python, with the same tokenizer"
        )
    keys = _with_adapter(keys, peft_config, taken, scores=scores)
    return HandedOver(keys=keys, given=Given(model=taken, tokenizer=own), home=home, notes=tuple(notes))


def _new_home(model: GivenModel, keys: Mapping[str, Any]) -> Path:
    if not keys.get("output_dir"):
        raise UserError(
            f"model: no folder holds the weights of {model.name}, and what is trained must stand on one: give "
            "output_dir, in which they are kept, or save it with model.save_pretrained(FOLDER) and give the folder"
        )
    return Path(keys["output_dir"]).expanduser() / INPUTS / "model"


def _tokenizer(tokenizer: object, model: GivenModel | None, name: str | None) -> Any:
    if tokenizer is not None:
        return given_tokenizer(tokenizer, model, name)
    if model is None:
        return None
    origin = str(model.model.name_or_path or "")
    found = tokenizer_of(name or origin) if name or origin else None
    if found is None:
        raise UserError(f"tokenizer is missing: none lies with the model ({model.name}); give tokenizer=...")
    return given_tokenizer(found, model, name)


def _with_adapter(
    keys: Mapping[str, Any], peft_config: object, model: GivenModel | None, *, scores: bool
) -> dict[str, Any]:
    """The keys that say what trains: an adapter where one is spoken of, else all weights, as in transformers."""
    if peft_config is None:
        speaks = any(key.startswith(("lora_", "adapter_name", "create_new_adapter", "use_rslora")) for key in keys)
        return {"finetuning_type": "lora" if speaks else "full", **keys}
    skeleton: Any = model.model if model is not None else None
    if skeleton is None:
        if not keys.get("model_name_or_path"):
            raise UserError("model is missing: give a name, a folder, or a model of transformers")
        skeleton = Path(resolve_model(str(keys["model_name_or_path"])))
    asked = lora_keys(peft_config, skeleton, scores=scores)
    for key in asked:
        if key in keys and keys[key] != asked[key]:
            raise UserError(f"`{key}={keys[key]!r}` contradicts peft_config, which says {asked[key]!r}; keep one")
    return {**keys, **asked}
