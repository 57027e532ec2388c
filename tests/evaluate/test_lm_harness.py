import json
import math

import pytest
import torch

from posttrain.config import load_config
from posttrain.errors import UserError
from posttrain.evaluate import lm_harness
from posttrain.evaluate.harness_model import HarnessAnswers
from posttrain.evaluate.run import evaluate
from posttrain.evaluate.wardrobe import load_wearing


class Request:
    """A question as lm-evaluation-harness asks it."""

    def __init__(self, *args):
        self.args = args


@pytest.fixture(scope="module")
def model(eval_config, trained):
    config = eval_config(variants=["base", f"sft={trained / 'sft'}"], cutoff_len=64)
    wardrobe = load_wearing(config)
    return HarnessAnswers(wardrobe, wardrobe.variants["base"].wears, config, lambda *call: None)


@pytest.fixture(scope="module")
def plain(tiny_llama):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_llama).eval()


def logprob(plain, before, tokens):
    ids = torch.tensor([[*before, *tokens]])
    with torch.no_grad():
        logits = plain(ids).logits[0, :-1].log_softmax(-1)
    chosen = logits[len(before) - 1 :].gather(1, torch.tensor(tokens)[:, None])
    greedy = logits[len(before) - 1 :].argmax(-1).tolist() == list(tokens)
    return float(chosen.sum()), greedy


def test_continuations_have_the_models_own_log_probabilities(model, plain):
    cases = [([5, 9, 40], [41, 42]), ([7], [8]), ([5, 9, 40], [41])]
    best = plain(torch.tensor([[5, 9, 40]])).logits[0, -1].argmax()
    cases.append(([5, 9, 40], [int(best)]))
    found = model._loglikelihood_tokens([(("", ""), *case) for case in cases])
    for (value, greedy), case in zip(found, cases, strict=True):
        expected, is_greedy = logprob(plain, *case)
        assert value == pytest.approx(expected, abs=1e-4)
        assert greedy is is_greedy
    assert found[-1][1] is True


def test_long_contexts_are_cut_on_their_left(model, plain):
    context = [5 + i % 40 for i in range(200)]
    (found,) = model._loglikelihood_tokens([(("", ""), context, [9, 10])])
    assert found[0] == pytest.approx(logprob(plain, context[-62:], [9, 10])[0], abs=1e-4)
    with pytest.raises(UserError, match="cannot be scored within 64; raise cutoff_len"):
        model._loglikelihood_tokens([(("", ""), [5], [9] * 64)])


def test_whole_texts_are_scored_in_windows_each_token_once(model, plain):
    text = "name a fruit like apple " * 20
    ids = model.tok_encode(text)
    assert len(ids) > 2 * 63
    expected, start = 0.0, 0
    while start < len(ids):
        before = ids[start - 1] if start else model.prefix_token_id
        expected += logprob(plain, [before], ids[start : start + 63])[0]
        start += 63
    (found,) = model.loglikelihood_rolling([Request(text)])
    assert found == pytest.approx(expected, abs=1e-2)


def test_completions_are_greedy_and_end_before_what_ends_them(model, plain):
    ids = torch.tensor([model.tok_encode("name a fruit")])
    out = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    text = model.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    asked = [
        Request("name a fruit", {"until": [], "max_gen_toks": 8}),
        Request("name a fruit", {"until": [text[2:4]], "max_gen_toks": 8}),
        Request("", {"until": ["\n"], "max_gen_toks": 2}),
    ]
    whole, cut, alone = model.generate_until(asked)
    assert whole == text
    assert cut == text.partition(text[2:4])[0]
    assert isinstance(alone, str)


def test_chats_are_rendered_by_the_tokenizers_template(model):
    rendered = model.apply_chat_template([{"role": "user", "content": "hi"}])
    assert rendered == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_without_the_package_there_is_one_sentence(eval_config, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError("No module named 'lm_eval'", name="lm_eval")

    monkeypatch.setattr(lm_harness.importlib, "import_module", absent)
    with pytest.raises(UserError, match=r'not installed: pip install "posttrain\[lm-eval\]"'):
        evaluate(eval_config(task="lm_eval", lm_eval_tasks="anything"))


def test_the_task_needs_tasks():
    with pytest.raises(UserError, match="`lm_eval_tasks` is missing"):
        load_config({"model_name_or_path": "m", "task": "lm_eval"}, command="eval")


CHOICE = """
task: fruit_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "name a fruit like {{{{fruit}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
WORDS = """
task: fruit_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "name a fruit like {{{{fruit}}}}"
doc_to_target: "{{{{right}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
TEXT = """
task: fruit_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "name a fruit like {{{{fruit}}}}"
metric_list: [{{metric: word_perplexity}}]
metadata: {{version: 1.0}}
"""


@pytest.fixture
def own_tasks(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fruits = ["apple", "pear", "plum", "fig"]
    rows = [
        {"fruit": f, "choices": [" apple", " pear", " plum"], "answer": i % 3, "right": fruits[i - 1]}
        for i, f in enumerate(fruits)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, text in (("choice", CHOICE), ("words", WORDS), ("text", TEXT)):
        (folder / f"{name}.yaml").write_text(text.format(data=data.as_posix()), encoding="utf-8")
    return folder


def test_the_harness_measures_our_models(eval_config, trained, own_tasks, tmp_path):
    config = eval_config(
        task="lm_eval",
        lm_eval_tasks="fruit_choice,fruit_words,fruit_text",
        lm_eval_include=str(own_tasks),
        variants=["base", f"sft={trained / 'sft'}"],
        output_dir=str(tmp_path / "out"),
    )
    results = evaluate(config)
    base, sft = results["variants"]["base"], results["variants"]["sft"]
    assert 0 <= base["fruit_choice/acc"] <= 1
    assert len(base["fruit_choice/acc_interval"]) == 2
    assert "fruit_words/exact_match" in base
    assert math.isfinite(base["fruit_text/word_perplexity"])
    assert base["fruit_text/word_perplexity"] != sft["fruit_text/word_perplexity"]
    assert results["settings"]["task_versions"]["fruit_choice"] == "1.0"
    records = [json.loads(x) for x in (tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    own = [r for r in records if r["variant"] == "base"]
    assert len(own) == len({r["id"] for r in own}) == 12
    acc = [r["metrics"]["acc"] for r in own if r["task"] == "fruit_choice"]
    assert sum(acc) / len(acc) == base["fruit_choice/acc"]


def test_an_unknown_task_says_where_tasks_come_from(eval_config, own_tasks):
    config = eval_config(task="lm_eval", lm_eval_tasks="no_such_task", lm_eval_include=str(own_tasks))
    with pytest.raises(UserError, match=r"knows no task 'no_such_task' .* name their folder in lm_eval_include"):
        evaluate(config)
