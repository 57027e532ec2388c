"""A LoraConfig as keys: what peft would adapt is what is adapted, and every other field is refused by name."""

from __future__ import annotations

import dataclasses

import pytest
from peft import IA3Config, LoraConfig, get_peft_model

from posttrain.errors import UserError
from posttrain.models.adapters import add_adapter, lora_config
from posttrain.models.peft_keys import lora_keys

TARGETS = [
    {},
    {"target_modules": ["q_proj", "v_proj"]},
    {"target_modules": "all-linear"},
    {"target_modules": r".*\.(q|k)_proj"},
    {"target_modules": r".*layers\.1.*down_proj"},
    {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
    {"target_modules": ["q_proj"], "layers_to_transform": 1},
    {"layers_to_transform": [0], "layers_pattern": "layers"},
    {"target_modules": ["model.layers.0.mlp.up_proj"]},
]


def adapted(model, name):
    return {place for place, part in model.named_modules() if hasattr(part, "lora_A") and name in part.lora_A}


@pytest.mark.parametrize("targets", TARGETS, ids=str)
@pytest.mark.parametrize("from_folder", [False, True])
def test_the_layers_are_those_that_peft_takes(make_model, tmp_path, targets, from_folder) -> None:
    model = make_model()
    source = model
    if from_folder:
        model.save_pretrained(tmp_path)
        source = tmp_path
    keys = lora_keys(LoraConfig(r=2, **targets), source, scores=False)
    expected = adapted(get_peft_model(make_model(), LoraConfig(r=2, task_type="CAUSAL_LM", **targets)), "default")
    ours = lora_config(model, rank=2, alpha=4, dropout=0.0, targets=tuple(keys["lora_target"]))
    add_adapter(model, "ours", ours)
    assert adapted(model, "ours") == {place.removeprefix("base_model.model.") for place in expected}
    assert expected


def test_gpt2_takes_the_default_of_peft(make_model) -> None:
    assert lora_keys(LoraConfig(), make_model("gpt2"), scores=False)["lora_target"] == ["c_attn"]


def test_numbers_and_switches(make_model) -> None:
    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM", use_rslora=True)
    keys = lora_keys(config, make_model(), scores=False)
    assert keys == {
        "finetuning_type": "lora",
        "lora_rank": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "use_rslora": True,
        "lora_target": ["q_proj", "v_proj"],
    }
    keys = lora_keys(LoraConfig(init_lora_weights="pissa_niter_4", use_dora=True), make_model(), scores=False)
    assert (keys["pissa_init"], keys["pissa_iter"], keys["use_dora"]) == (True, 4, True)


def test_a_reward_model_may_name_its_head(make_model) -> None:
    config = LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], target_modules="all-linear")
    assert lora_keys(config, make_model(), scores=True)["lora_target"] == ["all"]
    with pytest.raises(UserError, match=r"modules_to_save=.* only the adapter is trained"):
        lora_keys(LoraConfig(modules_to_save=["score"]), make_model(), scores=False)


REFUSED = {
    "bias": ("all", "write bias='none'"),
    "inference_mode": (True, "the adapter is to be trained"),
    "modules_to_save": (["embed_tokens"], "the score head is trained and saved in any case"),
    "init_lora_weights": ("gaussian", "adapters begin with A random and B zero"),
    "rank_pattern": ({"q_proj": 4}, "every layer has the rank `r`"),
    "alpha_pattern": ({"q_proj": 4}, "every layer has `lora_alpha`"),
    "task_type": ("TOKEN_CLS", "this trains a reward model; write TaskType.SEQ_CLS"),
    "trainable_token_indices": ([1], "without peft_config all weights are"),
    "layer_replication": ([(0, 1)], "layers are not replicated"),
    "lora_bias": (True, "LoRA layers have no bias here"),
    "use_qalora": (True, "this is another kind"),
    "target_parameters": (["experts"], "put on linear layers"),
}


@pytest.mark.parametrize(("field", "value", "message"), [(f, *rest) for f, rest in REFUSED.items()], ids=REFUSED)
def test_a_field_that_cannot_be_honoured_is_refused_by_name(make_model, field, value, message) -> None:
    config = LoraConfig(target_modules=["q_proj"])
    setattr(config, field, value)
    with pytest.raises(UserError, match=f"peft_config: `{field}=.*cannot be honoured: .*{message}"):
        lora_keys(config, make_model(), scores=True)


def test_no_field_is_passed_over(make_model) -> None:
    """A field with a strange value changes the keys, is refused by name, or is one of those that train nothing."""
    silent = {"peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "runtime_config"}
    silent |= {"fan_in_fan_out", "megatron_core", "qalora_group_size", "ensure_weight_tying", "layers_pattern"}
    plain = lora_keys(LoraConfig(target_modules=["q_proj"]), make_model(), scores=False)
    strange = {
        "r": 3,
        "lora_alpha": 3,
        "lora_dropout": 0.3,
        "use_rslora": True,
        "exclude_modules": r".*layers\.1.*",
    }
    strange |= {"layers_to_transform": [1], "target_modules": ["v_proj"]}
    passed = []
    for field in dataclasses.fields(LoraConfig):
        config = LoraConfig(target_modules=["q_proj"])
        setattr(config, field.name, strange.get(field.name, "strange"))
        try:
            changed = lora_keys(config, make_model(), scores=False) != plain
        except UserError as error:
            changed = field.name in str(error)
        if not changed:
            passed.append(field.name)
    assert set(passed) <= silent


def test_other_mistakes(make_model) -> None:
    with pytest.raises(UserError, match=r"peft_config is a IA3Config; give a peft.LoraConfig"):
        lora_keys(IA3Config(), make_model(), scores=False)
    with pytest.raises(UserError, match=r"means no linear layer of LlamaForCausalLM; its layers are called down_proj"):
        lora_keys(LoraConfig(target_modules=r".*query"), make_model(), scores=False)
    model = make_model()
    model.config.model_type = "unheard-of"
    with pytest.raises(UserError, match="no default `target_modules` for models of type unheard-of"):
        lora_keys(LoraConfig(), model, scores=False)
