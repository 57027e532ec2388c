"""A stage under another chat template than its parent's stops and shows both; one's own template goes all the way."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from posttrain import ChatModel
from posttrain.errors import UserError
from posttrain.models.lineage import read_lineage
from posttrain.train.run import train

PROMPT = "Q: {prompt}\n\nA:"


@pytest.fixture
def start(tiny_config, tmp_path):
    """Run a stage into ``tmp_path/NAME``; returns the folder and the sentences it said."""

    def run(stage, name, **keys):
        said = []
        train(tiny_config(stage, tmp_path / name, **keys), notify=said.append)
        return tmp_path / name, said

    return run


def test_a_stage_under_another_template_shows_both(start, trained):
    parent = str(trained / "sft")
    with pytest.raises(UserError) as caught:
        start("dpo", "dpo", adapter_name_or_path=parent, prompt_template=PROMPT)
    message = str(caught.value)
    assert "adapter_name_or_path" in message
    assert parent in message
    shown = [json.loads(line[line.index('"') :]) for line in message.splitlines() if line.startswith("  ")]
    assert len(shown) == 2
    assert shown[0].startswith("<|im_start|>user\nWhat is 2 + 3?<|im_end|>")
    assert shown[1].startswith("Q: What is 2 + 3?\n\nA:5")
    assert "allow_mismatch: true" in message


def test_allow_mismatch_goes_on_and_still_shows_both(start, trained):
    _, said = start(
        "dpo", "dpo", adapter_name_or_path=str(trained / "sft"), prompt_template=PROMPT, allow_mismatch=True
    )
    (note,) = [sentence for sentence in said if "another chat template" in sentence]
    assert "as allow_mismatch says" in note
    assert "Q: What is 2 + 3?" in note


def test_a_reward_model_of_another_template_stops_ppo(start, trained):
    with pytest.raises(UserError, match="reward_model") as caught:
        start("ppo", "ppo", reward_model=str(trained / "rm"), prompt_template=PROMPT)
    assert "<|im_start|>user" in str(caught.value)
    assert "Q: What is 2 + 3?" in str(caught.value)


def test_a_model_that_was_trained_whole_or_merged_remembers_its_template(start, trained):
    whole, _ = start("sft", "whole", finetuning_type="full")
    for base in (whole, trained / "merged"):
        lineage = read_lineage(base)
        assert lineage is not None
        known = lineage.template is not None
        if known:
            with pytest.raises(UserError, match="model_name_or_path"):
                start("dpo", "dpo", model_name_or_path=str(base), prompt_template=PROMPT)
        start("dpo", f"dpo-{base.name}", model_name_or_path=str(base), **({} if known else {"prompt_template": PROMPT}))


def test_the_same_template_under_another_name_passes(start, trained):
    """What counts is what is rendered."""
    jinja = (
        "{%- for m in messages -%}{{- '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
    )
    start("dpo", "dpo", adapter_name_or_path=str(trained / "sft"), template=jinja)


def test_an_own_template_is_kept_from_sft_to_chat(start, tiny_llama):
    sft, _ = start("sft", "sft", prompt_template=PROMPT)
    lineage = read_lineage(sft)
    assert lineage is not None
    assert lineage.template_example is not None
    assert lineage.template_example.startswith("Q: What is 2 + 3?\n\nA:5")
    reward, _ = start("rm", "rm", prompt_template=PROMPT)
    ppo, _ = start("ppo", "ppo", adapter_name_or_path=str(sft), reward_model=str(reward), prompt_template=PROMPT)
    saved = AutoTokenizer.from_pretrained(ppo)
    asked = [{"role": "user", "content": "apple"}]
    assert saved.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) == "Q: apple\n\nA:"
    chat = ChatModel(
        {
            "model_name_or_path": str(tiny_llama),
            "adapter_name_or_path": [str(sft), str(ppo)],
            "max_new_tokens": 4,
        }
    )
    assert chat.template.example == lineage.template_example
    (response,) = chat.chat(asked)
    assert response.prompt_length == len(saved("Q: apple\n\nA:", add_special_tokens=False)["input_ids"])
