"""From questions to jobs: which model is meant, what its tokens are, whether they fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posttrain.config import GenerationConfig
from posttrain.data.template import EncodedRow
from posttrain.errors import UserError
from posttrain.serve.scoring import FolderScorer
from posttrain.serve.server.jobs import Event, ScoreJob, TextJob
from posttrain.serve.server.models import Served, Voice
from posttrain.serve.server.questions import (
    ChatQuestion,
    CompletionQuestion,
    Question,
    chat_messages,
    json_object,
)
from posttrain.serve.server.refusals import RequestRefusedError, unknown_model

Send = Callable[[Event], None]


def chat_job(question: ChatQuestion, served: Served, defaults: GenerationConfig, send: Send) -> TextJob:
    """The job of answering a chat.

    Raises:
        RequestRefusedError: an unknown model, messages that cannot be rendered, or too many tokens.
    """
    voice = _voice(question.model, served)
    messages = chat_messages(question.messages)
    try:
        ids = voice.template.encode_prompt(messages)
    except UserError as error:
        raise RequestRefusedError(400, f"messages: {error}.", param="messages") from error
    return _job(question, served, voice, [ids], defaults, send)


def completion_job(question: CompletionQuestion, served: Served, defaults: GenerationConfig, send: Send) -> TextJob:
    """The job of continuing texts.

    Raises:
        RequestRefusedError: an unknown model, tokens that there are not, or too many.
    """
    voice = _voice(question.model, served)
    size = served.model.get_input_embeddings().weight.shape[0] if served.model is not None else 0
    prompts = []
    for number, prompt in enumerate(question.prompts()):
        ids = voice.tokens(prompt) if isinstance(prompt, str) else prompt
        if not ids:
            raise RequestRefusedError(400, f"prompt {number + 1} is empty.", param="prompt")
        strange = next((token for token in ids if not 0 <= token < size), None)
        if strange is not None:
            raise RequestRefusedError(
                400, f"prompt {number + 1} holds token {strange}; the model has {size}.", param="prompt"
            )
        prompts.append(ids)
    return _job(question, served, voice, prompts, defaults, send)


def score_job(body: bytes, served: Served, send: Send) -> ScoreJob:
    """The job of scoring texts or chats.

    A body holds ``input``, or as LLaMA-Factory has it ``messages``: a text or a list of texts, as the reward model
    should read them with their special tokens; or a chat that ends with an answer, or a list of such chats. Or it
    holds ``prompts`` and ``completions``, with ``messages`` or without, as ``reward_funcs: http`` posts them.

    Raises:
        RequestRefusedError: there is no reward model, it has another name, or the body is none of these.
    """
    values = json_object(body)
    scorer = served.scorer
    if scorer is None:
        raise RequestRefusedError(404, "This server has no reward model; start it with reward_model or stage: rm.")
    name = values.get("model")
    # LLaMA-Factory and reward_funcs: http ask for "model", whatever is served
    if name not in (None, "model", served.scorer_name):
        raise unknown_model(str(name), (served.scorer_name,))
    if "completions" in values:
        return ScoreJob(send, rows=_completed_rows(values, scorer))
    param = "input" if "input" in values else "messages"
    if param not in values:
        raise RequestRefusedError(400, "input is missing: texts, or chats that end with an answer.", param="input")
    items = _items(values[param], param)
    return ScoreJob(send, rows=[_row(item, scorer, f"{param}[{n}]") for n, item in enumerate(items)])


def _items(given: Any, param: str) -> list[Any]:
    """The texts or chats of a request, of which there may be one without a list around it."""
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        raise RequestRefusedError(
            400, f"{param} must be a text, a chat, or a list of them that is not empty.", param=param
        )
    return [given] if isinstance(given[0], Mapping) else given


def _row(item: Any, scorer: FolderScorer, where: str) -> EncodedRow | None:
    """What the reward model reads of a text or a chat; None where a chat does not fit."""
    if isinstance(item, str):
        if not item:
            raise RequestRefusedError(400, f"{where} is empty.", param=where)
        return scorer.text_row(item)
    if not isinstance(item, list) or not all(isinstance(message, Mapping) for message in item):
        raise RequestRefusedError(400, f"{where} is neither a text nor a list of messages.", param=where)
    messages = chat_messages([dict(message) for message in item], where)
    if messages[-1].role != "assistant":
        raise RequestRefusedError(400, f"{where}: the last message must be the assistant's answer.", param=where)
    try:
        return scorer.chat_row(messages)
    except UserError as error:
        raise RequestRefusedError(400, f"{where}: {error}.", param=where) from error


def _completed_rows(values: Mapping[str, Any], scorer: FolderScorer) -> list[EncodedRow | None]:
    completions, chats = values["completions"], values.get("messages") or []
    prompts = values.get("prompts") or []
    beginnings: Sequence[Any] = chats or prompts
    lists = (completions, beginnings)
    if not all(isinstance(found, list) for found in lists) or len(completions) != len(beginnings) or not completions:
        raise RequestRefusedError(
            400, "completions and messages (or prompts) must be lists of one length, at least 1.", param="completions"
        )
    rows = []
    for number, (beginning, completion) in enumerate(zip(beginnings, completions, strict=True)):
        where = f"completions[{number}]"
        if not isinstance(completion, str):
            raise RequestRefusedError(400, f"{where} is not a text.", param=where)
        if isinstance(beginning, str):
            rows.append(_row(beginning + completion, scorer, where))
        else:
            rows.append(_row([*beginning, {"role": "assistant", "content": completion}], scorer, where))
    return rows


def _voice(name: str | None, served: Served) -> Voice:
    if not served.voices:
        raise RequestRefusedError(
            404,
            f"{served.scorer_name} is a reward model: it gives scores (POST /v1/score), not answers.",
            param="model",
        )
    if name is None:
        return next(iter(served.voices.values()))
    if name not in served.voices:
        raise unknown_model(name, tuple(served.voices))
    return served.voices[name]


def _job(
    question: Question,
    served: Served,
    voice: Voice,
    prompts: Sequence[Sequence[int]],
    defaults: GenerationConfig,
    send: Send,
) -> TextJob:
    longest = max(map(len, prompts))
    room = served.context - longest
    if room < 1:
        raise RequestRefusedError(
            400,
            f"The prompt has {longest} tokens; with its answer, the model takes {served.context}. Shorten it.",
            param="messages" if isinstance(question, ChatQuestion) else "prompt",
            code="context_length_exceeded",
        )
    return TextJob(
        send,
        voice=voice,
        prompts=[tuple(ids) for ids in prompts],
        samples=question.n,
        params=question.sampling(defaults, voice.template.stop_token_ids, room),
        stops=question.stop_strings(),
        alternatives=question.alternatives(),
    )
