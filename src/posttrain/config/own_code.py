"""Functions and classes in Python files of the user's own, named ``path/to/file.py:name``."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from posttrain.errors import UserError

_loaded: dict[tuple[Path, int, int], ModuleType] = {}


def load_own(file: Path, name: str, *, key: str, kind: str = "function") -> Any:
    """What a Python file calls ``name``; everything taken from one file shares its module.

    Args:
        file: its path. name: in it. key: of the configuration, for messages.
        kind: "function" or "class".

    Raises:
        UserError: the file is missing or cannot be imported, or has no such thing.
    """
    try:
        seen = file.resolve().stat()
    except OSError:
        raise UserError(f"{key}: there is no file {file} (looked in {Path.cwd()})") from None
    mark = (file.resolve(), seen.st_mtime_ns, seen.st_size)
    if mark not in _loaded:
        _loaded[mark] = _imported(mark[0], file, key)
    module = _loaded[mark]
    found = getattr(module, name, None)
    fits: Callable[[Any], bool] = inspect.isclass if kind == "class" else callable
    if not fits(found):
        is_one = inspect.isclass if kind == "class" else inspect.isfunction
        own = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
        known = [value.__name__ for value in own if is_one(value)]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6) or known
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; it defines no {kind}"
        raise UserError(f"{key}: {file} has no {kind} {name}{hint}")
    return found


def said(error: BaseException) -> str:
    """What happened, for the middle of a sentence: ``raised ValueError: no number (my.py, line 7)``."""
    if isinstance(error, TimeoutError):
        return str(error) or "took too long"
    lines = str(error).strip().splitlines()
    place, step = "", error.__traceback__
    while step is not None:
        place, step = f" ({step.tb_frame.f_code.co_filename}, line {step.tb_lineno})", step.tb_next
    return f"raised {type(error).__name__}{': ' + lines[0] if lines else ''}{place}"


def _imported(path: Path, written: Path, key: str) -> ModuleType:
    """The file as a module; what lies beside it can be imported by it."""
    name = f"posttrain_own_{path.stem}_{len(_loaded)}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{key}: {written} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        if isinstance(error, SyntaxError):
            raise UserError(f"{key}: {written}, line {error.lineno}: {error.msg}") from error
        raise UserError(f"{key}: {written} cannot be imported: it {said(error)}") from error
    return module
