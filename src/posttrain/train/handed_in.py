"""What the author of an own loop hands in, checked: prompts, responses, rewards, and the configuration."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.config import GenerationConfig, RunConfig, load_config
from posttrain.config.documents import read_document
from posttrain.data.encode import EncodedPrompt, encode_prompt
from posttrain.data.formats import ROLE_NAMES, Message, PromptExample, UnusableRowError
from posttrain.data.template import Template
from posttrain.errors import UserError
from posttrain.rollout import Completion
from posttrain.types import RolloutBatch

Chat = str | Sequence[Mapping[str, Any]]
"""A question, or messages such as ``[{"role": "user", "content": "Hello"}]``."""

_UNREAD = ("dataset", "eval_dataset", "val_size", "reward_model", "reward_funcs", "alarm_reward_funcs")
_KINDS_WITHOUT_END = ("constant", "constant_with_warmup", "inverse_sqrt")


@dataclass(frozen=True, kw_only=True)
class SampledResponse:
    """A completion as ``PPOTrainer.generate`` drew it.

    Attributes:
        prompt: as it was given.
        text: decoded, special tokens left out.
        token_ids: its tokens, the one that ended it included. logprobs: of each of them, when it was drawn.
        ended: True where it ended by itself, False where max_new_tokens cut it.
        temperature: of the policy that ``logprobs`` are of; 1 where the most probable token was taken.
    """

    prompt: Chat
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    ended: bool
    temperature: float


def loop_config(source: RunConfig | Mapping[str, Any] | str | Path) -> tuple[RunConfig, tuple[str, ...]]:
    """The configuration of an own loop, and sentences about what it leaves unread.

    Raises:
        UserError: as ``load_config``; another stage; a learning rate that falls towards an end nobody named.
    """
    if isinstance(source, Mapping):
        source = {"stage": "ppo", **source}
    config = source if isinstance(source, RunConfig) else load_config(source, command="loop")
    if config.method.stage != "ppo":
        raise UserError(f"an own loop is stage ppo, and the configuration says stage: {config.method.stage}")
    unread = [f"`{key}`" for key in _UNREAD if key in config.sources and config.value(key)]
    notes: tuple[str, ...] = ()
    if unread:
        notes = (f"{', '.join(unread)} changes nothing in an own loop: prompts and rewards are those given to step",)
    reward = dataclasses.replace(config.reward, reward_model=None, reward_funcs=())
    return dataclasses.replace(config, reward=reward, train=_without_end(config)), (*config.warnings, *notes)


def loop_keys(source: RunConfig | Mapping[str, Any] | str | Path | None) -> dict[str, Any]:
    """The keys that a configuration was written with, for others to be put over them.

    Raises:
        UserError: a file cannot be read, or it is no configuration.
    """
    if source is None or isinstance(source, Mapping):
        return dict(source or {})
    if isinstance(source, RunConfig):
        return {key: value for key, value in source.to_flat().items() if key in source.sources}
    if isinstance(source, str | Path):
        return dict(read_document(source).data)
    raise UserError(
        f"config is a {type(source).__name__}; give keys as a mapping, such as {{'learning_rate': 1.41e-5}}, or the "
        "path of a YAML file"
    )


def completion_rows(
    step: int, batch: Mapping[str, Sequence[Any]], rewards: Sequence[float] | Tensor
) -> list[dict[str, Any]]:
    """Rows for ``completions.jsonl`` from the columns of a batch, ``query`` and ``response`` under their names there.

    Raises:
        UserError: columns of another length than the rewards.
    """
    given = [float(reward) for reward in rewards]
    for name, values in batch.items():
        if len(values) != len(given):
            raise UserError(
                f"log_stats was given {len(given)} rewards and {len(values)} values of {name!r}: give one for each row"
            )
    names = {"query": "prompt", "response": "completion"}
    rows = zip(*batch.values(), strict=True) if batch else ((),) * len(given)
    return [
        {
            "step": step,
            **{names.get(name, name): getattr(value, "text", value) for name, value in zip(batch, row, strict=True)},
            "reward": reward,
        }
        for row, reward in zip(rows, given, strict=True)
    ]


def falls(config: RunConfig) -> bool:
    """Whether the learning rate depends on the number of steps in all."""
    return config.train.lr_scheduler_type not in _KINDS_WITHOUT_END or config.train.warmup_ratio > 0


def _without_end(config: RunConfig) -> Any:
    """The training keys; without ``max_steps`` the learning rate stays where it is."""
    train = config.train
    if train.max_steps > 0 or not falls(config):
        return train
    causes = {"lr_scheduler_type": train.lr_scheduler_type not in _KINDS_WITHOUT_END, "warmup_ratio": True}
    for key, is_cause in causes.items():
        if is_cause and key in config.sources and config.value(key):
            raise UserError(
                f"`{key}: {config.value(key)}` needs `max_steps`: how many times the loop is going to call step; or "
                "write lr_scheduler_type: constant"
            )
    return dataclasses.replace(train, lr_scheduler_type="constant_with_warmup")


def generation_settings(config: RunConfig, overrides: Mapping[str, Any]) -> GenerationConfig:
    """The configured way of drawing with one call's changes, checked as a configuration is.

    Raises:
        UserError: an unknown key or a value out of range.
    """
    if not overrides:
        return config.generation
    known = [field.name for field in dataclasses.fields(GenerationConfig)]
    for key in overrides:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"unknown generation key {key!r}; {hint}")
    return load_config({**config.to_flat(), **overrides}, command="loop").generation


def encoded_prompts(prompts: Sequence[Chat], template: Template, cutoff_len: int) -> list[EncodedPrompt]:
    """Prompts as the template renders them.

    Raises:
        UserError: no prompt, one that is neither text nor messages, or one that is longer than ``cutoff_len``.
    """
    if isinstance(prompts, str | Mapping) or not isinstance(prompts, Sequence):
        raise UserError('prompts are a list, such as ["Name a fruit."]')
    if not prompts:
        raise UserError("prompts are empty: give at least one")
    found = []
    for number, prompt in enumerate(prompts):
        example = PromptExample(prompt=messages_of(prompt, f"prompts[{number}]"))
        try:
            found.append(encode_prompt(example, template, cutoff_len)[0])
        except UnusableRowError as error:
            length = len(template.encode_prompt(example.prompt))
            raise UserError(
                f"prompts[{number}] has {length} tokens, more than cutoff_len ({cutoff_len}); shorten it, or raise "
                "cutoff_len"
            ) from error
        except UserError as error:
            raise UserError(f"prompts[{number}]: {error}") from error
    return found


def messages_of(prompt: Chat, where: str) -> tuple[Message, ...]:
    """A prompt as messages; a text is one message of the user.

    Raises:
        UserError: it is neither text nor messages.
    """
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    is_list = isinstance(prompt, Sequence) and not isinstance(prompt, bytes) and len(prompt) > 0
    if not is_list or not all(isinstance(message, Mapping) for message in prompt):
        raise UserError(f'{where} is neither text nor messages such as [{{"role": "user", "content": "Hello"}}]')
    found = []
    for message in prompt:
        role, content = str(message.get("role")), message.get("content")
        if role not in ROLE_NAMES or not isinstance(content, str):
            raise UserError(f"{where}: a message needs a role (system, user or assistant) and its content as text")
        found.append(Message(ROLE_NAMES[role], content))
    return tuple(found)


def reward_column(rewards: Sequence[float] | Tensor, count: int) -> Tensor:
    """[B] float32.

    Raises:
        UserError: another number of rewards than of responses, or one that is no finite number.
    """
    values = list(rewards) if isinstance(rewards, Iterable) and not isinstance(rewards, str) else None
    if values is None or len(values) != count:
        given = "one value" if values is None else f"{len(values)} rewards"
        raise UserError(f"step was given {count} responses and {given}: give one number for each response, in order")
    found = []
    for number, value in enumerate(values):
        try:
            found.append(float(value))
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"rewards[{number}] is {value!r}, not a number") from error
        if not math.isfinite(found[-1]):
            raise UserError(f"rewards[{number}] is {found[-1]}; a reward is a finite number")
    return torch.tensor(found, dtype=torch.float32)


class GivenReward:
    """Rewards that are known already."""

    def __init__(self, rewards: Tensor) -> None:
        """``rewards``: [B], in the order of the batch."""
        self._rewards = rewards

    def __call__(self, batch: RolloutBatch) -> Tensor:
        """[B] as given."""
        return self._rewards.to(batch.input_ids.device)


def check_positions(rows: Sequence[tuple[EncodedPrompt, Completion]], text_config: Any) -> None:
    """Every row fits into the positions that the model has learned; rotary ones have no end.

    Raises:
        UserError: names the first that does not.
    """
    limit = getattr(text_config, "max_position_embeddings", None)
    if getattr(text_config, "rope_parameters", None) is not None or not limit:
        return
    for number, (prompt, completion) in enumerate(rows):
        length = len(prompt) + len(completion.token_ids)
        if length > limit:
            raise UserError(
                f"responses[{number}] with its prompt has {length} tokens, more than the model's {limit} positions"
            )


def rows_of(
    prompts: Sequence[Chat],
    responses: Sequence[str | SampledResponse],
    template: Template,
    *,
    cutoff_len: int,
    max_new_tokens: int,
) -> list[tuple[EncodedPrompt, Completion]]:
    """Each response with its prompt; one that is plain text is closed by the end of turn, its log-probabilities 0.

    Several sampled responses to each prompt may stand side by side, as ``generate`` returns them.

    Raises:
        UserError: numbers that do not fit, a response to another prompt, or one that is too long.
    """
    encoded = encoded_prompts(prompts, template, cutoff_len)
    if isinstance(responses, str) or not isinstance(responses, Sequence) or not responses:
        raise UserError("responses are a list: what generate returned, or texts")
    each, odd = divmod(len(responses), len(encoded))
    sampled = all(isinstance(response, SampledResponse) for response in responses)
    if odd or each == 0 or (each > 1 and not sampled):
        raise UserError(
            f"step was given {len(encoded)} prompts and {len(responses)} responses: give each response its prompt"
        )
    rows = []
    for number, response in enumerate(responses):
        prompt, where = encoded[number // each], f"responses[{number}]"
        if isinstance(response, SampledResponse):
            if messages_of(response.prompt, where) != prompt.messages:
                raise UserError(f"{where} was sampled for another prompt than prompts[{number // each}]")
            ids, logprobs, ended = list(response.token_ids), list(response.logprobs), response.ended
        elif isinstance(response, str):
            ids, ended = template.encode_answer(response), True
            logprobs = [0.0] * len(ids)
            if len(ids) > max_new_tokens:
                raise UserError(
                    f"{where} has {len(ids)} tokens with its end of turn, more than max_new_tokens "
                    f"({max_new_tokens}); shorten it, or raise max_new_tokens"
                )
        else:
            raise UserError(f"{where} is a {type(response).__name__}; give what generate returned, or text")
        completion = Completion(token_ids=ids, logprobs=logprobs, ended=ended, prompt_index=number, sample_index=0)
        rows.append((prompt, completion))
    return rows
