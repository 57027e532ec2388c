"""A model and the adapters on it as one Hugging Face folder, compared with its source before it gets its name."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from posttrain.config import RunConfig
from posttrain.data.template import Template
from posttrain.errors import RunError, UserError
from posttrain.models.backbone import device
from posttrain.models.heads import ScalarHead, trunk_width
from posttrain.models.hub import planned_upload, upload
from posttrain.models.lineage import Backbone, fingerprint, read_lineage
from posttrain.models.load import load_causal_lm, quiet, read_json
from posttrain.models.merging import classifier, merge
from posttrain.models.ollama import write_modelfile
from posttrain.models.probe import (
    classifier_scores,
    largest_gap,
    own_scores,
    plain_logprobs,
    probe_batch,
    spare_token,
)
from posttrain.models.provenance import describe, model_card
from posttrain.models.saving import share
from posttrain.models.source import Source, find_source
from posttrain.types import Batch

# Sums in another order differ by less, relative to the largest number; a missing or misplaced adapter by orders more.
TOLERANCE = 1e-5
_GB = 10**9
SHARD_UNIT = "GB"
"""What ``export_size`` counts."""


def export_model(config: RunConfig, notify: Callable[[str], None] = lambda sentence: None) -> Path:
    """Merge ``adapter_name_or_path``, with the adapters each stands on, into ``model_name_or_path``.

    The result is a plain transformers folder: a causal language model, or for a reward model (stage rm) a sequence
    classifier with one label. It is written under a temporary name, loaded again by transformers alone, compared on
    probe sequences, and only then given its name. Weights are float32, which loses nothing of base + adapter, unless
    ``dtype`` asks for less; a model exported without adapters keeps the dtype it is stored in.

    ``lineage.json`` and copies of the adapters (``adapters/0`` ...) stay in the folder: PPO on it can share one
    backbone with a reward model that was trained on the base.

    Args:
        config: loaded with ``command="export"``.
        notify: receives sentences for the user.

    Returns:
        ``export_dir``.

    Raises:
        UserError: nothing to export, a bad ``export_dir``, an adapter of another backbone, a reward model without head.
        RunError: the folder could not be written, or does not say what its source says.
    """
    for sentence in config.warnings:
        notify(sentence)
    source = _checked_source(config)
    target = _check_target(config, source)
    planned = planned_upload(config, target, export=True)
    _remove_leftovers(target)
    writer = _Writer(config, source, target, *_loaded(config, source, notify))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise UserError(f"export_dir: {target.parent} cannot be written to ({error.strerror or error}).") from error
    try:
        sentences = writer.write(temporary)
        _move_into_place(temporary, target)
    except (OSError, SafetensorError) as error:
        raise RunError(f"export_dir: {target} could not be written ({error}). Is the disk full?") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for sentence in sentences:
        notify(sentence)
    if planned is not None:
        notify(f"uploaded to {upload(target, planned)}")
    return target


def _checked_source(config: RunConfig) -> Source:
    """What the configuration names, refused where exporting it would only copy a model."""
    source = find_source(config)
    whole = source.lineage is None or source.lineage.merged
    if not source.links and not _is_reward(config, source) and whole:
        raise UserError(
            f"nothing to export: adapter_name_or_path is not set, and {source.name} is a whole model already, so the "
            "result would be a copy of it. Name the adapter folder that training wrote."
        )
    return source


def _is_reward(config: RunConfig, source: Source) -> bool:
    lineage = source.last_lineage
    return config.method.stage == "rm" or (lineage is not None and lineage.stage == "rm")


def _check_target(config: RunConfig, source: Source) -> Path:
    """``export_dir``, refused where writing it would take something away.

    Raises:
        UserError: it is missing, a file, a folder that is read, or holds something that may not be replaced.
    """
    if not config.export.export_dir:
        raise UserError("export_dir is missing: name the folder to write, such as export_dir: merged")
    target = Path(config.export.export_dir).expanduser().resolve()
    read = {"model_name_or_path": source.folder, **{f"the adapter {link.folder}": link.folder for link in source.links}}
    for what, folder in read.items():
        place = folder.resolve()
        if place == target or target in place.parents:
            relation = "is" if place == target else "contains"
            raise UserError(f"export_dir: {target} {relation} {what}, which is read; write to another folder.")
    if target.is_file():
        raise UserError(f"export_dir: {target} is a file; name a folder.")
    if target.is_dir() and any(target.iterdir()):
        lineage = read_lineage(target)
        if lineage is None or lineage.stage != "export":
            raise UserError(f"export_dir: {target} holds files that no export wrote; name a new folder.")
        if not config.train.overwrite_output_dir:
            raise UserError(
                f"export_dir: {target} already holds an exported model; name a new folder, or set "
                "overwrite_output_dir: true to replace it."
            )
    return target


def _remove_leftovers(target: Path) -> None:
    """Take away what exports to ``target`` that were killed have left beside it, each as large as a model.

    One that was killed while it replaced an earlier export has moved that aside: it gets its name back.
    """
    named = re.compile(rf"\.{re.escape(target.name)}-([a-z0-9_]{{8}}\.partial|replaced-\d+)")
    for place in target.parent.glob(".*") if target.parent.is_dir() else ():
        matched = named.fullmatch(place.name)
        if matched is None or not place.is_dir():
            continue
        if matched[1].startswith("replaced") and not target.exists():
            place.rename(target)
        else:
            shutil.rmtree(place, ignore_errors=True)


def _loaded(config: RunConfig, source: Source, notify: Callable[[str], None]) -> tuple[PreTrainedModel, str]:
    """The model in float32, where adding an adapter loses nothing, and its fingerprint, which every adapter knows."""
    place = device() if config.export.export_device == "auto" else torch.device("cpu")
    loaded = load_causal_lm(source.folder, device="cpu", trust_remote_code=config.model.trust_remote_code)
    model: PreTrainedModel = loaded.requires_grad_(False).to(place)  # type: ignore[arg-type]
    return model, source.check(model, allow_mismatch=config.model.allow_mismatch, notify=notify)


class _Writer:
    """Fills the temporary folder and compares it with the model in memory."""

    def __init__(self, config: RunConfig, source: Source, target: Path, model: PreTrainedModel, mark: str) -> None:
        self.config, self.source, self.target, self.mark = config, source, target, mark
        self._model: PreTrainedModel | None = model
        embedding: Any = model.get_input_embeddings()
        self.vocab_size = int(embedding.weight.shape[0])
        self.head: ScalarHead | None = None
        self.said: list[str] = []
        self._rounds = False
        if _is_reward(config, source):
            width = trunk_width(model.config)
            self.head = ScalarHead.load(source.outermost, width)

    @property
    def model(self) -> Any:
        """The model in memory; gone once it is written."""
        assert self._model is not None
        return self._model

    def write(self, folder: Path) -> tuple[str, ...]:
        """Everything that the folder holds; returns sentences for the user."""
        tokenizer = self.source.tokenizer
        stops = _stop_tokens(tokenizer, self.model)
        pad_id = self._pad(stops)
        batch = probe_batch(self.vocab_size, pad_id=pad_id, ending=stops[0] if stops else None)
        expected = merge(self.model, self.source.links, lambda: self._answer(batch))
        dtype = self._dtype()
        expected = self._rounded(batch, expected, dtype)
        written: Any = self.model
        if self.head is None:
            _set_generation(self.model, stops, pad_id)
        else:
            written = classifier(self.model, self.head, pad_id)
            self._say_bias(float(self.head.bias))
        with quiet():
            written.to(dtype).save_pretrained(folder, max_shard_size=f"{self.config.export.export_size}{SHARD_UNIT}")
            tokenizer.save_pretrained(folder)
        if self.head is None and tokenizer.chat_template:
            keys = self.config.generation, self.config.data.default_system
            self.said += write_modelfile(folder, Template(tokenizer), self.model, *keys)
        del written
        self._model = None  # room for the copy that is read back
        self._describe(folder, dtype, self._compare(folder, batch, expected))
        return tuple(self.said)

    def _answer(self, batch: Batch) -> Tensor:
        return plain_logprobs(self.model, batch) if self.head is None else own_scores(self.model, self.head, batch)

    def _dtype(self) -> torch.dtype:
        asked = self.config.model.dtype
        if asked == "auto":
            stored = read_json(self.source.folder / "config.json")
            asked = "float32" if self.source.links else stored.get("dtype") or stored.get("torch_dtype") or "float32"
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(asked, torch.float32)

    def _rounded(self, batch: Batch, expected: Tensor, dtype: torch.dtype) -> Tensor:
        """Where the weights are about to lose bits: check the merge before, round, and say what it cost."""
        self._rounds = dtype != torch.float32
        if not self._rounds:
            return expected
        self._check(expected, self._answer(batch), "merging")
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(dtype).float()
        rounded = self._answer(batch)
        cost = largest_gap(expected, rounded)
        if cost:
            what = "scores" if self.head is not None else "log-probabilities"
            self.said.append(f"rounding the weights to {_name(dtype)} moved {what} of the probe by up to {cost:.2g}")
        return rounded

    def _say_bias(self, bias: float) -> None:
        if bias:
            self.said.append(
                f"the head's constant {bias:.4g} has no place in a sequence classifier and is left out: every score "
                "is lower by it, no comparison of two scores changes"
            )

    def _pad(self, stops: Sequence[int]) -> int:
        """The padding token: for a classifier one that no text ends with, since it reads the last other token."""
        tokenizer = self.source.tokenizer
        names = ("pad_token_id", "unk_token_id", "bos_token_id")
        if self.head is None:
            return spare_token([tokenizer.pad_token_id], (), self.vocab_size)
        special = sorted(set(tokenizer.added_tokens_decoder) - {tokenizer.eos_token_id})
        pads = [token for token in special if "pad" in str(tokenizer.added_tokens_decoder[token]).lower()]
        candidates = [getattr(tokenizer, names[0]), *pads, *(getattr(tokenizer, name) for name in names[1:]), *special]
        chosen = self.head.skips
        if chosen is None or chosen >= self.vocab_size:
            chosen = spare_token(candidates, stops, min(self.vocab_size, len(tokenizer)))
        text = str(tokenizer.convert_ids_to_tokens(chosen))
        if chosen != tokenizer.pad_token_id:
            tokenizer.pad_token = text
        self.said.append(f"padding token {text!r} (id {chosen}): the score is read at the last token that is another")
        return chosen

    def _compare(self, folder: Path, batch: Batch, expected: Tensor) -> str:
        """Load what was written by transformers alone, compare; returns the fingerprint of its weights."""
        kind: Any = AutoModelForCausalLM if self.head is None else AutoModelForSequenceClassification
        options = {"trust_remote_code": self.config.model.trust_remote_code, "local_files_only": True}
        with quiet():
            loaded = kind.from_pretrained(str(folder), dtype=torch.float32, **options).eval()
        if self.head is None:
            found, what = plain_logprobs(loaded, batch), "log-probability"
        else:
            found, what = classifier_scores(loaded, batch) + float(self.head.bias), "score"
        gap = self._check(expected, found, "writing")
        source = "base and adapters" if self.source.links else "the source"
        source = f"{source}, so rounded," if self._rounds else source
        self.said.append(
            f"loaded again with transformers: the largest {what} difference from {source} on {len(batch)} probe "
            f"sequences is {gap:.2g}"
        )
        return fingerprint(loaded)

    def _check(self, expected: Tensor, found: Tensor, doing: str) -> float:
        """The largest difference; RunError where it is more than rounding."""
        gap = largest_gap(expected, found)
        size = max(float(expected.abs().max()), 10.0 if self.head is None else 1.0)
        if not gap <= TOLERANCE * size:
            raise RunError(
                f"{doing} changed the model: on probe sequences it is off by {gap:.3g} from what base and adapters "
                f"say, allowed {TOLERANCE * size:.1g}. Nothing was kept; please report the model's architecture."
            )
        return gap

    def _describe(self, folder: Path, dtype: torch.dtype, weights: str) -> None:
        """Lineage, copies of the adapters, the card, and the first sentence."""
        source = self.source
        is_local = Path(source.name).expanduser().is_dir()
        base = Backbone(name_or_path=str(source.folder.resolve()) if is_local else source.name, fingerprint=self.mark)
        links = describe(folder, source.folder, base, source.links, weights=weights)
        recorded = read_lineage(folder)
        card = model_card(
            name=self.target.name,
            base=recorded.base.name_or_path if recorded else source.name,
            links=links,
            dtype=_name(dtype),
            is_reward=self.head is not None,
            findings=self.said,
        )
        (folder / "README.md").write_text(card, encoding="utf-8", newline="\n")
        shards = sorted(folder.glob("*.safetensors"))
        size = sum(shard.stat().st_size for shard in shards) / _GB
        files = "1 file" if len(shards) == 1 else f"{len(shards)} files"
        why = ""
        if source.links and self.config.model.dtype == "auto":
            why = ", which loses nothing of base and adapters (dtype: bfloat16 halves it)"
        self.said.insert(0, f"wrote {self.target}: {files}, {size:.2g} GB in {_name(dtype)}{why}")


def _stop_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[int]:
    """End of turn first, then end of sequence and whatever else the model's generation stops at."""
    stops = list(Template(tokenizer).stop_token_ids) if tokenizer.chat_template else []
    known: Any = getattr(model.generation_config, "eos_token_id", None)
    more = known if isinstance(known, list) else [known]
    own: Any = tokenizer.eos_token_id
    return list(dict.fromkeys(int(token) for token in (*stops, own, *more) if token is not None))


def _set_generation(model: PreTrainedModel, stops: Sequence[int], pad_id: int) -> None:
    """Generation ends where answers end."""
    generation: Any = model.generation_config
    if generation is None:
        return
    if stops:
        generation.eos_token_id = stops[0] if len(stops) == 1 else list(stops)
    generation.pad_token_id = pad_id
    try:
        generation.validate(strict=True)
    except ValueError:
        # the base sets a temperature and the like without switching sampling on, which saving refuses
        generation.do_sample = True


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _move_into_place(folder: Path, target: Path) -> None:
    """Give the finished folder its name; where that fails, what had the name before keeps it."""
    share(folder)
    replaced = None
    if target.exists():
        replaced = target.with_name(f".{target.name}-replaced-{os.getpid()}")
        target.rename(replaced)
    try:
        folder.rename(target)
    except BaseException:
        if replaced is not None:
            replaced.rename(target)
        raise
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)
