"""How often one system's answers are preferred to another's: by a reward, or by a judge who sees both orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb
from typing import Any

from posttrain.data.datasets import encode_example
from posttrain.data.encode import EncodedPrompt
from posttrain.data.formats import Message, Messages, PromptExample
from posttrain.data.template import Template
from posttrain.errors import UserError
from posttrain.evaluate.bench import Bench, Found
from posttrain.evaluate.bootstrap import Measure, Record, mean_of, ratio
from posttrain.evaluate.responses import Responses, read_responses
from posttrain.evaluate.verdict_store import Question, opinions
from posttrain.evaluate.worth import Worth
from posttrain.rewards.judge import Judge, Opinion
from posttrain.rewards.verdicts import Verdict, transcript, with_system

_VALUES = {"win": 1.0, "tie": 0.5, "loss": 0.0}
Unit = tuple[str, int, bool]
"""Challenger, item, and whether the baseline's answer is shown first."""


def _value(record: Record) -> Sequence[float]:
    value = record["value"]
    return (0.0, 0.0) if value is None else (float(value), 1.0)


MEASURES = (
    Measure(name="win_rate", title="win rate", columns=_value, value=ratio, is_share=True, unit="share"),
    mean_of("score_difference", unit="reward"),
)


def win_rate(bench: Bench) -> Found:
    """Each system against the first one, item by item; a tie is half a win.

        win rate = (wins + ties / 2) / (wins + ties + losses)

    Items without a verdict are left out and counted.
    """
    responses = read_responses(bench)
    baseline, *challengers = responses.texts
    decide = _by_judge if bench.config.judge.judge else _by_reward
    found = decide(bench, responses, baseline, challengers)
    records = []
    variants = {}
    for name in challengers:
        variants[name] = {
            "baseline": baseline,
            **bench.figures(MEASURES, found[name]),
            **_account(found[name], [responses.texts[system] for system in (name, baseline)]),
        }
        for place, decided in enumerate(found[name]):
            asked = responses.record(name, place)
            told = {"id": responses.ids[place], "index": place, "variant": name, "baseline": baseline}
            records.append({**told, **asked, "baseline_completion": responses.texts[baseline][place], **decided})
    return Found(
        variants=variants,
        num_rows=len(responses),
        records=records,
        differences=bench.differences(MEASURES, found),
        decoding=responses.decoding,
        settings={"baseline": baseline, **_who(bench)},
    )


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p of the hypothesis that either side wins by the throw of a coin, ties left out.

    p = min(1, 2 Σ_{k ≤ min(w, l)} C(w + l, k) / 2^(w + l))
    """
    total = wins + losses
    tail = sum(comb(total, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**total)


def _by_reward(
    bench: Bench, responses: Responses, baseline: str, challengers: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """The answer that the reward gives more wins; a difference of at most ``judge_min_margin`` is a tie."""
    if bench.config.reward.reward_ensemble:
        bench.notify("reward_ensemble is left out: evaluations score with reward_model alone")
    worth = Worth(bench, *_prompts(bench, responses))
    rewards = {name: worth.of(texts, f"of {name}") for name, texts in responses.texts.items()}
    margin = bench.config.judge.judge_min_margin
    found: dict[str, list[dict[str, Any]]] = {}
    for name in challengers:
        found[name] = []
        for own, other in zip(rewards[name], rewards[baseline], strict=True):
            verdict = "tie" if abs(own - other) <= margin else "win" if own > other else "loss"
            scores = {"reward": own, "baseline_reward": other, "score_difference": own - other}
            found[name].append({"verdict": verdict, "value": _VALUES[verdict], **scores})
    return found


def _prompts(bench: Bench, responses: Responses) -> tuple[Sequence[EncodedPrompt], Template]:
    """The prompts as the reward model reads them, and what renders them."""
    if responses.prompts is not None and responses.template is not None:
        return responses.prompts, responses.template
    data = bench.config.data
    template = Template.configured(bench.wardrobe.tokenizer, data)
    found = []
    for place, asked in enumerate(responses.asked, start=1):
        if isinstance(asked, str):
            raise UserError(
                f"predictions: row {place} has no `messages`, so it is not known what was asked; name the data in "
                "eval_dataset, or predict with `posttrain generate`, which writes them"
            )
        example = PromptExample(prompt=asked, extras=responses.extras[place - 1], where=f"row {place}")
        encoded = encode_example(example, data, bench.wardrobe.tokenizer, template)
        if isinstance(encoded, str):
            raise UserError(f"row {place}: {encoded} (now {data.cutoff_len}); raise it")
        assert isinstance(encoded[0], EncodedPrompt)
        found.append(encoded[0])
    return found, template


def _by_judge(
    bench: Bench, responses: Responses, baseline: str, challengers: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """The answer that the judge prefers, in both orders with ``judge_swap``; where the two disagree it is a tie."""
    settings = bench.config.judge
    judge = Judge.configured(bench.config, "pairwise")
    orders = (False, True) if settings.judge_swap else (False,)
    questions: dict[Unit, Question] = {}
    for place, asked in enumerate(responses.asked):
        shown = _shown(bench, asked, judge)
        other = responses.texts[baseline][place]
        for name in challengers:
            own = responses.texts[name][place]
            if own != other:  # who says the same is as good
                pairs = {False: (own, other), True: (other, own)}
                questions |= {(name, place, order): (shown, *pairs[order]) for order in orders}
    said = opinions(bench, judge, questions)
    return {
        name: [
            _decided([(order, said.get((name, place, order))) for order in orders]) for place in range(len(responses))
        ]
        for name in challengers
    }


def _decided(asked: Sequence[tuple[bool, Opinion[Verdict] | None]]) -> dict[str, Any]:
    """What the opinions on one pair come to; none at all where both answers are the same text."""
    if all(opinion is None for _, opinion in asked):
        return {"verdict": "tie", "value": 0.5, "agreed": None, "shown_first": []}
    said, firsts = [], []
    for baseline_first, opinion in asked:
        preferred = opinion.value if opinion is not None else None
        own = {"A": "loss" if baseline_first else "win", "B": "win" if baseline_first else "loss", "tie": "tie"}
        said.append(None if preferred is None else own[preferred])
        firsts.append(preferred)
    if None in said:
        return {"verdict": "undecided", "value": None, "agreed": None, "shown_first": firsts}
    agreed = len(set(said)) == 1
    verdict = str(said[0]) if agreed else "tie"
    return {
        "verdict": verdict,
        "value": _VALUES[verdict],
        "agreed": agreed if len(said) > 1 else None,
        "shown_first": firsts,
    }


def _shown(bench: Bench, asked: Messages | str, judge: Judge) -> str:
    """The prompt as the judge reads it."""
    messages = (Message("user", asked),) if isinstance(asked, str) else asked
    return transcript(with_system(messages, bench.config.data.default_system), judge.prompt.language)


def _account(records: Sequence[Record], texts: Sequence[Sequence[str]]) -> dict[str, Any]:
    """How often what was said, with p of the sign test, and what tells of a judge's habits."""
    verdicts = [record["verdict"] for record in records]
    counts = {name: verdicts.count(name) for name in ("win", "tie", "loss", "undecided")}
    found: dict[str, Any] = {
        "wins": counts["win"],
        "ties": counts["tie"],
        "losses": counts["loss"],
        "undecided": counts["undecided"],
        "sign_test_p": sign_test(counts["win"], counts["loss"]),
    }
    agreed = [record["agreed"] for record in records if record.get("agreed") is not None]
    firsts = [said for record in records for said in record.get("shown_first", ()) if said in ("A", "B")]
    lengths = [
        (len(own) > len(other)) == (verdict == "win")
        for verdict, own, other in zip(verdicts, *texts, strict=True)
        if verdict in ("win", "loss") and len(own) != len(other)
    ]
    shares: Mapping[str, Sequence[bool]] = {
        "order_agreement": agreed,
        "first_share": [said == "A" for said in firsts],
        "longer_share": lengths,
    }
    return found | {name: sum(held) / len(held) for name, held in shares.items() if held}


def _who(bench: Bench) -> dict[str, Any]:
    """Who decides, as far as results depend on it."""
    settings, reward = bench.config.judge, bench.config.reward
    if settings.judge:
        asked = ("judge_model", "judge_swap", "judge_language", "judge_prompt", "judge_temperature")
        return {name: getattr(settings, name) for name in asked}
    sources = ("reward_model", "reward_classifier", "reward_funcs", "reward_weights")
    found = {name: getattr(reward, name) for name in sources if getattr(reward, name)}
    return {
        **{name: list(value) if isinstance(value, tuple) else value for name, value in found.items()},
        "judge_min_margin": settings.judge_min_margin,
    }
