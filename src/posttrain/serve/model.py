"""A model to talk to: adapters folded in once or worn in turns, answers from the local slot engine."""

from __future__ import annotations

import dataclasses
import difflib
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from posttrain.config import GenerationConfig, RunConfig, load_config
from posttrain.data.formats import ROLE_NAMES, Message
from posttrain.data.template import Template
from posttrain.errors import UserError
from posttrain.models.adapters import lora_layers, merged
from posttrain.models.backbone import load_backbone
from posttrain.models.forward import prepare_trunk
from posttrain.models.lineage import check_template
from posttrain.models.merging import dress
from posttrain.models.source import Source, find_source
from posttrain.models.variants import ONLY, put_on_all
from posttrain.rollout import Completion, Prompt, Sampler, SamplingParams, SlotSampler, learned_positions
from posttrain.serve.fallback import LibrarySampler
from posttrain.serve.streaming import stream_tokens

Messages = Sequence[Mapping[str, Any]]
FinishReason = Literal["stop", "length"]


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
    finish_reason: FinishReason


@dataclass(frozen=True, kw_only=True)
class Outfit:
    """What a model wears, and how it is then talked to.

    Attributes:
        source: the model with its adapters. template: of the tokenizer that the outermost of them brings.
        notes: sentences for the user.
    """

    source: Source
    template: Template
    notes: tuple[str, ...]

    @classmethod
    def configured(cls, config: RunConfig, adapters: Sequence[str]) -> Outfit:
        """Read, not loaded.

        Raises:
            UserError: a folder is missing or not what it should be, or there is no template to be had.
        """
        source = find_source(replace(config, model=replace(config.model, adapter_name_or_path=tuple(adapters))))
        template = Template.configured(source.tokenizer, config.data)
        notes = []
        if source.last_lineage is not None and source.last_lineage.stage == "rm":
            notes.append(f"{source.outermost} is a reward model: it was trained to score answers, not to give them")
        other = check_template(
            source.last_lineage,
            template.fingerprint,
            folder=source.outermost,
            key="template",
            example=template.example,
            allow_mismatch=True,
        )
        return cls(source=source, template=template, notes=(*notes, other) if other else tuple(notes))


class ChatModel:
    """A language model with its adapters, ready to answer.

    Every call draws fresh random numbers; a new ChatModel with the same seed repeats them call by call.

    Attributes:
        config: as it was loaded. model: the transformers model. is_packed: whether the slot engine decodes it.
        variants: names of what it can wear. variant: what it wears. template, tokenizer: of that.
    """

    def __init__(
        self,
        config: RunConfig | Mapping[str, Any] | str | Path,
        *,
        variants: Mapping[str, Sequence[str]] | None = None,
        notify: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        """Load the model.

        Args:
            config: keys as in a YAML file (``model_name_or_path``, ``adapter_name_or_path``, ``template``, ...), the
                path of such a file, or a loaded configuration.
            variants: name -> adapter folders, to be worn in turns instead of ``adapter_name_or_path``; the first of
                them is worn until ``wear`` says otherwise.
            notify: receives sentences for the user.

        Raises:
            UserError: bad configuration or folders, or an adapter of another backbone.
        """
        self.config = config if isinstance(config, RunConfig) else load_config(config, command="chat")
        for sentence in self.config.warnings:
            notify(sentence)
        folders = dict(variants) if variants else {ONLY: self.config.model.adapter_name_or_path}
        self._outfits = {name: Outfit.configured(self.config, adapters) for name, adapters in folders.items()}
        self.model = load_backbone(self.config)
        for outfit in self._outfits.values():
            allowed = self.config.model.allow_mismatch
            self.mark = outfit.source.check(self.model, allow_mismatch=allowed, notify=notify)
            for note in outfit.notes:
                notify(note)
        self._wears = self._put_on()
        self.model.eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # said below, in other words
            self.is_packed = prepare_trunk(self.model)
        if not self.is_packed:
            notify(f"{type(self.model).__name__} is decoded by transformers, one prompt at a time: it cannot be packed")
        self._calls = 0
        self._worn = ExitStack()
        self.variant: str | None = None
        self.wear(self.variants[0])

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of what it can wear."""
        return tuple(self._outfits)

    def wear(self, name: str) -> None:
        """Answer as this variant from now on."""
        outfit = self._outfits[name]
        if name != self.variant:
            self.variant = None  # what comes next may be interrupted
            self._worn.close()
            if self._wears is not None:
                self._worn.enter_context(merged(self.model, self._wears[name]))
        self.variant, self.template, self.tokenizer = name, outfit.template, outfit.source.tokenizer

    def _put_on(self) -> dict[str, tuple[str, ...]] | None:
        """Variant -> the adapters that are merged while it is worn; None where the weights stay as they are."""
        chains = {name: outfit.source.links for name, outfit in self._outfits.items()}
        if len(chains) == 1:
            dress(self.model, *chains.values())
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # peft's, that there will be several adapters
            names = put_on_all(self.model, list(chains.values()))
        if not any(True for _ in lora_layers(self.model)):
            return None
        return {
            name: tuple(worn for link in links if (worn := names[link.fingerprint])) for name, links in chains.items()
        }

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
        settings = self.settings(generation)
        prompt = self.template.encode_prompt(checked_messages(messages, system))
        (completions,) = self.complete([prompt], self._fitted(settings, len(prompt)))
        return [
            Response(
                response_text=self.text_of(completion, settings),
                response_length=len(completion.token_ids),
                prompt_length=len(prompt),
                finish_reason="stop" if completion.ended else "length",
            )
            for completion in completions
        ]

    def stream_chat(
        self, messages: Messages, system: str | None = None, **generation: Any
    ) -> Generator[str, None, FinishReason]:
        """One answer in pieces of text, each as soon as it is whole; joined they are the answer's text.

        Args and raises: as ``chat``; ``num_return_sequences`` is taken as 1. Returns why the answer ended.
        """
        prompt = self.template.encode_prompt(checked_messages(messages, system))
        settings = self._fitted(self.settings(generation), len(prompt))
        params = self._params(settings)
        if not self.is_packed:
            (completion,) = LibrarySampler(self.model).generate([Prompt(input_ids=tuple(prompt), index=0)], params)
            yield self.text_of(completion, settings)
            return "stop" if completion.ended else "length"
        ids: list[int] = []
        shown = ""
        reason: FinishReason = "length"
        for token in stream_tokens(self.model, prompt, params):
            if token in params.stop_token_ids:
                reason = "stop"
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
        return reason

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

    def complete_each(
        self, prompts: Mapping[int, Sequence[int]], settings: GenerationConfig | None = None, *, num_slots: int = 16
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Completions of rendered prompts, each prompt's as soon as all are there.

        Args:
            prompts: number -> token ids. The number decides about the random numbers: drawn alone, a prompt gets the
                completions that it gets among others.
            settings, num_slots: as for ``complete``.

        Yields:
            (number, completions).
        """
        settings = settings or self.config.generation
        sampler = SlotSampler(self.model, num_slots=num_slots) if self.is_packed else LibrarySampler(self.model)
        asked = [
            Prompt(input_ids=tuple(ids), index=number, samples=settings.num_return_sequences)
            for number, ids in prompts.items()
        ]
        for place, completions in sampler.generate_each(asked, self._params(settings)):
            yield asked[place].index, completions

    def text_of(self, completion: Completion, settings: GenerationConfig | None = None) -> str:
        """A completion's text, without the token that ended it."""
        ids = completion.token_ids[:-1] if completion.ended else completion.token_ids
        return self._decode(ids, settings or self.config.generation)

    def _decode(self, ids: Sequence[int], settings: GenerationConfig) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=settings.skip_special_tokens))

    def settings(self, overrides: Mapping[str, Any]) -> GenerationConfig:
        """The configured way of drawing with some changes, checked as a configuration file is.

        Raises:
            UserError: a key that is none, or a value that it cannot have.
        """
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

    def _fitted(self, settings: GenerationConfig, length: int) -> GenerationConfig:
        """With ``max_new_tokens`` that the model has positions for behind a prompt of ``length`` tokens.

        Raises:
            UserError: there is no room for one.
        """
        limit = learned_positions(self.model)
        if limit is None or length + settings.max_new_tokens <= limit:
            return settings
        if length >= limit:
            raise UserError(
                f"the conversation has {length} tokens, and the model reads {limit} in all, its answer included: begin "
                "a new one, or leave out some of it"
            )
        room = limit - length
        return replace(settings, max_new_tokens=room, min_new_tokens=min(settings.min_new_tokens, room))

    def _params(self, settings: GenerationConfig) -> SamplingParams:
        self._calls += 1
        return SamplingParams.configured(
            settings,
            stop_token_ids=self.template.stop_token_ids,
            seed=self.config.train.seed,
            iteration=self._calls - 1,
        )


def checked_messages(messages: Messages, system: str | None) -> list[Message]:
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
