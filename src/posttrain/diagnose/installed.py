"""Which libraries are there, which of them a run needs, and what the others would enable."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec

import torch
from packaging.requirements import Requirement

from posttrain.config import RunConfig
from posttrain.diagnose.findings import Finding
from posttrain.train.trackers import named

_SHOWN = ("torch", "transformers", "peft")
_OPTIONAL = {
    "bitsandbytes": "quantization_bit",
    "accelerate": "faster loading of large models",
    "vllm": "serving what was trained",
    "pyarrow": "Parquet and Arrow files",
    "wandb": "report_to: wandb",
    "swanlab": "report_to: swanlab",
    "mlflow": "report_to: mlflow",
}

_DISTRIBUTIONS = {"mlflow": ("mlflow", "mlflow-skinny")}


def installed(config: RunConfig) -> Iterator[Finding]:
    """Versions, the device, and optional libraries."""
    versions = [f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in _SHOWN)]
    yield Finding(level="ok", check="versions", message=", ".join(versions))
    for sentence in unmet():
        fix = 'Install it: pip install -U "posttrain" in this environment'
        yield Finding(level="error", check="versions", message=sentence, fix=fix)
    yield device()
    there = {name: found for name in _OPTIONAL if (found := version(name)) is not None}
    absent = [f"{name} ({use})" for name, use in _OPTIONAL.items() if name not in there]
    have = ", ".join(f"{name} {found} ({_OPTIONAL[name]})" for name, found in there.items()) or "none"
    message = f"there: {have}; not installed: {', '.join(absent) or 'none'}"
    yield Finding(level="ok", check="optional libraries", message=message)
    wanted = {name: "use_swanlab" if name == "swanlab" else "report_to" for name in named(config.trackers)}
    for key in ("quantization_bit", "ref_model_quantization_bit", "reward_model_quantization_bit"):
        if config.value(key) is not None:
            wanted["bitsandbytes"] = key
    for name, key in wanted.items():
        if find_spec(name) is None:
            message = f"`{key}` needs {name}, which is not installed"
            fix = f"pip install {name}, or leave `{key}` out"
            yield Finding(level="error", check="optional libraries", message=message, fix=fix)


def device() -> Finding:
    """What the run will compute on."""
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        half = "bf16 and fp16" if torch.cuda.is_bf16_supported() else "fp16"
        message = f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB, CUDA {torch.version.cuda}, computes {half}"
        return Finding(level="ok", check="device", message=message)
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    message = f"CPU, {threads} threads on {cores} cores, float32"
    if os.path.exists("/proc/driver/nvidia/version"):
        fix = "Install a build of torch with CUDA, or look at CUDA_VISIBLE_DEVICES and the driver's version"
        return Finding(level="warning", check="device", message=f"{message}; a GPU is there and not used", fix=fix)
    return Finding(level="ok", check="device", message=message)


def version(library: str) -> str | None:
    """Of an installed library; None where there is none."""
    for distribution in _DISTRIBUTIONS.get(library, (library,)):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def unmet() -> list[str]:
    """A sentence for each library that this package requires in another version than the installed one."""
    try:
        required = [Requirement(text) for text in metadata.requires("posttrain") or ()]
    except metadata.PackageNotFoundError:  # run from its sources
        return []
    found = []
    for requirement in required:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        have = version(requirement.name)
        if have is None or not requirement.specifier.contains(have, prereleases=True):
            found.append(f"{requirement} is required and {have or 'nothing'} is installed")
    return found
