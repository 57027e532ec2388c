"""Data that a pipeline makes before its first stage."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import posttrain
from posttrain.config import PreparedData
from posttrain.errors import UserError
from posttrain.pipeline.state import digest

_MANIFEST = "manifest.json"
_NOT_OPTIONS = ("directory", "seed", "domains", "progress")


def prepared_digest(prepared: PreparedData) -> str:
    """Content hash of a preparation: generator, arguments and the version that runs it."""
    return digest([prepared.generator, prepared.output, prepared.seed, dict(prepared.options), posttrain.__version__])


def prepare(prepared: PreparedData, progress: Callable[[int, int], None]) -> str:
    """Write the data.

    Returns:
        A content hash of what was written.

    Raises:
        UserError: unknown generator or option, a value of the wrong type, or what the generator refuses.
    """
    generate = _GENERATORS[prepared.generator]()
    folder = Path(prepared.output).expanduser()
    manifest = generate(folder, seed=prepared.seed, progress=progress, **dict(prepared.options))
    return digest(dict(manifest.digests))


def check_prepared(prepared: PreparedData) -> None:
    """Refuse what ``prepare`` would refuse about names and types, before anything runs.

    Raises:
        UserError: names the generator, the option and the valid ones.
    """
    if prepared.generator not in _GENERATORS:
        raise UserError(
            f"{prepared.where}: there is no generator `{prepared.generator}`; there is {', '.join(_GENERATORS)}."
        )
    parameters = inspect.signature(_GENERATORS[prepared.generator]()).parameters
    known = {name: item.default for name, item in parameters.items() if name not in _NOT_OPTIONS}
    for key, value in prepared.options.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
            advice = f"did you mean `{near[0]}`?" if near else f"it has {', '.join(known)}."
            raise UserError(f"{prepared.where}: generator {prepared.generator} has no option `{key}`; {advice}")
        if not _fits(value, known[key]):
            kind = "a list of texts" if isinstance(known[key], tuple) else f"a number such as {known[key]}"
            raise UserError(
                f"{prepared.where}: `{key}` of generator {prepared.generator} must be {kind}, not {value!r}."
            )


def files_are_there(prepared: PreparedData) -> bool:
    """Whether every file of the manifest is there and as it was written."""
    folder = Path(prepared.output).expanduser()
    try:
        digests = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["digests"]
        return all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == found for name, found in digests.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _text2sql() -> Callable[..., Any]:
    from posttrain.data.text2sql import generate

    return generate


def _question_generation() -> Callable[..., Any]:
    from posttrain.data.question_generation import generate

    return generate


def _reviews() -> Callable[..., Any]:
    from posttrain.data.reviews import generate

    return generate


def _new_gpt2() -> Callable[..., Any]:
    from posttrain.models.new_gpt2 import generate

    return generate


# Each is imported where it is used: one of them needs torch.
_GENERATORS: Mapping[str, Callable[[], Callable[..., Any]]] = {
    "text2sql": _text2sql,
    "question_generation": _question_generation,
    "reviews": _reviews,
    "new_gpt2": _new_gpt2,
}


def _fits(value: object, default: object) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(default, float) or isinstance(value, int)
