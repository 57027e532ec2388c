"""What a pipeline has done so far: for each stage, of which configuration and on which inputs it was made."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import posttrain
from posttrain.config import PipelineStage
from posttrain.errors import RunError

FILE = "pipeline_state.json"
# Keys that say how a run starts or is shown, not what comes out of it.
_WITHOUT_EFFECT = (
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "disable_tqdm",
    "report_to",
    "run_name",
    "use_swanlab",
    "swanlab_project",
    "swanlab_workspace",
    "swanlab_run_name",
    "swanlab_mode",
    "swanlab_logdir",
    "plot_loss",
)


@dataclass(kw_only=True)
class Record:
    """One stage or one preparation.

    Attributes:
        digest: of its configuration and inputs. finished: whether it came to its end.
        run: names this result; what was made from it notes the name, and is made again when it changes.
        replaces: whether what lay in its folder when it was started may be replaced.
        found: when that was written (nanoseconds), None where there was nothing.
        seconds, peak_memory_bytes: of all its attempts together, and the most of any.
    """

    digest: str
    finished: bool = False
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    replaces: bool = False
    found: int | None = None
    seconds: float = 0.0
    peak_memory_bytes: int = 0


class State:
    """The records of a pipeline, kept in ``pipeline_state.json``."""

    def __init__(self, folder: Path) -> None:
        """Read what is there; a file that cannot be read counts as none, and everything is looked at afresh."""
        self._path = folder / FILE
        self.records: dict[str, Record] = {}
        if self._path.is_file():
            try:
                content = json.loads(self._path.read_text(encoding="utf-8"))
                self.records = {name: Record(**record) for name, record in content["records"].items()}
            except (OSError, ValueError, TypeError, KeyError, AttributeError):
                self.records = {}

    def put(self, name: str, record: Record) -> None:
        """Keep a record, on the disk too.

        Raises:
            RunError: it cannot be written.
        """
        self.records[name] = record
        content = {"records": {key: asdict(value) for key, value in self.records.items()}}
        partial = self._path.with_suffix(".partial")
        try:
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")
            partial.replace(self._path)
        except OSError as error:
            raise RunError(f"{self._path} cannot be written: {error.strerror or error}") from error


def stage_digest(stage: PipelineStage, inputs: Mapping[str, str], outside: Mapping[str, Any] | None = None) -> str:
    """Content hash of a stage: its keys, those without effect on the result left out, its inputs, and our version.

    Args:
        stage: resolved.
        inputs: name -> ``Record.run`` of everything before it that it reads.
        outside: as ``outside_inputs`` found it.
    """
    values = {key: value for key, value in stage.values.items() if key not in _WITHOUT_EFFECT}
    return digest(
        {
            "kind": stage.kind,
            "values": values,
            "inputs": dict(inputs),
            "outside": dict(outside or {}),
            "version": posttrain.__version__,
        }
    )


def digest(content: Any) -> str:
    """64 hexadecimal digits of JSON content, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def reads(stage: PipelineStage, folder: str) -> bool:
    """Whether a value of the stage names ``folder`` or something in it; its own output does not count."""
    own = {"output_dir", "export_dir", "output_file"}
    return any(_within(text, folder) for key, value in stage.values.items() if key not in own for text in texts(value))


def texts(value: Any) -> Iterable[str]:
    """The texts in a value, and the folders in those of the form ``name=folder+folder``."""
    if isinstance(value, str):
        # an entry of `variants` is name=folder+folder
        yield from (part.strip() for part in value.partition("=")[2].split("+") if part)
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts(item)


def _within(text: str, folder: str) -> bool:
    kind = PureWindowsPath if "\\" in text + folder else PurePosixPath
    return kind(text).is_relative_to(kind(folder))
