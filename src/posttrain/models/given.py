"""Models and tokenizers of transformers that are in memory already, handed in by their owner."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from posttrain.config import RunConfig
from posttrain.errors import UserError
from posttrain.models.activations import fuse_activations
from posttrain.models.adapters import lora_layers
from posttrain.models.backbone import device, load_backbone, precision
from posttrain.models.fetch import resolve_model
from posttrain.models.heads import ScalarHead
from posttrain.models.lineage import fingerprint
from posttrain.models.load import (
    check_model_folder,
    choose_dtype,
    completed,
    first_line,
    load_tokenizer,
    quiet,
    read_json,
)
from posttrain.models.origin import has_output_head, holds
from posttrain.models.quantize import Quantization


class GivenModel:
    """A language model, or for a reward a sequence classifier, that somebody else holds too.

    A run works on modules of its own over the same tensors. Where the weights themselves train, those are the owner's,
    who finds them trained; with adapters the owner's model stays as it is.

    Attributes:
        model: as handed in. is_classifier: a reward is to be trained on its trunk.
        first_mark: fingerprint of the base that the first run with it stood on.
    """

    def __init__(self, model: object, *, scores: bool = False) -> None:
        """Take a model.

        Args:
            model: of transformers.
            scores: for a reward model, which a sequence classifier may begin.

        Raises:
            UserError: it is nothing that can be trained here.
        """
        self.model = _checked(model, scores=scores)
        self.is_classifier = _is_classifier(self.model)
        self.first_mark: str | None = None

    @property
    def name(self) -> str:
        """What to call it in sentences."""
        origin = str(self.model.name_or_path or "")
        return f"{type(self.model).__name__} from {origin}" if origin else type(self.model).__name__

    def home(self) -> str | None:
        """Name or folder from which these very weights load as a language model; None where there is none.

        Weights that were changed since they were loaded, or made in memory, have none.
        """
        name = str(self.model.name_or_path or "")
        if not name:
            return None
        try:
            folder = Path(resolve_model(name))
            check_model_folder(folder)
        except UserError:
            return None
        if not holds(folder, self.model) or (self.is_classifier and not has_output_head(folder, self.model)):
            return None
        return name

    def lies_in(self, folder: Path) -> bool:
        """Whether ``write`` has put these very weights there."""
        return (folder / "config.json").is_file() and holds(folder, self.model)

    def write(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Save it as a language model with its tokenizer, so that what is trained on it stands on a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        model = _language_model(self._view(trains_base=False)) if self.is_classifier else self.model
        with quiet():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

    def backbone(self, config: RunConfig, *, trains_base: bool) -> PreTrainedModel:
        """A frozen language model over the owner's tensors, as ``load_backbone`` gives one from a folder.

        Args:
            config: decides the precision, and whether adapters are going to be folded into the base.
            trains_base: the weights themselves train: the owner's model moves to the device, in float32.
        """
        dtype, _ = choose_dtype(precision(config, device(), trains_base=trains_base)[0], device(), "")
        if trains_base:
            _moved(self.model, dtype)
        # folding adapters and PiSSA change base weights in place
        own = bool(config.model.adapter_name_or_path) or config.method.pissa_init
        view = self._view(trains_base=trains_base, copies=own and not trains_base)
        view.requires_grad_(False)
        _moved(view.eval(), dtype)
        return _language_model(view) if self.is_classifier else view

    @property
    def head(self) -> ScalarHead | None:
        """The score head of a classifier with one label, to start from; None where there is none."""
        layer = self._score_layer
        if layer is None or layer.out_features != 1:
            return None
        head = ScalarHead(layer.in_features, "score", generator=torch.Generator())
        with torch.no_grad():
            head.weight.copy_(layer.weight.detach().float())
            if layer.bias is not None:
                head.bias.copy_(layer.bias.detach().float())
        return head

    def take_head(self, head: ScalarHead) -> None:
        """Give a classifier of one label the head that was trained beside it."""
        layer = self._score_layer
        if layer is not None and layer.out_features == 1:
            with torch.no_grad():
                layer.weight.copy_(head.weight.detach())

    def notes(self, *, trains_base: bool) -> tuple[str, ...]:
        """Sentences for the user about what becomes of the model."""
        found = []
        layer = self._score_layer
        if layer is not None and layer.out_features != 1:
            found.append(
                f"model: {type(self.model).__name__} has {layer.out_features} labels, and a reward is one number: a "
                "new head with one output is trained (num_labels=1 keeps the classifier's own)."
            )
        half = next(self.model.parameters()).dtype
        if trains_base and half != torch.float32:
            found.append(f"model: its weights themselves train, so they are float32 from now on, not {str(half)[6:]}.")
        return tuple(found)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Within the context a run may freeze and train the tensors; afterwards they ask for gradients as before."""
        asked = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        try:
            yield
        finally:
            for parameter, wanted in asked:
                parameter.requires_grad_(wanted)
                parameter.grad = None

    @property
    def _score_layer(self) -> nn.Linear | None:
        layer = getattr(self.model, "score", None) if self.is_classifier else None
        return layer if isinstance(layer, nn.Linear) else None

    def _view(self, *, trains_base: bool, copies: bool = False) -> PreTrainedModel:
        """Modules of one's own over the same tensors: what is put into them or switched does not reach the owner."""
        kept: dict[int, Any] = {id(buffer): buffer for buffer in self.model.buffers()}
        for parameter in self.model.parameters():
            tensor = parameter.detach().clone() if copies else parameter.detach()
            kept[id(parameter)] = parameter if trains_base else nn.Parameter(tensor, requires_grad=False)
        return fuse_activations(copy.deepcopy(self.model, kept))


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a run uses instead of loading it.

    Attributes:
        model: stands for ``model_name_or_path``, which names a folder with the same weights. tokenizer: for its own.
    """

    model: GivenModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None

    def backbone(self, config: RunConfig, *, trains_base: bool = False) -> PreTrainedModel:
        """The base model: the one in memory, else from its folder.

        Adapters of a reward stand on the language model of the folder, whose output head a classifier lacks, and a
        quantised base is made from the files.
        """
        apart = self.model is None or self.model.is_classifier or Quantization.configured(config.model) is not None
        if self.model is None or (apart and not trains_base):
            return load_backbone(config, trains_base=trains_base)
        return self.model.backbone(config, trains_base=trains_base)

    def mark(self, backbone: PreTrainedModel) -> str:
        """Fingerprint of that base, as it was when first asked for: a run that is taken up again has moved it."""
        if self.model is None:
            return fingerprint(backbone)
        self.model.first_mark = self.model.first_mark or fingerprint(backbone)
        return self.model.first_mark


NOTHING_GIVEN = Given()


def given_tokenizer(tokenizer: object, model: GivenModel | None, home: str | None) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer, so that the owner's keeps its template, with an end and a padding token as ours have them.

    Args:
        tokenizer: of transformers.
        model: that reads its tokens, if it is in memory. home: name or folder of the model, if it has one.

    Raises:
        UserError: it is no tokenizer, or writes tokens that the model does not know or reads as others.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UserError(
            f"tokenizer is a {type(tokenizer).__name__}; give a tokenizer of transformers, such as "
            "AutoTokenizer.from_pretrained(...), or leave it out to take the one beside the model"
        )
    vocabulary = tokenizer.get_vocab()
    rows = _rows(model, home)
    largest = max(vocabulary.values(), default=0)
    if rows is not None and largest >= rows:
        raise UserError(
            f"the tokenizer does not fit the model: it writes token ids up to {largest}, and the model has {rows} of "
            "them; load the tokenizer of the same model, or call model.resize_token_embeddings(len(tokenizer))"
        )
    beside = tokenizer_of(home) if home else None
    if beside is not None:
        theirs = beside.get_vocab()
        odd = sorted(token for token, number in theirs.items() if vocabulary.get(token) != number)
        if odd:
            raise UserError(
                f"the tokenizer does not fit the model: {len(odd)} of the {len(theirs)} tokens that {home} was trained "
                f"with have another id in it, {odd[0]!r} among them; load the tokenizer of the same model"
            )
    return completed(copy.deepcopy(tokenizer))


def tokenizer_of(name: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer that lies with a model; None where none does."""
    try:
        return load_tokenizer(resolve_model(name))
    except UserError:
        return None


def reads_alike(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers render and end texts the same way, their padding aside, which nothing depends on."""
    names = ("chat_template", "bos_token_id", "eos_token_id")
    if any(getattr(one, name) != getattr(other, name) for name in names) or one.get_vocab() != other.get_vocab():
        return False
    probe = "A probe: 3 words,\n  一些字 é"
    return list(one(probe)["input_ids"]) == list(other(probe)["input_ids"])


def _rows(model: GivenModel | None, home: str | None) -> int | None:
    """How many tokens the model knows."""
    if model is not None:
        embedding: Any = model.model.get_input_embeddings()
        return int(embedding.weight.shape[0])
    if home is None:
        return None
    settings = read_json(Path(resolve_model(home)) / "config.json")
    size = settings.get("vocab_size", (settings.get("text_config") or {}).get("vocab_size"))
    return size if isinstance(size, int) else None


def _moved(model: nn.Module, dtype: torch.dtype) -> None:
    model.to(device=device(), dtype=dtype)


def _is_classifier(model: PreTrainedModel) -> bool:
    return type(model).__name__.endswith("ForSequenceClassification")


def _checked(model: object, *, scores: bool) -> PreTrainedModel:
    kind = type(model).__name__
    if isinstance(model, PeftModel) or (isinstance(model, nn.Module) and any(True for _ in lora_layers(model))):
        raise UserError(
            "model has an adapter in it already; give the plain model, with a new adapter as "
            "peft_config=LoraConfig(...) or a saved one as adapter_name_or_path=FOLDER"
        )
    if not isinstance(model, PreTrainedModel):
        if isinstance(getattr(model, "pretrained_model", None), PreTrainedModel):
            raise UserError(f"model is a {kind}; give the language model inside it, model.pretrained_model")
        raise UserError(
            f"model is a {kind}; give a name, a folder, or a model of transformers such as "
            "AutoModelForCausalLM.from_pretrained(...)"
        )
    if getattr(model, "hf_quantizer", None) is not None or getattr(model, "is_quantized", False):
        raise UserError(f"model is a quantised {kind}; give its name or folder instead of the model in memory")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UserError(f"model is a {kind} some of whose weights are not in memory; load it without device_map")
    if _is_classifier(model):
        if not scores:
            raise UserError(
                f"model is a {kind}, which gives scores and no text; load it with AutoModelForCausalLM (a "
                "classifier is for RewardTrainer)"
            )
        if not hasattr(model, "score"):
            raise UserError(
                f"model is a {kind}, whose trunk is no language model's; a reward model here is trained on one, "
                "such as AutoModelForSequenceClassification.from_pretrained('gpt2', num_labels=1)"
            )
    elif not kind.endswith(("ForCausalLM", "LMHeadModel")):
        raise UserError(f"model is a {kind}, no causal language model; load it with AutoModelForCausalLM")
    return model


def _language_model(classifier: PreTrainedModel) -> PreTrainedModel:
    """The language model around a classifier's trunk; its output head is the embedding, and means nothing.

    Raises:
        UserError: there is none of this architecture.
    """
    try:
        with torch.device("meta"), quiet():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(classifier.config)
        prefix = model.base_model_prefix
        setattr(model, prefix, getattr(classifier, prefix))
        model.config = getattr(model, prefix).config
        model.config.tie_word_embeddings = True
        head: Any = model.get_output_embeddings()
        embedding: Any = model.get_input_embeddings()
        head.weight = embedding.weight
        absent = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"model: no language model of {type(classifier).__name__} ({first_line(error)})") from error
    if absent:
        raise UserError(f"model: {type(classifier).__name__} lacks {absent[0]} of a language model; give its name")
    return model.eval()
