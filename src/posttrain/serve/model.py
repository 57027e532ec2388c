"""A model to talk to: adapters folded in once, answers from the local slot engine."""

from __future__ import annotations

import dataclasses
import difflib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from posttrain.config import GenerationConfig, RunConfig, load_config
from posttrain.data.formats import ROLE_NAMES, Message
from posttrain.data.template import Template
from posttrain.errors import UserError
from posttrain.models.backbone import load_backbone
from posttrain.models.forward import prepare_trunk
from posttrain.models.lineage import check_template
from posttrain.models.merging import dress
from posttrain.models.source import find_source
from posttrain.rollout import Completion, Prompt, Sampler, SamplingParams, SlotSampler
from posttrain.serve.fallback import LibrarySampler
from posttrain.serve.streaming import stream_tokens

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Response:
    """One answer.

    Attributes:
        response_text: decoded, without the token that ended it.
        response_length: tokens, the one that ended it included. prompt_length: tokens of the rendered chat.
        finish_reason: "stop" where the answer ended by itself, "length" where max_new_tokens cut it.
    """

    response_text: str
    response_length: int
    prompt_length: int
    finish_reason: Literal["stop", "length"]


class ChatModel:
    """A language model with its adapters, ready to answer.

    Every call draws fresh random numbers; a new ChatModel with the same seed repeats them call by call.
    """

    def __init__(
        self,
        config: RunConfig | Mapping[str, Any] | str | Path,
        *,
        notify: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        """Load the model.

        Args:
            config: keys as in a YAML file (``model_name_or_path``, ``adapter_name_or_path``, ``template``, ...), the
                path of such a file, or a loaded configuration.
            notify: receives sentences for the user.

        Raises:
            UserError: bad configuration or folders, or an adapter of another backbone.
        """
        self.config = config if isinstance(config, RunConfig) else load_config(config, command="chat")
        for sentence in self.config.warnings:
            notify(sentence)
        source = find_source(self.config)
        self.tokenizer = source.tokenizer
        self.template = Template.configured(source.tokenizer, self.config.data)
        if source.last_lineage is not None and source.last_lineage.stage == "rm":
            notify(f"{source.outermost} is a reward model: it was trained to score answers, not to give them")
        self.model = load_backbone(self.config)
        source.check(self.model, allow_mismatch=self.config.model.allow_mismatch, notify=notify)
        note = check_template(
            source.last_lineage,
            self.template.fingerprint,
            folder=source.outermost,
            key="template",
            example=self.template.example,
            allow_mismatch=True,
        )
        if note:
            notify(note)
        dress(self.model, source.links)
        self.model.eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # said below, in other words
            self.is_packed = prepare_trunk(self.model)
        if not self.is_packed:
            notify(f"{type(self.model).__name__} is decoded by transformers, one prompt at a time: it cannot be packed")
        self._calls = 0

    def chat(self, messages: Messages, system: str | None = None, **generation: Any) -> list[Response]:
        """Answers to a chat.

        Args:
            messages: ``{"role": "user", "content": "..."}`` and so on, the last one the user's.
            system: a system message to put in front.
            generation: keys of the configuration for this call only, such as ``temperature`` or ``max_new_tokens``.

        Returns:
            ``num_return_sequences`` answers.

        Raises:
            UserError: messages or generation keys that cannot be used.
        """
        settings = self._settings(generation)
        prompt = self.template.encode_prompt(_messages(messages, system))
        (completions,) = self.complete([prompt], settings)
        return [
            Response(
                response_text=self.text_of(completion, settings),
                response_length=len(completion.token_ids),
                prompt_length=len(prompt),
                finish_reason="stop" if completion.ended else "length",
            )
            for completion in completions
        ]

    def stream_chat(self, messages: Messages, system: str | None = None, **generation: Any) -> Iterator[str]:
        """One answer in pieces of text, each as soon as it is whole; joined they are the answer's text.

        Args and raises: as ``chat``; ``num_return_sequences`` is taken as 1.
        """
        settings = self._settings(generation)
        prompt = self.template.encode_prompt(_messages(messages, system))
        params = self._params(settings)
        if not self.is_packed:
            (completion,) = LibrarySampler(self.model).generate([Prompt(input_ids=tuple(prompt), index=0)], params)
            yield self.text_of(completion, settings)
            return
        ids: list[int] = []
        shown = ""
        for token in stream_tokens(self.model, prompt, params):
            if token in params.stop_token_ids:
                break
            ids.append(token)
            text = self._decode(ids, settings)
            # a character may take several tokens, the first of which decode to a replacement character
            if len(text) > len(shown) and not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text
        rest = self._decode(ids, settings)[len(shown) :]
        if rest:
            yield rest

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        settings: GenerationConfig | None = None,
        *,
        num_slots: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Completion]]:
        """Completions of rendered prompts, ``num_return_sequences`` of each.

        Args:
            prompts: token ids, the generation prompt included.
            settings: None takes the configuration's.
            num_slots: sequences decoded side by side; changes no result. None is one for each answer.
            progress: called with (completions done, completions in all).
        """
        settings = settings or self.config.generation
        samples = settings.num_return_sequences
        sampler: Sampler = LibrarySampler(self.model)
        if self.is_packed:
            sampler = SlotSampler(self.model, num_slots=num_slots or samples)
        asked = [Prompt(input_ids=tuple(ids), index=i, samples=samples) for i, ids in enumerate(prompts)]
        drawn = sampler.generate(asked, self._params(settings), progress)
        return [drawn[start : start + samples] for start in range(0, len(drawn), samples)]

    def text_of(self, completion: Completion, settings: GenerationConfig | None = None) -> str:
        """A completion's text, without the token that ended it."""
        ids = completion.token_ids[:-1] if completion.ended else completion.token_ids
        return self._decode(ids, settings or self.config.generation)

    def _decode(self, ids: Sequence[int], settings: GenerationConfig) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=settings.skip_special_tokens))

    def _settings(self, overrides: Mapping[str, Any]) -> GenerationConfig:
        """The configured way of drawing with this call's changes, checked as a configuration file is."""
        if not overrides:
            return self.config.generation
        known = [field.name for field in dataclasses.fields(GenerationConfig)]
        for key in overrides:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
                raise UserError(f"unknown generation key {key!r}; {hint}")
        changed = {**self.config.to_flat(), **overrides}
        return load_config(changed, command="chat").generation

    def _params(self, settings: GenerationConfig) -> SamplingParams:
        self._calls += 1
        return SamplingParams.configured(
            settings,
            stop_token_ids=self.template.stop_token_ids,
            seed=self.config.train.seed,
            iteration=self._calls - 1,
        )


def _messages(messages: Messages, system: str | None) -> list[Message]:
    """Chat messages as the template takes them.

    Raises:
        UserError: a message without role or text, or of an unknown role.
    """
    if isinstance(messages, str | Mapping) or not all(isinstance(message, Mapping) for message in messages):
        raise UserError('messages are a list such as [{"role": "user", "content": "Hello"}]')
    found = []
    for number, message in enumerate(messages, start=1):
        role, content = str(message.get("role")), message.get("content")
        if role not in ROLE_NAMES:
            raise UserError(f"message {number}: role is {role!r}; use system, user or assistant")
        if not isinstance(content, str):
            raise UserError(f"message {number}: content is {type(content).__name__}, not text")
        found.append(Message(ROLE_NAMES[role], content))
    if system is not None:
        if found and found[0].role == "system":
            raise UserError("the messages begin with a system message already; leave out `system`")
        found.insert(0, Message("system", system))
    return found
