"""Load tokenizers and causal language models; one clear message when a folder is not what it should be."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from posttrain.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer_config.json",
)
# Han characters, kana, and the signs that stand between them; dashes and dots of names among those.
_CHINESE = r"\p{Han}\p{Hiragana}\p{Katakana}\u3000-\u303f\uff00-\uffef\u2013-\u201d\u2026\u00b7\u2022"
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars, advice and warnings of transformers and the hub inside the block."""
    hub: Any = importlib.import_module("huggingface_hub.utils")
    hf_logging: Any = importlib.import_module("transformers.utils.logging")
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hub_bars = not hub.are_progress_bars_disabled()
    hf_logging.set_verbosity(logging.CRITICAL)
    hf_logging.disable_progress_bar()
    hub.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
        if hub_bars:
            hub.enable_progress_bars()


def load_tokenizer(
    path: str | Path, *, use_fast: bool = True, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model or adapter folder; one without a padding token pads with its end-of-text token.

    A bare ``vocab.txt`` is WordPiece, whatever the model; its texts end with the separator token.

    Raises:
        UserError: no such folder, or no readable tokenizer in it.
    """
    from transformers import AutoTokenizer, BertTokenizer

    folder = _existing(path)
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise UserError(
            f"{folder} holds no tokenizer (looked for {', '.join(_TOKENIZER_FILES[:3])}). "
            "Copy the tokenizer files of the base model into it."
        )
    kind: Any = BertTokenizer if _is_bare_wordpiece(folder) else AutoTokenizer
    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(
                str(folder), use_fast=use_fast, trust_remote_code=trust_remote_code, local_files_only=True
            )
    except Exception as error:  # parsers of many formats, each with errors of its own
        raise UserError(f"{folder}: the tokenizer cannot be read ({first_line(error)}).") from error
    return completed(tokenizer)


def completed(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The same tokenizer; one without an end of text ends with its separator, one without padding pads with the end.

    WordPiece makes a word of every Chinese character, and its decoder puts a blank between words: it is made to leave
    out those that Chinese does not write.
    """
    if tokenizer.eos_token is None and tokenizer.sep_token is not None:
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and type(backend.model).__name__ == "WordPiece":
        backend.decoder = _written_as_chinese()
    return tokenizer


def _written_as_chinese() -> Any:
    """A WordPiece decoder without blanks beside Chinese characters and signs, and within decimal numbers."""
    from tokenizers import Regex, decoders

    beside = rf"(?<=[{_CHINESE}]) | (?=[{_CHINESE}])"
    within = r"(?<=\d\.) (?=\d)"
    return decoders.Sequence(
        [decoders.WordPiece(prefix="##"), decoders.Fuse(), decoders.Replace(Regex(f"{beside}|{within}"), "")]
    )


def _is_bare_wordpiece(folder: Path) -> bool:
    """Whether a vocabulary of words is all there is: the model's own class would make an empty tokenizer of it."""
    named = any(
        read_json(folder / name).get("tokenizer_class")
        for name in ("config.json", "tokenizer_config.json")
        if (folder / name).is_file()
    )
    return not named and [file for file in _TOKENIZER_FILES[:5] if (folder / file).is_file()] == ["vocab.txt"]


def choose_dtype(dtype: DtypeName, device: str | torch.device, folder: str | Path) -> tuple[torch.dtype, str | None]:
    """The dtype to load weights in, and a sentence for the user when it is not the one asked for.

    Args:
        dtype: as configured; "auto" is the dtype the weights are stored in.
        device: where the model will run; on anything but CUDA it is float32.
        folder: of the model, whose config names the stored dtype.
    """
    kind = torch.device(device).type
    if kind != "cuda":
        note = f"dtype: {dtype} was asked for; on {kind} float32 is used." if dtype in ("bfloat16", "float16") else None
        return torch.float32, note
    return _on_this_gpu(_stored_dtype(folder) if dtype == "auto" else _DTYPES[dtype])


def _stored_dtype(folder: str | Path) -> torch.dtype:
    config = read_json(Path(folder) / "config.json")
    return _DTYPES.get(config.get("dtype") or config.get("torch_dtype") or "float32", torch.float32)


def _on_this_gpu(dtype: torch.dtype) -> tuple[torch.dtype, str | None]:
    if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported():
        return torch.float16, "dtype: this GPU has no bfloat16; float16 is used."
    return dtype, None


def load_causal_lm(
    path: str | Path,
    *,
    dtype: DtypeName = "float32",
    device: str | torch.device = "cpu",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    key_mapping: Mapping[str, str] | None = None,
    trunk_only: bool = False,
    as_stored: bool = False,
) -> PreTrainedModel:
    """A causal language model from a local folder, in evaluation mode; logs a note when ``dtype`` cannot be had.

    Args:
        path: a folder (see ``fetch.resolve_model`` for names).
        dtype: see ``choose_dtype``.
        device: where to put it.
        attn_implementation: name of a registered attention function; None is the library's choice.
        trust_remote_code: run Python code that the folder brings.
        key_mapping: pattern -> replacement, for weights that the folder keeps under names of its own.
        trunk_only: the output head is not wanted: it shares the embedding's weights, and may be missing.
        as_stored: on the CPU in the dtype of the file, whatever ``dtype`` and ``device`` say; for weights that are
            brought into another form next.

    Raises:
        UserError: the folder is missing, is an adapter, is no causal language model, or lacks weights.
    """
    from transformers import AutoModelForCausalLM

    from posttrain.models.activations import fuse_activations

    folder = _existing(path)
    check_model_folder(folder)
    chosen, note = choose_dtype(dtype, device, folder)
    if as_stored:
        chosen, note, device = _stored_dtype(folder), None, "cpu"
    if note:
        logger.warning(note)
    options: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    if key_mapping:
        options["key_mapping"] = dict(key_mapping)
    if trunk_only:
        options["tie_word_embeddings"] = True
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=chosen,
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # configuration, architecture and weight files fail with classes of their own
        raise UserError(f"{folder} cannot be loaded as a causal language model: {first_line(error)}") from error
    model: PreTrainedModel = fuse_activations(loaded[0])
    _require_whole(folder, set(loaded[1]["missing_keys"]) - (_output_head(model) if trunk_only else set()))
    if trunk_only:
        _share_embedding(model)
    model.to(torch.device(device))  # type: ignore[arg-type]
    return model


def _require_whole(folder: Path, missing: set[str]) -> None:
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of the weights of a causal language model, among them {min(missing)}. "
            "It may be a sequence classifier (a reward model) or an incomplete copy."
        )


def _share_embedding(model: PreTrainedModel) -> None:
    """Let go of an output head of its own, which the file brought along."""
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    if isinstance(head, nn.Linear) and head.weight.shape == embedding.weight.shape:
        head.weight = embedding.weight


def _output_head(model: PreTrainedModel) -> set[str]:
    """Names of the output head's parameters."""
    head = model.get_output_embeddings()
    place = next((name for name, module in model.named_modules() if module is head), None)
    return set() if place is None else {f"{place}.{name}" for name, _ in head.named_parameters()}


def check_model_folder(folder: Path) -> None:
    """Raise UserError unless ``folder`` holds a model's config and all its weight files."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            base = read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "its base model"
            raise UserError(
                f"{folder} is an adapter, not a model. Write model_name_or_path: {base} and "
                f"adapter_name_or_path: {folder}"
            )
        raise UserError(f"{folder} is not a model folder: it has no config.json.")
    quantized = read_json(folder / "config.json").get("quantization_config")
    if quantized:
        by = quantized.get("quant_method", "another program")
        raise UserError(
            f"{folder} holds weights that {by} has quantised already. Give the unquantised model as "
            "model_name_or_path; quantization_bit: 4 quantises it while it is loaded."
        )
    for index in (folder / f"{name}.index.json" for name in _WEIGHT_FILES):
        if index.is_file():
            shards = sorted(set(read_json(index).get("weight_map", {}).values()))
            absent = [shard for shard in shards if not (folder / shard).is_file()]
            if absent:
                raise UserError(
                    f"{folder}: {len(absent)} of {len(shards)} weight files are missing, first {absent[0]}."
                )
            return
    if not any((folder / name).is_file() for name in _WEIGHT_FILES):
        raise UserError(
            f"{folder} has a config.json but no weights (looked for {' and '.join(_WEIGHT_FILES)}, or their index). "
            "Copy the whole folder; with git, run `git lfs pull`."
        )


def disable_dropout(module: nn.Module) -> None:
    """Set every dropout to 0, layers and plain attributes alike: train mode then computes what eval does."""
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        for name, value in vars(part).items():
            if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop") or name == "layerdrop"):
                setattr(part, name, 0.0)


def _existing(path: str | Path) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(f"the model folder {folder} {what}.")
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; UserError when it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({first_line(error)}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {type(content).__name__}, not a JSON object.")
    return content


def first_line(error: BaseException) -> str:
    """What an error of another library says first, for use inside our own message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
