"""The third document's flow from its command lines: texts in, PPO over four GPT-2 models, questions out.

Its tokenizer is BertTokenizer, its prompts ``[CLS] text [SEP]``, its flags are those of its scripts.
"""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, BertTokenizer, GPT2Config, GPT2LMHeadModel

from posttrain.cli import main
from posttrain.config import load_config
from posttrain.config.script import IMPLIED, SCRIPT
from posttrain.data.encode import encode_prompt
from posttrain.data.formats import Message, PromptExample
from posttrain.data.template import Template
from posttrain.models.forward import prepare_trunk
from posttrain.models.load import load_tokenizer
from posttrain.rollout import Prompt, SamplingParams, SlotSampler

WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *"大莱龙铁路位于山东省北部沿海地区全长公里什么哪里有多少位置是的在和椰子猫又名狸为分布南亚及东一种",
    *"?。，、(')-.0123456789",
    *("rail", "##way", "##s", "km", "2", "##008", "175"),
]
TEXTS = [
    "大莱龙铁路位于山东省北部沿海地区，全长175公里。",
    "椰子猫(学名:'),又名椰子狸,为分布于南亚及东南亚的一种麝猫。",
    "铁路。",
    "Railways 2008, 175 km: 铁路全长多少公里？" * 3,
]
SIZE = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """sft_model, rm_model and data/ppo_train.json, as the document's author packs them."""
    root = tmp_path_factory.mktemp("question-generation")
    words = list(dict.fromkeys(WORDS))
    for seed, name in ((1, "sft_model"), (2, "rm_model")):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = GPT2LMHeadModel(GPT2Config(vocab_size=len(words), initializer_range=0.3, **SIZE))
            value = torch.randn(1, 32)
        with torch.no_grad():
            model.transformer.wte.weight[0] = 0.0  # as padding is never learnt, it is never said
        (root / name).mkdir()
        state = dict(model.state_dict())
        if name == "rm_model":
            state = {key: tensor for key, tensor in state.items() if key != "lm_head.weight"}
            state["value_fn.weight"] = value
        torch.save(state, root / name / "pytorch_model.bin")
        (root / name / "config.json").write_text(json.dumps(model.config.to_dict()), encoding="utf-8")
        (root / name / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (root / "data").mkdir()
    lines = [json.dumps({"content": text}, ensure_ascii=False) for text in TEXTS]
    (root / "data" / "ppo_train.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def model(place):
    config = GPT2Config.from_pretrained(place / "sft_model")
    found = GPT2LMHeadModel(config)
    found.load_state_dict(torch.load(place / "sft_model" / "pytorch_model.bin", weights_only=True))
    return found.eval()


def encoded(tokenizer, limit):
    """The texts as stage ppo encodes them under the script's settings."""
    template = Template(tokenizer, prompt_template=IMPLIED["prompt_template"])
    examples = [PromptExample(prompt=(Message("user", text),)) for text in TEXTS]
    return [encode_prompt(example, template, limit, IMPLIED["truncation_side"])[0] for example in examples]


@pytest.mark.parametrize("limit", [12, 31, 100])
def test_texts_are_encoded_and_cut_as_its_tokenizer_does(place, limit):
    theirs = BertTokenizer.from_pretrained(place / "sft_model")
    ids = theirs(TEXTS, max_length=limit, truncation=True)["input_ids"]
    assert [prompt.input_ids for prompt in encoded(load_tokenizer(place / "sft_model"), limit)] == ids
    assert max(map(len, ids)) == min(limit, max(len(theirs(text)["input_ids"]) for text in TEXTS))


def test_greedy_questions_are_those_of_a_left_padded_generate(place, model):
    theirs = BertTokenizer.from_pretrained(place / "sft_model", padding_side="left")
    batch = theirs(TEXTS, max_length=48, truncation=True, padding=True, return_tensors="pt")
    assert (batch["attention_mask"][2] == 0).sum() > 20  # a short text behind much padding
    settings = {"do_sample": False, "repetition_penalty": 1.4, "max_new_tokens": 24}
    out = model.generate(
        batch["input_ids"],
        attention_mask=batch["attention_mask"],
        **settings,
        pad_token_id=theirs.pad_token_id,
        eos_token_id=theirs.sep_token_id,
    )
    width, end = batch["input_ids"].shape[1], theirs.sep_token_id
    expected = []
    for row in out[:, width:].tolist():
        expected.append(row[: row.index(end) + 1] if end in row else row)
    tokenizer = load_tokenizer(place / "sft_model")
    ours = AutoModelForCausalLM.from_pretrained(place / "sft_model", dtype=torch.float32).eval()
    assert prepare_trunk(ours)
    prompts = [Prompt(input_ids=tuple(p.input_ids), index=i) for i, p in enumerate(encoded(tokenizer, 48))]
    params = SamplingParams(**settings, stop_token_ids=(int(tokenizer.eos_token_id),), seed=1)
    for slots in (1, 3):
        drawn = SlotSampler(ours, num_slots=slots).generate(prompts, params)
        assert [completion.token_ids for completion in drawn] == expected
    without = SlotSampler(ours).generate(
        prompts, SamplingParams(max_new_tokens=24, do_sample=False, seed=1, stop_token_ids=(end,))
    )
    assert [completion.token_ids for completion in without] != expected  # the penalty counts


def test_chinese_is_written_without_blanks(place):
    tokenizer = load_tokenizer(place / "sft_model")
    text = "大莱龙铁路，全长3.2公里 (railways 2008)。"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "大莱龙铁路，全长3.2公里( railways 2008 )。"
    assert tokenizer.decode([*ids, tokenizer.sep_token_id], skip_special_tokens=True).startswith("大莱龙铁路，")


@pytest.fixture(scope="module")
def ran(place):
    """The script's own command line, with smaller lengths and counts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        command = "train --device -1 --train_file_path data/ppo_train.json --max_len 64 --query_len 8 --batch_size 2"
        counts = "--num_episodes 2 --max_timesteps 4 --update_timesteps 2 --output_dir ppo_model --disable_tqdm"
        assert main([*command.split(), *counts.split()]) == 0
    return place / "ppo_model"


def test_its_command_line_trains(ran):
    config = load_config(ran / "config.yaml")
    assert (config.data.cutoff_len, config.generation.max_new_tokens) == (64 - 8 - 3, 8)
    assert (config.online.kl_coef, config.online.reward_clip, config.ppo.gae_lambda) == (0.02, 5.0, 0.95)
    assert (config.generation.repetition_penalty, config.online.ppo_epochs, config.train.seed) == (1.4, 2, 2048)
    lines = [json.loads(line) for line in (ran / "trainer_log.jsonl").read_text("utf-8").splitlines()]
    assert lines[-1]["current_steps"] == 4  # 2 episodes of 4 batches, an update every 2
    assert {folder.name for folder in ran.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert list((ran / "runs").rglob("events.out.tfevents.*"))
    rows = [json.loads(line) for line in (ran / "completions.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 4 * 4
    assert all(row["prompt"].startswith("[CLS]") and row["prompt"].endswith("[SEP]") for row in rows)


def test_prediction_prints_several_questions_for_a_text(ran, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    command = "generate --device -1 --model_path ppo_model --dataset data/ppo_train.json --num_return_sequences 2"
    settings = (
        "--top_p 0.9 --repetition_penalty 1.2 --max_new_tokens 8 --min_new_tokens 3 --output_file questions.jsonl"
    )
    assert main([*command.split(), *settings.split()]) == 0
    rows = [json.loads(line) for line in (place / "questions.jsonl").read_text("utf-8").splitlines()]
    assert [len(row["predict"]) for row in rows] == [2] * len(TEXTS)
    assert rows[0]["messages"][0]["content"] == TEXTS[0]
    printed = capsys.readouterr().out
    assert f"[1] {TEXTS[0]}\n  1. {' '.join(rows[0]['predict'][0].split())}\n  2. " in printed
    assert "[3] " in printed
    assert "[4] " not in printed
    assert main([*command.split(), *settings.split(), "--show", "0"]) == 0
    assert "[1] " not in capsys.readouterr().out


def test_its_recipes_run_as_they_are_shipped(place, request, monkeypatch):
    recipes = request.config.rootpath / "recipes" / "question_generation"
    monkeypatch.chdir(place)
    small = "--max_len 64 --query_len 8 --batch_size 2 --update_timesteps 2 --max_steps 2 --disable_tqdm --device -1"
    assert main(["train", str(recipes / "ppo.yaml"), "--output_dir", "by_recipe", *small.split()]) == 0
    config = load_config(place / "by_recipe" / "config.yaml")
    assert {key: config.value(key) for key in IMPLIED} == {**IMPLIED, "ppo_target": 0.0}
    assert (place / "by_recipe" / "training_loss.png").is_file()
    asked = "--model_path by_recipe --max_len 64 --query_len 8 --output_file by_recipe.jsonl"
    assert main(["generate", str(recipes / "predict.yaml"), *asked.split()]) == 0
    rows = [json.loads(line) for line in (place / "by_recipe.jsonl").read_text("utf-8").splitlines()]
    assert [len(row["predict"]) for row in rows] == [2] * len(TEXTS)


def test_the_recipe_has_the_flags_of_the_script_with_its_defaults(request):
    folder = request.config.rootpath / "recipes" / "question_generation"
    written = yaml.safe_load((folder / "ppo.yaml").read_text(encoding="utf-8"))
    assert {flag: written.get(flag) for flag in SCRIPT} == {**SCRIPT, "output_dir": "ppo_model"}
    assert {key: written.get(key, True) for key in IMPLIED} == dict(IMPLIED)
    for name in ("ppo", "predict", "pipeline", "cmrc"):
        text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
        assert f"recipes/question_generation/{name}.yaml" in text.partition("\n\n")[0]


def test_what_is_wrong_is_said(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    for words, message in (
        ("train --max_len 60 --query_len 64", "`max_len` of 60 leaves -7 tokens"),
        ("train --train_file_path data/none.json --max_len 96", "data/none.json"),
        ("train", "give a configuration file, keys such as --model_name_or_path, or both"),
        ("generate --model_path ppo_model --topp 0.9", "unknown key `topp`; did you mean `top_p`?"),
    ):
        assert main(words.split()) == 2
        assert message in capsys.readouterr().err
