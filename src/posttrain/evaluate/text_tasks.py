"""Tasks that score what models say, or what files of predictions say that they said, against references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posttrain.evaluate import match, text_scores
from posttrain.evaluate.bench import Bench, Found, as_records
from posttrain.evaluate.bootstrap import Measure, mean_of
from posttrain.evaluate.responses import Responses, read_responses

ABOUT_ANSWERS = (
    mean_of("response_length", title="length in tokens", better=""),
    mean_of("ended", name="ended_share", title="ended by itself", unit="share", is_share=True),
    mean_of("reward", unit="reward"),
    mean_of("kl", title="KL to its reference", unit="nats", better="lower"),
)
"""What is told of answers beside their scores, where it is known."""


def generation(bench: Bench) -> Found:
    """BLEU, chrF and ROUGE of answers."""
    responses = read_responses(bench)
    right = responses.right()
    asked = bench.config.evaluate.metric_tokenizer
    words = text_scores.fitting_words(right) if asked == "auto" else asked
    scores = text_scores.TextScores(words)
    settings = {"words": words, "bleu": scores.signature, "rouge_words": text_scores.segmentation(words)}
    bench.notify(f"words are cut as `metric_tokenizer: {words}` does: ROUGE takes {settings['rouge_words']}")
    return _scored(
        bench, responses, text_scores.MEASURES, lambda said, place: scores.record(said, right[place]), settings
    )


def matching(bench: Bench) -> Found:
    """Share of answers that are right by their text or number."""
    responses = read_responses(bench)
    right = responses.right()
    rule = match.Matching(bench.config.evaluate)
    rule.check(right)
    return _scored(bench, responses, match.MEASURES, lambda said, place: rule.record(said, right[place]), rule.settings)


def _scored(
    bench: Bench,
    responses: Responses,
    measures: Sequence[Measure],
    score: Callable[[str, int], Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> Found:
    """Every answer of every variant by ``score``: (text, place of its item) -> what its record holds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, texts in responses.texts.items():
        found[name] = []
        for place, said in enumerate(texts):
            found[name].append({**responses.record(name, place), **score(said, place)})
            bench.progress(f"score {name}", place + 1, len(texts))
    measures = (*measures, *ABOUT_ANSWERS)
    return Found(
        variants={name: bench.figures(measures, records) for name, records in found.items()},
        num_rows=len(responses),
        records=as_records(responses.ids, found),
        differences=bench.differences(measures, found),
        decoding=responses.decoding,
        settings=settings,
    )
