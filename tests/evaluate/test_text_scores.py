import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.errors import UserError
from posttrain.evaluate import text_scores
from posttrain.evaluate.bootstrap import estimates
from posttrain.evaluate.text_scores import MEASURES, TextScores, chrf_counts, corpus_bleu, corpus_chrf, fitting_words

sacrebleu = pytest.importorskip("sacrebleu")

ENGLISH = [
    ("the cat sat on the mat", "a cat sat on the mat"),
    ("there is a dog.", "There is a big dog in the garden."),
    ("", "nothing was said"),
    ("completely different words here", "the quick brown fox jumps"),
    ("one two three four five six", "one two three four five six"),
]
CHINESE = [
    ("北京是中国的首都。", "中国的首都是北京。"),
    ("他今天去图书馆看书", "他昨天去图书馆借了三本书"),
    ("不知道", "这个问题的答案是42。"),
]


def corpus(pairs, words):
    scores = TextScores(words)
    records = [scores.record(predicted, reference) for predicted, reference in pairs]
    return {name: found.value for name, found in estimates(MEASURES, records, seed=1, level=0.95).items()}, records


@pytest.mark.parametrize(("pairs", "words"), [(ENGLISH, "13a"), (ENGLISH, "intl"), (CHINESE, "zh"), (CHINESE, "char")])
def test_corpus_figures_are_sacrebleus_own(pairs, words):
    predicted, references = [p for p, _ in pairs], [r for _, r in pairs]
    found, _ = corpus(pairs, words)
    bleu = sacrebleu.BLEU(tokenize=words).corpus_score(predicted, [references]).score
    assert found["bleu"] == pytest.approx(bleu, abs=1e-9)
    assert found["chrf"] == pytest.approx(sacrebleu.CHRF().corpus_score(predicted, [references]).score, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(alphabet="ab c.你", max_size=14), st.text(alphabet="ab c.你", min_size=1, max_size=14)),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_the_texts_are_the_figures_are_sacrebleus(pairs):
    found, _ = corpus(pairs, "zh")
    predicted, references = [p for p, _ in pairs], [r for _, r in pairs]
    bleu = sacrebleu.BLEU(tokenize="zh").corpus_score(predicted, [references]).score
    assert found["bleu"] == pytest.approx(bleu, abs=1e-6)
    assert found["chrf"] == pytest.approx(sacrebleu.CHRF().corpus_score(predicted, [references]).score, abs=1e-6)


def test_bleu_by_hand():
    # matches 3/4, 2/3, 1/2 and none of 1 four-gram (smoothed to 1/2), as long as the reference
    sums = torch.tensor([[3, 2, 1, 0, 4, 3, 2, 1, 4, 4]], dtype=torch.float64)
    assert float(corpus_bleu(sums)) == pytest.approx(100 * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25)
    # half as long as the reference: exp(1 - 8/4)
    shorter = torch.tensor([[4, 3, 2, 1, 4, 3, 2, 1, 4, 8]], dtype=torch.float64)
    assert float(corpus_bleu(shorter)) == pytest.approx(100 * 0.36787944117)


def test_chrf_by_hand():
    # "ab" against "ac": of single characters 1 of 2 and 1 of 2, of pairs none: precision and recall (1/2 + 0) / 2
    assert chrf_counts("a b", "ac")[:6] == [2, 2, 1, 1, 1, 0]
    sums = torch.tensor([chrf_counts("ab", "ac")], dtype=torch.float64)
    assert float(corpus_chrf(sums)) == pytest.approx(25.0)


def test_chinese_is_cut_into_words_for_rouge_and_characters_for_bleu():
    _, (record,) = corpus([("我喜欢苹果。", "我喜欢香蕉。")], "zh")
    # 我 | 喜欢 | 苹果 against 我 | 喜欢 | 香蕉, punctuation left out
    assert record["rouge1"] == pytest.approx(100 * 2 / 3)
    assert record["bleu_counts"][4] == 6  # characters and the full stop


def test_without_the_right_cut_chinese_has_no_rouge_at_all():
    _, (record,) = corpus([("我喜欢苹果", "我喜欢苹果")], "13a")
    assert record["rouge1"] == 0.0


def test_other_scripts_are_scored_by_their_words():
    _, (record,) = corpus([("кошка сидит дома", "Кошка спит дома")], "intl")
    assert record["rouge1"] == pytest.approx(100 * 2 / 3)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["How many schools are there?"], "13a"),
        (["北京有多少所学校？", "SELECT count(*) FROM t"], "zh"),
        (["きょうは学校に行きます"], "char"),
        (["Сколько здесь школ?"], "intl"),
        (["café au lait, s'il vous plaît"], "intl"),
        (["42", "7"], "13a"),
    ],
)
def test_the_cut_goes_by_the_letters(texts, words):
    assert fitting_words(texts) == words


@pytest.mark.parametrize("missing", ["sacrebleu", "rouge_score.rouge_scorer", "jieba"])
def test_a_missing_library_is_one_sentence(missing, monkeypatch):
    real = text_scores.importlib.import_module

    def absent(name):
        if name == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])
        return real(name)

    monkeypatch.setattr(text_scores.importlib, "import_module", absent)
    with pytest.raises(UserError, match=r'not installed: pip install "posttrain\[metrics\]"'):
        TextScores("zh")


def test_chinese_titles_are_scored_as_sacrebleu_and_jieba_would(shared):
    rows = json.loads((shared / "csl_title_zh" / "test.json").read_text(encoding="utf-8"))[:150]
    titles, openings = [row["title"] for row in rows], [row["content"].strip()[:30] for row in rows]
    assert fitting_words(titles) == "zh"
    found, records = corpus(list(zip(openings, titles, strict=True)), "zh")
    assert found["bleu"] == pytest.approx(sacrebleu.BLEU(tokenize="zh").corpus_score(openings, [titles]).score)
    assert found["chrf"] == pytest.approx(sacrebleu.CHRF().corpus_score(openings, [titles]).score)
    # an opening has words of its title; cut at spaces, hardly any would be found
    assert found["rouge1"] > 10
    assert sum(record["rouge1"] > 0 for record in records) > 0.8 * len(records)
    spaced, _ = corpus(list(zip(openings, titles, strict=True)), "intl")
    assert spaced["rouge1"] < found["rouge1"] / 3
