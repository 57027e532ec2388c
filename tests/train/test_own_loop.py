"""PPO in a loop of one's own: the same computation as the built-in loop, and every mistake named."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import posttrain
from posttrain.data.encode import EncodedPrompt
from posttrain.errors import UserError
from posttrain.rewards import ScriptedReward
from posttrain.rollout import Completion
from posttrain.train import online
from posttrain.train.experience import laid_out
from posttrain.train.handed_in import rows_of
from posttrain.types import Role

FRUITS = ["apple", "pear", "plum", "fig"]
PROMPTS = [f"name a fruit like {fruit}" for fruit in FRUITS]
WANTED = range(100, 140)
TIMING = ("seconds_", "tokens_per_second")


def share(ids):
    """The share of forty tokens among 320."""
    return sum(token in WANTED for token in ids) / len(ids)


@pytest.fixture
def make_trainer(tiny_llama):
    """A trainer on the tiny model; keywords are keys of the configuration."""

    def make(notify=lambda sentence: None, **keys):
        values = {
            "model_name_or_path": str(tiny_llama),
            "cutoff_len": 64,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "lora_rank": 4,
            "seed": 1,
            "max_new_tokens": 8,
            "num_rollout_slots": 4,
            "ppo_epochs": 2,
        }
        return posttrain.PPOTrainer({**values, **keys}, notify=notify)

    return make


def weights(trainer):
    return {name: weight.detach().clone() for name, weight in trainer._engine.roles.named_parameters()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def completion(ids):
    return Completion(token_ids=ids, logprobs=[0.0] * len(ids), ended=True, prompt_index=0, sample_index=0)


def one_step(trainer, prompts=PROMPTS):
    responses = trainer.generate(prompts)
    return trainer.step(prompts, responses, [share(r.token_ids) for r in responses])


def figures(stats):
    return {name: value for name, value in stats.items() if not any(word in name for word in TIMING)}


@pytest.mark.parametrize(
    "keys",
    [
        {"max_steps": 3},
        {
            **{"num_return_sequences": 2, "ppo_buffer_size": 2, "temperature": 0.7, "max_steps": 3},
            **{"ppo_score_norm": True, "critic": "adapter", "lr_scheduler_type": "cosine", "warmup_steps": 2},
        },
    ],
)
def test_it_learns_bit_for_bit_what_the_built_in_loop_learns(make_trainer, make_online_run, notebook, keys) -> None:
    built_in = {"reward_model": None, "reward_funcs": "sql_execution", "learning_rate": 1e-2}
    run, _ = make_online_run({"reward": ScriptedReward(share)}, **built_in, **keys)
    notes = notebook()
    online.fit(run, 3, notes, lambda *_: None)
    trainer = make_trainer(**keys)
    for iteration in range(3):
        chosen = online.take(run, iteration)
        prompts = [[{"role": m.role, "content": m.content} for m in prompt.messages] for prompt in chosen]
        responses = trainer.generate(prompts)
        stats = trainer.step(prompts, responses, [share(r.token_ids) for r in responses])
        assert figures(stats) == figures(notes.stats[iteration])
    theirs = {name: weight.detach() for name, weight in run.engine.roles.named_parameters()}
    assert same(weights(trainer), theirs)
    assert trainer._engine.algorithm_state == run.engine.algorithm_state
    assert trainer.steps_done == 3


@pytest.mark.slow
def test_the_reward_rises(make_trainer) -> None:
    """An eighth by chance, over two fifths after 22 steps."""
    trainer = make_trainer(
        learning_rate=3e-2, per_device_train_batch_size=16, ppo_buffer_size=3, num_return_sequences=4, kl_coef=0.0
    )
    prompts = [f"name a fruit like {fruit}" for fruit in FRUITS * 3]
    means = [one_step(trainer, prompts)["reward_mean"] for _ in range(22)]
    assert sum(means[:2]) / 2 < 0.2
    assert sum(means[-3:]) / 3 > 0.4


def test_what_generate_returns(make_trainer) -> None:
    trainer = make_trainer(num_return_sequences=2)
    chat = [{"role": "system", "content": "short"}, {"role": "user", "content": "a fruit"}]
    responses = trainer.generate([PROMPTS[0], chat])
    assert [r.prompt for r in responses] == [PROMPTS[0], PROMPTS[0], chat, chat]
    for response in responses:
        assert 1 <= len(response.token_ids) == len(response.logprobs) <= 8
        assert all(logprob < 0 for logprob in response.logprobs)
        assert response.ended == (response.token_ids[-1] == trainer.tokenizer.eos_token_id)
        assert response.text == trainer.tokenizer.decode(response.token_ids, skip_special_tokens=True)
    assert len(trainer.generate(PROMPTS, num_return_sequences=1, max_new_tokens=2)) == 4


def test_numbers_are_fresh_in_every_call_and_repeat_with_the_seed(make_trainer) -> None:
    trainer, twin = make_trainer(), make_trainer()
    first, second = trainer.generate(PROMPTS[:1]), trainer.generate(PROMPTS[:1])
    assert first[0].token_ids != second[0].token_ids
    assert [*first, *second] == [*twin.generate(PROMPTS[:1]), *twin.generate(PROMPTS[:1])]
    together = make_trainer().generate([PROMPTS[0], PROMPTS[0]])
    assert [r.token_ids for r in together] == [first[0].token_ids, second[0].token_ids]


def test_greedy_completions_do_not_depend_on_the_call(make_trainer) -> None:
    trainer = make_trainer()
    assert trainer.generate(PROMPTS, do_sample=False) == trainer.generate(PROMPTS, do_sample=False)


def test_texts_are_measured_and_learned_from(make_trainer) -> None:
    """Praised and dispraised answers of one's own: the first become more probable, the second less."""
    trainer = make_trainer(kl_coef=0.0)
    texts = ["apple", "fig", "apple", "fig"]

    def likelihood():
        rows = rows_of(PROMPTS, texts, trainer._template, cutoff_len=64, max_new_tokens=8)
        batch = laid_out(trainer.tokenizer, rows)
        return trainer._engine.consult((Role.ACTOR,), batch).logprobs.sum(dim=1)

    before = likelihood()
    first = trainer.step(PROMPTS, texts, [1.0, 0.0, 1.0, 0.0])
    assert abs(first["kl"]) < 1e-4
    for _ in range(4):
        trainer.step(PROMPTS, texts, torch.tensor([1.0, 0.0, 1.0, 0.0]))
    moved = likelihood() - before
    assert moved[0] > 0.5
    assert moved[2] > 0.5
    assert moved[1] < moved[0] - 1
    assert moved[3] < moved[2] - 1


def test_texts_and_samples_of_another_temperature_have_ratio_one(make_trainer) -> None:
    """One minibatch, one pass: the old policy is the one that trains, however the responses came about."""
    trainer = make_trainer(temperature=0.7, ppo_epochs=1)
    for _ in range(2):
        responses = [
            *trainer.generate(PROMPTS[:1]),
            *trainer.generate(PROMPTS[1:2], do_sample=False),
            *trainer.generate(PROMPTS[2:3], temperature=1.5),
            "plum",
        ]
        stats = trainer.step(PROMPTS, responses, [1.0, 0.0, 0.5, 2.0])
        assert stats["ratio"] == pytest.approx(1.0, abs=1e-5)
        assert stats["approx_kl"] == pytest.approx(0.0, abs=1e-6)


def test_recorded_log_probabilities_are_used_as_they_are(make_trainer) -> None:
    """Responses of an earlier policy keep its log-probabilities, so their ratio is no longer 1."""
    trainer = make_trainer(ppo_epochs=1)
    responses = trainer.generate(PROMPTS)
    rewards = [share(r.token_ids) for r in responses]
    trainer.step(PROMPTS, responses, rewards)
    assert abs(trainer.step(PROMPTS, responses, rewards)["approx_kl"]) > 1e-4


def test_any_number_of_responses_is_a_step(make_trainer) -> None:
    trainer = make_trainer(num_return_sequences=2)
    stats = trainer.step(PROMPTS[:3], ["fig", "", "a plum"], [0, 1, 0.5])
    assert stats["reward_mean"] == pytest.approx(0.5)
    assert trainer._engine.step == 2
    responses = trainer.generate(PROMPTS)
    trainer.step(PROMPTS, responses, torch.arange(8))
    assert trainer._engine.step == 2 + 2 * 2


def test_what_is_saved_loads_with_peft_and_continues_here(make_trainer, tiny_llama, tmp_path) -> None:
    trainer = make_trainer(output_dir=str(tmp_path / "by-key"))
    one_step(trainer)
    assert trainer.save(tmp_path / "policy") == tmp_path / "policy"
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    ids = torch.tensor([trainer._template.tokens("name a fruit")])
    plain = base(ids).logits.detach()
    loaded = PeftModel.from_pretrained(base, tmp_path / "policy").eval()
    rows = [(EncodedPrompt(ids[0, :1].tolist(), ""), completion(ids[0, 1:].tolist()))]
    found = trainer._engine.consult((Role.ACTOR,), laid_out(trainer.tokenizer, rows)).logprobs[0, 1:]
    expected = loaded(ids).logits.detach().log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert float((plain.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0] - expected).abs().max()) > 1e-4
    assert AutoTokenizer.from_pretrained(tmp_path / "policy").chat_template == trainer._template.chat_template
    chat = posttrain.ChatModel(
        {"model_name_or_path": str(tiny_llama), "adapter_name_or_path": str(tmp_path / "policy"), "max_new_tokens": 8}
    )
    (greedy,) = trainer.generate(PROMPTS[:1], do_sample=False)
    (answer,) = chat.chat([{"role": "user", "content": PROMPTS[0]}], do_sample=False)
    assert answer.response_text == greedy.text
    one_step(trainer)
    assert trainer.save(tmp_path / "policy") == tmp_path / "policy"
    assert trainer.save() == tmp_path / "by-key"


def test_full_fine_tuning_saves_a_whole_model(make_trainer, tmp_path) -> None:
    trainer = make_trainer(finetuning_type="full", learning_rate=1e-3)
    one_step(trainer)
    stats = one_step(trainer)
    assert abs(stats["kl_k3"]) > 1e-6
    trainer.save(tmp_path / "policy")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").state_dict()
    actor = trainer._engine.roles.backbone_of(Role.ACTOR).state_dict()
    assert same({name: actor[name] for name in loaded}, loaded)


def test_a_resumed_loop_goes_on_bit_for_bit(make_trainer, tmp_path) -> None:
    keys = {"ppo_score_norm": True, "output_dir": str(tmp_path)}
    whole = make_trainer(**keys)
    assert whole.resume() == 0
    one_step(whole)
    one_step(whole)
    assert whole.save_checkpoint() == tmp_path / "checkpoint-2"
    resumed = make_trainer(**keys)
    assert resumed.resume(tmp_path / "checkpoint-2") == 2
    assert make_trainer(**keys).resume() == 2
    for trainer in (whole, resumed):
        one_step(trainer)
        assert trainer.steps_done == 3
    assert same(weights(whole), weights(resumed))
    assert whole._engine.algorithm_state == resumed._engine.algorithm_state
    with pytest.raises(UserError, match="weights have other shapes"):
        make_trainer(**keys, lora_rank=2).resume(tmp_path)


def test_alarms_are_said_once_also_by_a_loop_that_was_resumed(make_trainer, tmp_path) -> None:
    """The random model hardly ever ends an answer."""
    said = []
    keys = {"alarm_window": 2, "output_dir": str(tmp_path), "notify": said.append}
    trainer = make_trainer(**keys)
    for _ in range(3):
        one_step(trainer)
    trainer.save_checkpoint()
    alarms = [sentence for sentence in said if sentence.startswith("alarm ")]
    assert [sentence.split(":")[0] for sentence in alarms] == ["alarm no_eos at step 2"]
    for answer, expected in ((True, alarms), (False, [*alarms, *alarms])):
        resumed = make_trainer(**keys)
        if answer:
            resumed.resume()
        one_step(resumed)
        one_step(resumed)
        assert [sentence for sentence in said if sentence.startswith("alarm no_eos")] == expected


@pytest.mark.parametrize(
    ("responses", "rewards", "said"),
    [
        (["a"] * 3, [1.0] * 3, "4 prompts and 3 responses"),
        (["a"] * 8, [1.0] * 8, "4 prompts and 8 responses"),
        ([], [], "responses are a list"),
        ("abcd", [1.0] * 4, "responses are a list"),
        (["a"] * 4, [1.0] * 3, "4 responses and 3 rewards"),
        (["a"] * 4, 1.0, "4 responses and one value"),
        (["a"] * 4, torch.ones(4, 1, 2), r"rewards\[0\] is .* not a number"),
        (["a"] * 4, [1.0, math.nan, 0.0, 0.0], r"rewards\[1\] is nan"),
        (["a"] * 4, [1.0, 0.0, math.inf, 0.0], r"rewards\[2\] is inf"),
        (["a"] * 4, [1.0, 0.0, 1.0, "good"], r"rewards\[3\] is 'good', not a number"),
        (["a", "b", ["c"], "d"], [1.0] * 4, r"responses\[2\] is a list"),
        (["a", "b", "c", "a long answer " * 5], [1.0] * 4, r"responses\[3\] has \d+ tokens .* max_new_tokens \(8\)"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anything_is_learned(make_trainer, responses, rewards, said):
    trainer = make_trainer()
    before = weights(trainer)
    with pytest.raises(UserError, match=said):
        trainer.step(PROMPTS, responses, rewards)
    assert trainer.steps_done == 0
    assert same(weights(trainer), before)


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ("name a fruit", "prompts are a list"),
        ([], "prompts are empty"),
        ([3], r"prompts\[0\] is neither text nor messages"),
        (["ok", []], r"prompts\[1\] is neither text nor messages"),
        ([[{"role": "robot", "content": "hi"}]], r"prompts\[0\]: a message needs a role"),
        ([[{"role": "assistant", "content": "hi"}]], r"prompts\[0\]: a prompt must end with a user message"),
        (["fruit " * 80], r"prompts\[0\] has \d+ tokens, more than cutoff_len \(64\)"),
    ],
)
def test_prompts_that_cannot_be_used(make_trainer, prompts, said) -> None:
    trainer = make_trainer()
    with pytest.raises(UserError, match=said):
        trainer.generate(prompts)
    with pytest.raises(UserError, match=said):
        trainer.step(prompts, ["a"] * len(prompts), [1.0] * len(prompts))


def test_a_response_to_another_prompt_is_refused(make_trainer) -> None:
    trainer = make_trainer()
    responses = trainer.generate(PROMPTS)
    with pytest.raises(UserError, match=r"responses\[0\] was sampled for another prompt than prompts\[0\]"):
        trainer.step(PROMPTS[::-1], responses, [1.0] * 4)


def test_unknown_generation_keys_are_named(make_trainer) -> None:
    with pytest.raises(UserError, match="did you mean temperature"):
        make_trainer().generate(PROMPTS, temprature=2)


def test_a_learning_rate_that_falls_needs_an_end(make_trainer) -> None:
    with pytest.raises(UserError, match=r"lr_scheduler_type: cosine` needs `max_steps`"):
        make_trainer(lr_scheduler_type="cosine")
    with pytest.raises(UserError, match=r"warmup_ratio: 0.1` needs `max_steps`"):
        make_trainer(warmup_ratio=0.1)
    assert one_step(make_trainer())["learning_rate"] == pytest.approx(1e-2)
    trainer = make_trainer(max_steps=1)
    with pytest.raises(UserError, match="step was given 2 responses; with lr_scheduler_type: linear it takes"):
        one_step(trainer, PROMPTS[:2])
    one_step(trainer)
    with pytest.raises(UserError, match="1 steps were announced and all are done"):
        one_step(trainer)


def test_what_is_left_unread_is_said(tiny_llama, tmp_path) -> None:
    said = []
    config = {"model_name_or_path": str(tiny_llama), "dataset": "x.json", "reward_model": "runs/rm"}
    posttrain.PPOTrainer(config, notify=said.append)
    assert any("`dataset`, `reward_model` changes nothing in an own loop" in sentence for sentence in said)
    path = tmp_path / "loop.yaml"
    path.write_text(f"model_name_or_path: {tiny_llama}\nstage: sft\n", encoding="utf-8")
    with pytest.raises(UserError, match="stage: sft"):
        posttrain.PPOTrainer(path)


def test_folders_that_would_destroy_something_are_refused(make_trainer, tiny_llama, tmp_path) -> None:
    trainer = make_trainer()
    with pytest.raises(UserError, match="holds a model that this policy stands on"):
        trainer.save(tiny_llama)
    with pytest.raises(UserError, match="no folder: give one, or set output_dir"):
        trainer.save()
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be written to"):
        trainer.save(tmp_path / "file")


def test_several_processes_are_refused(make_trainer, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process"):
        make_trainer()


def test_the_page_of_the_manual_runs_as_it_stands(tiny_llama, tmp_path, monkeypatch, capsys) -> None:
    """Its first code block, on the tiny model, in an empty folder."""
    page = (Path(__file__).parents[2] / "docs" / "own-loop.md").read_text(encoding="utf-8")
    code, _ = re.findall(r"^```python\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    assert code.count('"smollm2-135m-instruct"') == 1
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("smollm2-135m-instruct", str(tiny_llama)), "own-loop.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:10]] == [str(number + 1) for number in range(10)]
    assert "Why is the sky blue?" in lines
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path / "short-answers")
