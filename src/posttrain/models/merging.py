"""Adapters into weights for good, and a trunk with its score head as transformers' sequence classifier."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from posttrain.errors import UserError
from posttrain.models.adapters import add_adapter, check_stack, fold, wear
from posttrain.models.chains import Link
from posttrain.models.heads import ScalarHead
from posttrain.models.quantize import is_quantized

Answer = TypeVar("Answer")


def merge(model: PreTrainedModel, links: Sequence[Link], ask: Callable[[], Answer]) -> Answer:
    """Add adapters to the weights of a plain model, which is a plain model afterwards.

    Args:
        model: in float32.
        links: innermost first.
        ask: what to ask the model while it wears the adapters, before they are added.

    Returns:
        The answer.
    """
    if not links:
        return ask()
    names = [f"merged{number}" for number in range(len(links))]
    # DoRA means something on weights that hold all that is beneath it
    beneath = max((number for number, link in enumerate(links) if link.files.config.use_dora), default=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # peft's, of several adapters and of tied heads; both are meant
        for number, (name, link) in enumerate(zip(names, links, strict=True)):
            add_adapter(model, name, link.files.config, link.files.state, on_head=True)
            if number < beneath:
                _untie(model)
                fold(model, [name])
    _untie(model)
    wear(model, names[beneath:])
    answer = ask()
    fold(model, names[beneath:])
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            model.set_submodule(name, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
    return answer


def dress(model: PreTrainedModel, links: Sequence[Link]) -> None:
    """Let a model that only answers carry adapters for good: in its weights, or worn where those are quantised."""
    if not is_quantized(model):
        merge(model, links, lambda: None)
        return
    names = [f"worn{number}" for number in range(len(links))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # as above
        for name, link in zip(names, links, strict=True):
            add_adapter(model, name, link.files.config, link.files.state)
    if names:
        check_stack(model, names)
        wear(model, names)
    model.requires_grad_(False)


def classifier(model: PreTrainedModel, head: ScalarHead, pad_id: int) -> PreTrainedModel:
    """The model's trunk under a bias-free ``score`` layer with one label; the weights are shared, not copied.

    Raises:
        UserError: transformers has no such classifier for this architecture.
    """
    config: Any = model.config
    config.num_labels = 1
    config.id2label, config.label2id = {0: "reward"}, {"reward": 0}
    config.problem_type = "regression"
    for part in (config, config.get_text_config()):
        part.pad_token_id = pad_id
    try:
        with torch.device("meta"):
            made: Any = AutoModelForSequenceClassification.from_config(config)
        width = made.score.in_features
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"transformers has no sequence classifier with a score layer for {type(model).__name__}; keep the adapter "
            "folder, which PPO and `posttrain eval` read."
        ) from error
    setattr(made, made.base_model_prefix, getattr(model, model.base_model_prefix))
    made.score = nn.Linear(width, 1, bias=False)
    made.score.weight = nn.Parameter(head.weight.detach().clone().to(model.device), requires_grad=False)
    return made


def _untie(model: PreTrainedModel) -> None:
    """Give an output head that an adapter changes weights of its own: what it shares them with must not change."""
    head = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    base: Any = head.get_base_layer() if isinstance(head, LoraLayer) else None
    if base is not None and base.weight is embedding.weight:
        base.weight = nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
