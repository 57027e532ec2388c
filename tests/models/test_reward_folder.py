"""Reward models that others wrote: our packed score is what the model's own code says of each sequence alone."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Model,
    GPT2PreTrainedModel,
)

from posttrain.errors import UserError
from posttrain.models.adapters import add_adapter, wear
from posttrain.models.forward import answer, is_packed, prepare_trunk
from posttrain.models.heads import ScalarHead
from posttrain.models.load import load_causal_lm
from posttrain.models.reward_folder import load_reward_trunk, read_reward_folder

ROWS = [[5, 9, 40, 41, 42, 60, 7], [5, 9, 40, 57, 12, 7], [3, 8, 8], [11]]
WIDTH = 32
FAMILIES = ("llama", "qwen2", "gpt2")
WEIGHTS = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}


@pytest.fixture
def batch(make_batch):
    return make_batch(ROWS, starts=[1, 1, 1, 1])


@pytest.fixture
def make_base(make_model, tmp_path):
    """A causal language model's folder."""

    def make(family="llama", seed=11):
        folder = tmp_path / f"base-{family}-{seed}"
        if not folder.exists():
            make_model(family, seed).save_pretrained(folder)
        return folder

    return make


class ValueHeadModel(nn.Module):
    """A language model with one linear layer on its last states, as TRL and LLaMA-Factory put it together."""

    def __init__(self, base, seed=5):
        super().__init__()
        self.pretrained_model = base
        self.v_head = nn.Module()
        torch.manual_seed(seed)
        self.v_head.summary = nn.Linear(WIDTH, 1)

    def forward(self, ids):
        """[1, T] the value after each token."""
        states = self.pretrained_model(ids, output_hidden_states=True).hidden_states[-1]
        return self.v_head.summary(states).squeeze(-1)

    def head_state(self, prefix="v_head.summary."):
        return {f"{prefix}{name}": tensor.detach() for name, tensor in self.v_head.summary.named_parameters()}


class RewardModel(GPT2PreTrainedModel):
    """GPT-2 without its language head under a layer called value_fn, which has no bias."""

    def __init__(self, config):
        super().__init__(config)
        self.transformer = GPT2Model(config)
        self.value_fn = nn.Linear(config.n_embd, 1, bias=False)
        self.post_init()

    def forward(self, ids):
        """[1, T] the value after each token."""
        return self.value_fn(self.transformer(ids)[0]).squeeze(-1)


@torch.no_grad()
def alone(score):
    """[B] scores of the rows, each by itself and without padding."""
    return torch.tensor([float(score(torch.tensor([row]))) for row in ROWS])


def last(model):
    return lambda ids: model(ids)[0, -1]


def logit(model):
    return lambda ids: model(ids).logits[0, 0]


def classifier_on(base, **options):
    """transformers' own sequence classifier over a folder, its head away from zero."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, **options)
    torch.manual_seed(6)
    nn.init.normal_(model.score.weight)
    return model.eval()


def as_reward(folder, batch, base=None):
    """Our packed scores [B] and values [B, T], by the folder's own trunk or as adapters on ``base``."""
    reward = read_reward_folder(folder)
    if reward.kind == "model":
        model: Any = load_reward_trunk(reward)
    else:
        model = load_causal_lm(base)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            for number, link in enumerate(reward.links):
                add_adapter(model, f"a{number}", link.files.config, link.files.state)
        wear(model, [f"a{number}" for number in range(len(reward.links))])
        prepare_trunk(model)
    assert is_packed(model)
    assert not model.training
    heads = {"score": reward.head(WIDTH), "value": reward.head(WIDTH, kind="value")}
    with torch.no_grad():
        out = answer(model, heads, batch, wants=("score", "value"))
    return out.scores, out.values


def agree(folder, batch, expected, values=None, base=None):
    """Both uses of the folder say what its own code says; ``values`` of the states before each token."""
    scores, found = as_reward(folder, batch, base)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.05  # different texts, different scores: a mistake would show
    if values is None:
        return
    for b, row in enumerate(ROWS):
        with torch.no_grad():
            own = values(torch.tensor([row]))[0]
        torch.testing.assert_close(found[b, 1 : len(row)], own[:-1], atol=1e-5, rtol=0)


# sequence classifiers


@pytest.mark.parametrize("family", FAMILIES)
def test_sequence_classifiers(family, make_base, batch, tmp_path) -> None:
    model = classifier_on(make_base(family), pad_token_id=0)
    model.save_pretrained(tmp_path / "rm")
    assert read_reward_folder(tmp_path / "rm").layout == "a sequence classifier"
    agree(tmp_path / "rm", batch, alone(logit(model)), lambda ids: model.score(model.base_model(ids)[0]).squeeze(-1))


def test_sequence_classifiers_in_shards_and_bin(make_base, batch, tmp_path) -> None:
    model = classifier_on(make_base(), pad_token_id=0)
    model.save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    agree(tmp_path / "shards", batch, alone(logit(model)))
    (tmp_path / "bin").mkdir()
    model.config.save_pretrained(tmp_path / "bin")
    torch.save(model.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    agree(tmp_path / "bin", batch, alone(logit(model)))


def test_a_classifier_that_pads_with_its_last_token_is_read_before_it(make_base, batch, tmp_path) -> None:
    """transformers takes every pad token at the end for padding; two of the rows end in token 7."""
    model = classifier_on(make_base(), pad_token_id=7)
    model.save_pretrained(tmp_path / "rm")
    expected = alone(logit(model))
    agree(tmp_path / "rm", batch, expected)
    assert "read at the token before" in read_reward_folder(tmp_path / "rm").notes[0]
    scores = model(batch.input_ids[:1, :6]).logits[0, 0]
    torch.testing.assert_close(scores, expected[0], atol=1e-5, rtol=0)


def test_our_own_exported_reward_model(trained, tiny_llama, tmp_path, make_batch) -> None:
    from posttrain.config import load_config
    from posttrain.models.export import export_model

    keys = {"model_name_or_path": str(tiny_llama), "adapter_name_or_path": str(trained / "rm")}
    export_model(load_config({**keys, "export_dir": str(tmp_path / "rm")}, command="export"), notify=lambda _: None)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    agree(tmp_path / "rm", make_batch(ROWS), alone(logit(model)))
    assert read_reward_folder(tmp_path / "rm").layout == "a reward model of posttrain"


# whole models with a value head


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_llamafactorys_full_reward_models(family, kind, make_base, batch, tmp_path) -> None:
    model = ValueHeadModel(AutoModelForCausalLM.from_pretrained(make_base(family)).eval())
    folder = tmp_path / "rm"
    model.pretrained_model.save_pretrained(folder)
    if kind == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(model.pretrained_model.state_dict(), folder / "pytorch_model.bin")
        torch.save(model.head_state(), folder / "value_head.bin")
    else:
        save_file(model.head_state(), folder / "value_head.safetensors", metadata={"format": "pt"})
    assert read_reward_folder(folder).layout == "a LLaMA-Factory reward model"
    agree(folder, batch, alone(last(model)), model)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("prefix", ["", "pretrained_model.", "module.pretrained_model."])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_value_heads_among_the_weights(kind, prefix, family, make_base, batch, tmp_path) -> None:
    base = AutoModelForCausalLM.from_pretrained(make_base(family)).eval()
    model, folder = ValueHeadModel(base), tmp_path / "rm"
    base.config.save_pretrained(folder)
    state = {f"{prefix}{name}": tensor.clone() for name, tensor in base.state_dict().items()}
    state |= model.head_state("module.v_head.summary." if "module." in prefix else "v_head.summary.")
    torch.save(state, folder / WEIGHTS[kind]) if kind == "bin" else save_file(state, folder / WEIGHTS[kind])
    agree(folder, batch, alone(last(model)), model)


@pytest.mark.parametrize("save", ["state_dict", "save_pretrained"])
def test_a_gpt2_trunk_with_value_fn(save, make_base, batch, tmp_path) -> None:
    torch.manual_seed(8)
    model, folder = RewardModel(AutoConfig.from_pretrained(make_base("gpt2"))).eval(), tmp_path / "rm"
    model.config.architectures = ["RewardModel"]
    if save == "save_pretrained":
        model.save_pretrained(folder)
    else:
        model.config.save_pretrained(folder)
        # what older versions of transformers wrote along
        extra = {
            "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4),
            "transformer.h.0.attn.masked_bias": torch.ones(()),
        }
        torch.save({**model.state_dict(), **extra}, folder / "pytorch_model.bin")
        (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n", encoding="utf-8")
    reward = read_reward_folder(folder)
    assert reward.layout == "a trunk with a value_fn head"
    assert reward.head(WIDTH).bias.item() == 0.0
    agree(folder, batch, alone(last(model)), model)


# adapters


def llamafactory_adapter(model, base, folder, kind):
    """The folder that LLaMA-Factory leaves of a LoRA run: peft's adapter and the value head beside it."""
    model.pretrained_model = get_peft_model(
        model.pretrained_model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    ).eval()
    model.pretrained_model.peft_config["default"].base_model_name_or_path = str(base)
    model.pretrained_model.save_pretrained(folder)
    if kind == "bin":
        torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
        (folder / "adapter_model.safetensors").unlink()
        torch.save(model.head_state(), folder / "value_head.bin")
    elif kind == "first":  # as the first versions named the layer
        torch.save(model.head_state("summary."), folder / "value_head.bin")
    else:
        save_file(model.head_state(), folder / "value_head.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("kind", ["safetensors", "bin", "first"])
def test_llamafactorys_reward_adapters(kind, make_base, batch, tmp_path) -> None:
    base = make_base()
    model = ValueHeadModel(AutoModelForCausalLM.from_pretrained(base))
    llamafactory_adapter(model, base, tmp_path / "rm", kind)
    reward = read_reward_folder(tmp_path / "rm")
    assert (reward.kind, reward.layout) == ("adapter", "a LLaMA-Factory reward adapter")
    assert reward.base_name_or_path == str(base)
    agree(tmp_path / "rm", batch, alone(last(model)), model, base)


def seq_cls_adapter(base, folder, **options):
    """What peft itself saves of a sequence classifier; returns the model."""
    model = classifier_on(base, pad_token_id=0)
    targets = options.pop("target_modules", ["q_proj", "v_proj", "up_proj"])
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=4, target_modules=targets, init_lora_weights=False, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = get_peft_model(model, config).eval()
    nn.init.normal_(model.base_model.model.score.modules_to_save["default"].weight)  # trained away from the start
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"target_modules": "all-linear"}], ids=str)
def test_peft_sequence_classifier_adapters(family, options, make_base, batch, tmp_path) -> None:
    base = make_base(family)
    if family == "gpt2":
        options = {"target_modules": ["c_attn", "c_proj"], **options}
    model = seq_cls_adapter(base, tmp_path / "rm", **options)
    reward = read_reward_folder(tmp_path / "rm")
    assert (reward.kind, reward.layout) == ("adapter", "a peft SEQ_CLS adapter")
    assert reward.base_name_or_path == str(base)
    agree(tmp_path / "rm", batch, alone(logit(model)), base=base)
    again = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=0), tmp_path / "rm"
    )
    torch.testing.assert_close(alone(logit(again.eval())), alone(logit(model)))


def test_a_whole_training_state_of_a_seq_cls_adapter(make_base, batch, tmp_path) -> None:
    """Keys that name the adapter, and the untouched copy of the head, as sharded training leaves them."""
    base, folder = make_base(), tmp_path / "rm"
    model = seq_cls_adapter(base, folder)
    (folder / "adapter_model.safetensors").unlink()
    state = {name: t for name, t in model.state_dict().items() if ".lora_" in name or ".score." in name}
    assert any(name.endswith("score.modules_to_save.default.weight") for name in state)
    assert any(name.endswith("score.original_module.weight") for name in state)
    torch.save(state, folder / "adapter_model.bin")
    agree(folder, batch, alone(logit(model)), base=base)


def test_a_seq_cls_adapter_pads_as_the_tokenizer_beside_it(make_base, batch, tmp_path) -> None:
    base, folder = make_base(), tmp_path / "rm"
    model = seq_cls_adapter(base, folder)
    settings = {"pad_token": "<e>", "added_tokens_decoder": {"7": {"content": "<e>"}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    model.base_model.model.config.pad_token_id = 7
    agree(folder, batch, alone(logit(model)), base=base)
    del settings["added_tokens_decoder"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokens = {"added_tokens": [{"id": 0, "content": "<p>"}, {"id": 7, "content": "<e>"}]}
    (folder / "tokenizer.json").write_text(json.dumps(tokens), encoding="utf-8")
    agree(folder, batch, alone(logit(model)), base=base)


def test_a_critic_starts_from_what_the_reward_says(make_base, batch, tmp_path) -> None:
    model = classifier_on(make_base(), pad_token_id=0)
    model.save_pretrained(tmp_path / "rm")
    head = read_reward_folder(tmp_path / "rm").head(WIDTH)
    critic, states = head.rescaled(2.0, 0.5), torch.randn(3, WIDTH)
    assert critic.kind == "value"
    torch.testing.assert_close(critic(states), 2.0 * head(states) + 0.5)
    assert [name for name, _ in critic.named_parameters()] == ["weight", "bias"]


def test_what_a_head_skips_survives_saving(tmp_path) -> None:
    head = ScalarHead(4, "score", generator=torch.Generator().manual_seed(1))
    head.save(tmp_path)
    assert ScalarHead.load(tmp_path, 4).skips is None
    head.skips = 7
    head.save(tmp_path)
    assert ScalarHead.load(tmp_path, 4).skips == 7


def test_reading_loads_no_trunk(make_base, tmp_path, monkeypatch) -> None:
    classifier_on(make_base(), pad_token_id=0).save_pretrained(tmp_path / "rm")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    reward = read_reward_folder(tmp_path / "rm")
    assert reward.hidden_size == WIDTH
    with pytest.raises(UserError, match=r"hidden size 32, the model at hand has 64"):
        reward.head(64)


@pytest.mark.parametrize("brings_its_own", [False, True])
def test_the_output_head_shares_the_embedding(brings_its_own, make_base, tmp_path) -> None:
    folder = make_base() if brings_its_own else tmp_path / "rm"
    if brings_its_own:
        assert "lm_head.weight" in load_file(folder / "model.safetensors")
        save_file({"v_head.summary.weight": torch.ones(1, WIDTH)}, folder / "value_head.safetensors")
    else:
        classifier_on(make_base(), pad_token_id=0).save_pretrained(folder)
    trunk: Any = load_reward_trunk(read_reward_folder(folder))
    assert trunk.lm_head.weight is trunk.model.embed_tokens.weight
    assert not any(parameter.requires_grad for parameter in trunk.parameters())
