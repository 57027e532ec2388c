"""BLEU, chrF and ROUGE of predictions against references, as sums over items that any set of items can be scored by."""

from __future__ import annotations

import importlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from posttrain.errors import UserError
from posttrain.evaluate.bootstrap import Measure, Record, mean_of

Words = Literal["13a", "intl", "zh", "char"]

_ORDER = 4
_CHARACTERS = 6
_BETA = 2
_TINY = 1e-12
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
# scripts that write no spaces between words, and that neither jieba nor a space can segment
_UNSPACED = re.compile(r"[\u3040-\u30ff\u0e00-\u0eff\u1780-\u17ff]")
_LETTER = re.compile(r"[^\W\d_]")
_WORD = re.compile(r"\w+")


def fitting_words(texts: Sequence[str]) -> Words:
    """How texts should be cut into words, from the letters that they hold.

    Kana or Thai in more than a twentieth of the letters: ``char``; Chinese in more than a fifth: ``zh``; letters beyond
    ASCII in more than a twentieth: ``intl``; else ``13a``, as English is scored.
    """
    joined = "\n".join(texts)
    letters = max(len(_LETTER.findall(joined)), 1)
    if len(_UNSPACED.findall(joined)) > letters / 20:
        return "char"
    if len(_HAN.findall(joined)) > letters / 5:
        return "zh"
    foreign = sum(not letter.isascii() for letter in _LETTER.findall(joined))
    return "intl" if foreign > letters / 20 else "13a"


def segmentation(words: Words) -> str:
    """What ROUGE takes for words, for the results."""
    return {
        "13a": "rouge-score's own: runs of a-z and 0-9, lower case",
        "intl": "runs of letters and digits of any script, lower case",
        "zh": "jieba, without punctuation, lower case",
        "char": "single letters and digits, lower case",
    }[words]


class TextScores:
    """Scores pairs of texts.

    Attributes:
        signature: of BLEU and chrF, as sacrebleu writes it.
    """

    def __init__(self, words: Words) -> None:
        """Load what cuts and scores.

        Raises:
            UserError: a library is not installed.
        """
        sacrebleu, rouge = _library("sacrebleu"), _library("rouge_score.rouge_scorer")
        tokenize = {"zh": "zh", "char": "char", "intl": "intl", "13a": "13a"}[words]
        self._bleu = sacrebleu.BLEU(tokenize=tokenize, effective_order=True)
        corpus = sacrebleu.BLEU(tokenize=tokenize)
        corpus.corpus_score(["a"], [["a"]])  # a signature knows its references
        self.signature = f"BLEU|{corpus.get_signature()}"
        self._rouge = rouge.RougeScorer(
            ["rouge1", "rouge2", "rougeL"], use_stemmer=False, tokenizer=_Tokenizer.fitting(words)
        )

    def record(self, predicted: str, reference: str) -> dict[str, Any]:
        """What one pair adds: counts of n-grams for BLEU and chrF, and its own ROUGE."""
        bleu = self._bleu.sentence_score(predicted, [reference])
        rouge = self._rouge.score(reference, predicted)
        return {
            "bleu_counts": [*map(int, (*bleu.counts, *bleu.totals)), int(bleu.sys_len), int(bleu.ref_len)],
            "chrf_counts": chrf_counts(predicted, reference),
            **{name: 100 * rouge[name].fmeasure for name in ("rouge1", "rouge2", "rougeL")},
        }


class _Tokenizer:
    """Words for rouge-score."""

    def __init__(self, cut: Callable[[str], Sequence[str]]) -> None:
        self._cut = cut

    @classmethod
    def fitting(cls, words: Words) -> Any:
        """None where rouge-score's own serves."""
        if words == "13a":
            return None
        if words == "intl":
            return cls(_WORD.findall)
        if words == "char":
            return cls(lambda text: [character for character in text if character.isalnum()])
        jieba = _library("jieba")
        jieba.setLogLevel(logging.WARNING)
        return cls(lambda text: [word for word in jieba.lcut(text) if any(map(str.isalnum, word))])

    def tokenize(self, text: str) -> list[str]:
        """As rouge-score asks."""
        return list(self._cut(text.lower()))


def chrf_counts(predicted: str, reference: str) -> list[int]:
    """For 1 to 6 characters without white space: n-grams predicted, of the reference, and in both."""
    found = []
    ours, theirs = "".join(predicted.split()), "".join(reference.split())
    for size in range(1, _CHARACTERS + 1):
        mine, right = _grams(ours, size), _grams(theirs, size)
        both = sum((mine & right).values())
        # as in sacrebleu: orders that the reference is too short for count for nothing
        found += [sum(mine.values()) if right else 0, sum(right.values()), both]
    return found


def corpus_bleu(sums: Tensor) -> Tensor:
    """BLEU of a corpus from its counts, with sacrebleu's smoothing of orders without a match.

        BLEU = 100 min(1, exp(1 − r/c)) exp(1/4 Σ_n log p_n),  p_n = matches / n-grams,
        the k-th order without a match: p_n = 1 / (2^k n-grams)

    Paper: Papineni et al., 2002; Post, 2018 (arXiv:1804.08771).

    Args:
        sums: [R, 10]: matches and n-grams for n = 1 to 4, length predicted, length of the references.
    """
    matches, totals, predicted, reference = sums[:, :_ORDER], sums[:, _ORDER : 2 * _ORDER], sums[:, -2], sums[:, -1]
    none = (matches < 0.5).double()
    smoothed = torch.pow(0.5, none.cumsum(dim=1)) * none + matches
    precision = torch.where(totals > 0, smoothed / totals.clamp(min=1.0), 0.0)
    mean = precision.clamp(min=1e-300).log().mean(dim=1).exp()
    brevity = torch.exp((1 - reference / predicted.clamp(min=_TINY)).clamp(max=0.0))
    something = (matches.sum(dim=1) > 0) & (precision > 0).all(dim=1)
    return torch.where(something, 100 * brevity * mean, 0.0)


def corpus_chrf(sums: Tensor) -> Tensor:
    """chrF2 of a corpus from its counts.

        chrF = 100 (1 + β²) P R / (β² P + R),  β = 2,  P and R the means of precision and recall over 1 to 6 characters

    Paper: Popović, 2015 (chrF: character n-gram F-score for automatic MT evaluation).

    Args:
        sums: [R, 18] as ``chrf_counts``.
    """
    predicted, reference, both = sums.reshape(-1, _CHARACTERS, 3).unbind(dim=2)
    counts = (predicted > 0) & (reference > 0)
    orders = counts.sum(dim=1).clamp(min=1)
    precision = torch.where(counts, both / predicted.clamp(min=1.0), 0.0).sum(dim=1) / orders
    recall = torch.where(counts, both / reference.clamp(min=1.0), 0.0).sum(dim=1) / orders
    return 100 * (1 + _BETA**2) * precision * recall / (_BETA**2 * precision + recall).clamp(min=_TINY)


def _counts(key: str) -> Callable[[Record], Sequence[float] | None]:
    return lambda record: record.get(key)


MEASURES = (
    Measure(name="bleu", title="BLEU", columns=_counts("bleu_counts"), value=corpus_bleu, unit="of 100"),
    Measure(name="chrf", title="chrF", columns=_counts("chrf_counts"), value=corpus_chrf, unit="of 100"),
    mean_of("rouge1", title="ROUGE-1", unit="of 100"),
    mean_of("rouge2", title="ROUGE-2", unit="of 100"),
    mean_of("rougeL", title="ROUGE-L", unit="of 100"),
)


def _grams(text: str, size: int) -> Counter[str]:
    return Counter(text[start : start + size] for start in range(len(text) - size + 1))


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        raise UserError(
            f'task generation needs {missing.name}, which is not installed: pip install "posttrain[metrics]"'
        ) from None
