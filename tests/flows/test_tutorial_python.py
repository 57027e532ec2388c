"""docs/tutorial-python.md, done as it says, on tiny models that lie where the page's names look for them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

DOCS = Path(__file__).parents[2] / "docs"
PAGE, CHINESE = DOCS / "tutorial-python.md", DOCS / "tutorial-python.zh-CN.md"


def blocks(page):
    """The code blocks of a page, with their language, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def byte_level(special, **options):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[special], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["Prune the quince in winter, on a dry day."], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def make_gpt2(folder):
    """A GPT-2 in small: no padding token, no chat template, positions that are learned."""
    end = "<|endoftext|>"
    tokenizer = byte_level(end, eos_token=end, bos_token=end, unk_token=end)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **sizes)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)


def make_classifier(folder):
    """A DistilBERT in small with two labels."""
    tokenizer = byte_level("[PAD]", pad_token="[PAD]", model_max_length=512)
    labels = {0: "NEGATIVE", 1: "POSITIVE"}
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 512}
    config = DistilBertConfig(
        vocab_size=len(tokenizer), pad_token_id=0, id2label=labels, label2id={n: i for i, n in labels.items()}, **sizes
    )
    DistilBertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the page has been gone through, and what it printed."""
    folder = tmp_path_factory.mktemp("tutorial")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        make_gpt2(folder / "gpt2")
        make_classifier(folder / "lvwerra/distilbert-imdb")
    names: dict[str, object] = {}
    said: list[str] = []
    names["print"] = lambda *words: said.append(" ".join(map(str, words)))
    for number, (language, code) in enumerate(blocks(PAGE)):
        assert language == "python"
        exec(compile(code, f"{PAGE.name}, block {number + 1}", "exec"), names)
    patch.undo()
    return folder, names, said


@pytest.mark.slow
def test_what_the_page_prints(place) -> None:
    _, _, said = place
    perplexity, ranked, answer = said
    assert 1 < float(perplexity.removeprefix("Perplexity: ")) < 300
    assert re.fullmatch(r"Pairs ranked correctly: \d+%", ranked)
    assert isinstance(answer, str)


@pytest.mark.slow
def test_each_run_left_its_directory(place) -> None:
    folder, _, _ = place
    runs = ["gpt2-finetuned-orchard", "runs/sft", "orchard-reward", "orchard-ppo-built-in", "orchard-dpo"]
    for run in runs:
        results = json.loads((folder / run / "all_results.json").read_text("utf-8"))
        assert results["stopped_at_step"] == results["total_steps"] > 0
        assert (folder / run / "config.yaml").is_file()
    loss = json.loads((folder / runs[0] / "all_results.json").read_text("utf-8"))
    assert loss["eval_loss"] < loss["eval_loss_before"]
    lines = (folder / "orchard-ppo" / "trainer_log.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["current_steps"] for line in lines] == [1, 2]
    rows = [json.loads(line) for line in (folder / "orchard-ppo/completions.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 4
    assert all(0 < row["reward"] < 1 and row["prompt"] for row in rows)


@pytest.mark.slow
def test_the_weights_that_a_user_holds_are_those_that_were_saved(place) -> None:
    """Merged by us, worn with peft: the same logits; the base under the adapters is the pretrained one."""
    folder, names, _ = place
    tokenizer = AutoTokenizer.from_pretrained(folder / "gpt2")
    ids = torch.tensor([tokenizer("When do I prune the quince?")["input_ids"]])
    with torch.no_grad():
        base, merged = (
            AutoModelForCausalLM.from_pretrained(folder / name)(ids).logits
            for name in ("orchard-base", "orchard-merged")
        )
        policy = names["policy"]
        assert isinstance(policy, PeftModel)
        torch.testing.assert_close(policy.eval()(ids).logits, merged, atol=1e-4, rtol=1e-4)
        first = AutoModelForCausalLM.from_pretrained(folder / "gpt2")(ids).logits
    assert float((base - merged).abs().max()) > 1e-5
    assert float((base - first).abs().max()) > 1e-3
    lineage = json.loads((folder / "my_ppo_model" / "lineage.json").read_text("utf-8"))
    assert lineage["base"]["name_or_path"] == "orchard-base"
    assert [Path(parent["path"]).name for parent in lineage["parents"]] == ["my_model"]


def test_the_chinese_page_has_the_same_code() -> None:
    assert blocks(CHINESE) == blocks(PAGE)
    assert len(blocks(PAGE)) >= 8
