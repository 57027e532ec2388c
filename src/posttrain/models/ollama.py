"""The Modelfile by which Ollama runs an exported folder: its chat template in Go's language, where that can say it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from posttrain.config import GenerationConfig
from posttrain.data.formats import Message
from posttrain.data.template import Template
from posttrain.errors import UserError

NAME = "Modelfile"
_CONTEXT = 4096
"""Tokens that Ollama keeps room for, where the model reads as many."""
_QUOTES = '"""'
# What `ollama create` reads from safetensors, by the architecture in config.json.
_READ = (
    *("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"),
    *("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Phi3ForCausalLM", "CohereForCausalLM"),
    *("Llama4ForConditionalGeneration", "Gemma3ForConditionalGeneration", "GptOssForCausalLM"),
)
# What would begin an action or end the quotes: two of them, or one at the end.
_SPECIAL = re.compile(r'\{{2,}|\{$|"{3,}|"+$')
_MARK = "\ue000{}\ue001"
_SYSTEM, _FIRST, _ANSWER, _SECOND = (_MARK.format(number) for number in range(4))


class InexpressibleError(Exception):
    """A chat template that Go's language cannot say, and why."""


@dataclass(frozen=True, kw_only=True)
class Seams:
    """What a chat template writes between the messages of a chat.

    Attributes:
        alone: before the first question without a system message.
        around: before and behind the system message, up to the first question; None where it takes none.
        answer: between a question and the answer to it. question: between an answer and the next question.
        end: behind the last question, which waits for its answer.
    """

    alone: str
    around: tuple[str, str] | None
    answer: str
    question: str
    end: str

    @classmethod
    def probed(cls, template: Template) -> Seams:
        """Those of a template, found by rendering marked messages.

        Raises:
            InexpressibleError: it writes a chat in another way than message by message.
        """
        chat = (Message("user", _FIRST), Message("assistant", _ANSWER), Message("user", _SECOND))
        alone, answer, question, end = _split(_rendered(template, chat), _FIRST, _ANSWER, _SECOND)
        try:
            told = template.prompt_text((Message("system", _SYSTEM), *chat))
        except UserError:
            around = None
        else:
            before, behind, *_ = _split(told, _SYSTEM, _FIRST, _ANSWER, _SECOND)
            around = (before, behind)
        return cls(alone=alone, around=around, answer=answer, question=question, end=end)

    def text(self, messages: Sequence[Message]) -> str:
        """A chat that waits for an answer, as the template should render it."""
        parts = [self.alone]
        if messages[0].role == "system":
            assert self.around is not None
            parts = [self.around[0], messages[0].content, self.around[1]]
            messages = messages[1:]
        for number, message in enumerate(messages):
            between = self.answer if message.role == "assistant" else self.question
            parts += [between if number else "", message.content]
        return "".join((*parts, self.end))

    def go(self) -> str:
        """The template in Go's language: the same chat, and one whose last message is an answer to be gone on with."""
        head = _literal(self.alone)
        if self.around is not None:
            before, behind = map(_literal, self.around)
            head = f"{{{{ if .System }}}}{before}{{{{ .System }}}}{behind}{{{{ else }}}}{head}{{{{ end }}}}"
        return (
            head + "{{ $first := true }}{{ $waits := true }}{{ range .Messages }}"
            '{{ if eq .Role "user" }}{{ if $first }}{{ $first = false }}{{ else }}'
            + _literal(self.question)
            + '{{ end }}{{ .Content }}{{ $waits = true }}{{ else if eq .Role "assistant" }}'
            + _literal(self.answer)
            + "{{ .Content }}{{ $waits = false }}{{ end }}{{ end }}{{ if $waits }}"
            + _literal(self.end)
            + "{{ end }}"
        )

    def without_start(self, token: str) -> Seams:
        """Without the token at the beginning, for a program that puts it there itself."""
        around = None if self.around is None else (self.around[0].removeprefix(token), self.around[1])
        return Seams(
            alone=self.alone.removeprefix(token),
            around=around,
            answer=self.answer,
            question=self.question,
            end=self.end,
        )


def checked_seams(template: Template) -> Seams:
    """The seams of a template, after comparing chats of several shapes with what it renders.

    Raises:
        InexpressibleError: one of them differs; the message says which.
    """
    seams = Seams.probed(template)
    turns = (
        *(
            Message("user", "你好！"),
            Message("assistant", "好。"),
            Message("user", '1 + "2"?'),
            Message("assistant", "3"),
        ),
        Message("user", "Why?"),
    )
    system = (Message("system", "Be {{brief}}."),) if seams.around is not None else ()
    for length in (1, 3, 5):
        for opening in ((), system):
            chat = (*opening, *turns[:length])
            if seams.text(chat) != _rendered(template, chat):
                what = "a system message" if opening else "no system message"
                raise InexpressibleError(
                    f"with {what} and {length // 2 + 1} question(s) it is no sum of what it writes for each message"
                )
    return seams


def modelfile(
    template: Template, model: PreTrainedModel, generation: GenerationConfig, default_system: str | None
) -> tuple[str, tuple[str, ...]]:
    """The text of the file, and sentences for the user.

    Args:
        template: of the model, without a default system message of the configuration.
        model: as it is exported.
        generation: how answers are drawn.
        default_system: the configuration's system message for chats that have none.
    """
    notes: list[str] = []
    architecture = type(model).__name__
    if architecture not in _READ:
        notes.append(
            f"{NAME}: `ollama create` is not known to read {architecture} from safetensors; convert the folder to GGUF "
            "with llama.cpp, and name that file behind FROM"
        )
    lines = [f"# ollama create NAME -f {NAME}", "FROM ."]
    try:
        seams = checked_seams(template)
    except InexpressibleError as reason:
        notes.append(
            f"{NAME}: the chat template cannot be written in Ollama's language ({reason}); add a TEMPLATE of your own, "
            "or Ollama renders chats in another way than training did"
        )
        lines.append("# The chat template cannot be written in this language: add a TEMPLATE of your own.")
    else:
        seams, system, said = _placed(seams, template, default_system)
        notes += said
        lines.append(f"TEMPLATE {_QUOTES}{seams.go()}{_QUOTES}")
        if system:
            lines.append(f"SYSTEM {_QUOTES}{system}{_QUOTES}")
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in _stops(template)]
    lines += [f"PARAMETER {name} {value:g}" for name, value in _parameters(generation, model).items()]
    return "\n".join(lines) + "\n", tuple(notes)


def write_modelfile(
    folder: Path, template: Template, model: PreTrainedModel, generation: GenerationConfig, default_system: str | None
) -> tuple[str, ...]:
    """Put the file into an exported folder; returns sentences for the user."""
    text, notes = modelfile(template, model, generation, default_system)
    (folder / NAME).write_text(text, encoding="utf-8", newline="\n")
    return notes


def _placed(seams: Seams, template: Template, default_system: str | None) -> tuple[Seams, str | None, list[str]]:
    """The seams as Ollama needs them, its SYSTEM, and sentences for the user."""
    notes = []
    if "strftime_now" in template.chat_template:
        notes.append(f"{NAME}: the chat template writes today's date, which stays that of this export")
    padded = (Message("user", " a "),)
    if seams.text(padded) != _rendered(template, padded):
        notes.append(f"{NAME}: the chat template cuts blanks around messages off, which Ollama's language cannot")
    if seams.around is None and default_system:
        notes.append(f"{NAME}: the chat template has no place for a system message; default_system is left out")
        default_system = None
    system = default_system
    if seams.around is not None and system is None:
        before, behind = seams.around
        fits = seams.alone.startswith(before) and seams.alone.endswith(behind)
        if fits and len(seams.alone) > len(before) + len(behind):
            system = seams.alone[len(before) : len(seams.alone) - len(behind)]
    if system and (_QUOTES in system or system.endswith('"')) and seams.around is not None:
        # SYSTEM has no way of saying it; the template has
        seams = Seams(
            alone=f"{seams.around[0]}{system}{seams.around[1]}",
            around=seams.around,
            answer=seams.answer,
            question=seams.question,
            end=seams.end,
        )
        system = None
    tokenizer: Any = template.tokenizer
    begins = list(tokenizer("a").input_ids)[:1]
    if tokenizer.bos_token_id is not None and begins == [tokenizer.bos_token_id]:
        seams = seams.without_start(str(tokenizer.bos_token))
    return seams, system, notes


def _stops(template: Template) -> list[str]:
    """Texts of the tokens that end an answer."""
    return [str(template.tokenizer.decode([token])) for token in template.stop_token_ids]


def _parameters(generation: GenerationConfig, model: PreTrainedModel) -> dict[str, float]:
    config: Any = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or _CONTEXT
    found: dict[str, float] = {
        "num_ctx": min(int(limit), _CONTEXT),
        "temperature": generation.temperature if generation.do_sample else 0,
        "top_p": generation.top_p,
        "top_k": generation.top_k,
        "repeat_penalty": generation.repetition_penalty,
    }
    return {**found, **({"min_p": generation.min_p} if generation.min_p else {})}


def _rendered(template: Template, messages: Sequence[Message]) -> str:
    try:
        return template.prompt_text(messages)
    except UserError as error:
        raise InexpressibleError(str(error)) from error


def _split(text: str, *marks: str) -> list[str]:
    """The text around marks that stand in it once each, in this order."""
    parts = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            raise InexpressibleError("it leaves out, repeats or reorders messages")
        parts.append(before)
    return [*parts, text]


def _literal(text: str) -> str:
    """Text as it stands in a template of Go's between triple quotes, in front of an action or the end."""
    return _SPECIAL.sub(lambda found: f"{{{{ {json.dumps(found[0])} }}}}", text)


def _quoted(text: str) -> str:
    return f'"{text}"' if '"' not in text else f"{_QUOTES}{text}{_QUOTES}"
