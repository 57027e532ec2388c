"""Models and tokenizers in memory: where their weights lie, views over them, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    OPTForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from posttrain.errors import UserError
from posttrain.models.assemble import offline_assembly
from posttrain.models.given import Given, GivenModel, given_tokenizer, reads_alike
from posttrain.models.heads import trunk_width
from posttrain.models.lineage import fingerprint
from posttrain.types import Batch, Role

GPT2 = {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "pad_token_id": 0}
OPT = {
    **{"vocab_size": 320, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"max_position_embeddings": 64, "word_embed_proj_dim": 16, "pad_token_id": 0},
}
CLASSIFIERS = {
    "gpt2": lambda: GPT2ForSequenceClassification(GPT2Config(**GPT2, num_labels=1)),
    "opt": lambda: OPTForSequenceClassification(OPTConfig(**OPT, num_labels=1)),
}


def test_the_folder_a_model_was_loaded_from_is_its_home_until_it_changes(tiny_llama, tmp_path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    assert GivenModel(model).home() == str(tiny_llama)
    half = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16)
    assert GivenModel(half).home() == str(tiny_llama)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1.1)
    assert GivenModel(model).home() is None
    assert GivenModel(AutoModelForCausalLM.from_config(half.config)).home() is None
    model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").is_file()
    assert GivenModel(AutoModelForCausalLM.from_pretrained(tmp_path / "sharded")).home() == str(tmp_path / "sharded")


def test_a_folder_with_other_names_or_in_the_old_format(tiny_llama, tmp_path) -> None:
    """GPT-2 from the hub lacks the prefix of its trunk; older folders hold a pytorch_model.bin."""
    model = GPT2LMHeadModel(GPT2Config(**GPT2))
    model.save_pretrained(tmp_path)
    state = {k.removeprefix("transformer."): v for k, v in load_file(tmp_path / "model.safetensors").items()}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.transformer.wte.weight, model.transformer.wte.weight)
    assert GivenModel(loaded).home() == str(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert GivenModel(loaded).home() == str(tmp_path)


def test_a_classifier_of_an_untied_model_needs_the_head_of_the_language_model(tiny_llama, tmp_path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=1)
    assert not model.config.tie_word_embeddings
    assert GivenModel(model, scores=True).home() == str(tiny_llama)
    model.save_pretrained(tmp_path)
    assert GivenModel(AutoModelForSequenceClassification.from_pretrained(tmp_path), scores=True).home() is None


@pytest.mark.parametrize("family", CLASSIFIERS)
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_trunk_of_any_width_scores_as_its_classifier_does(tmp_path, tiny_llama, tiny_config, family, kind) -> None:
    """Also OPT's, whose states are projected behind the last layer; from memory (full) and from its new home (lora)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = CLASSIFIERS[family]().eval()
    taken = GivenModel(model, scores=True)
    taken.write(tmp_path / "home", AutoTokenizer.from_pretrained(tiny_llama))
    assert taken.lies_in(tmp_path / "home")
    config = tiny_config("rm", tmp_path / "out", model_name_or_path=str(tmp_path / "home"), finetuning_type=kind)
    roles = offline_assembly(config, Given(model=taken)).roles.eval()
    ids = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 4]])
    whole = torch.ones_like(ids, dtype=torch.bool)
    scores = roles(Batch(input_ids=ids, attention_mask=whole, loss_mask=whole), (Role.REWARD,)).scores
    with torch.no_grad():
        torch.testing.assert_close(scores.detach(), model(ids).logits[:, 0], atol=1e-5, rtol=1e-5)
    assert trunk_width(model.config) == model.score.in_features


def test_opt_trains_as_a_language_model(tmp_path, tiny_llama, tiny_config) -> None:
    model = OPTForCausalLM(OPTConfig(**OPT)).eval()
    taken = GivenModel(model)
    taken.write(tmp_path / "home", AutoTokenizer.from_pretrained(tiny_llama))
    config = tiny_config("sft", tmp_path / "out", model_name_or_path=str(tmp_path / "home"))
    roles = offline_assembly(config, Given(model=taken)).roles.eval()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    whole = torch.ones_like(ids, dtype=torch.bool)
    found = roles(Batch(input_ids=ids, attention_mask=whole, loss_mask=whole), (Role.ACTOR,)).logprobs[0, 1:]
    with torch.no_grad():
        expected = model(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(found.detach(), expected, atol=1e-5, rtol=1e-5)


def test_a_view_shares_tensors_and_nothing_else(tiny_llama, tiny_config, tmp_path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    frozen = GivenModel(model).backbone(tiny_config("sft", tmp_path), trains_base=False)
    whole = GivenModel(model).backbone(tiny_config("sft", tmp_path), trains_base=True)
    for own, first, second in zip(model.parameters(), frozen.parameters(), whole.parameters(), strict=True):
        assert own.data_ptr() == first.data_ptr() == second.data_ptr()
        assert own is second
        assert own is not first
    assert frozen.config is not model.config
    adapters = tiny_config("sft", tmp_path, adapter_name_or_path="somewhere")
    copied = GivenModel(model).backbone(adapters, trains_base=False)
    assert next(copied.parameters()).data_ptr() != next(model.parameters()).data_ptr()
    assert fingerprint(copied) == fingerprint(model)


def test_half_precision_is_left_alone_unless_the_weights_train(tiny_llama, tiny_config, tmp_path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16)
    taken = GivenModel(model)
    assert taken.backbone(tiny_config("sft", tmp_path), trains_base=False).dtype == torch.float32
    assert model.dtype == torch.bfloat16
    assert "float32 from now on, not bfloat16" in taken.notes(trains_base=True)[0]
    taken.backbone(tiny_config("sft", tmp_path), trains_base=True)
    assert model.dtype == torch.float32


def test_lent_weights_come_back_as_they_were(make_model) -> None:
    model = make_model()
    names = [name for name, _ in model.named_parameters()]
    model.get_parameter(names[0]).requires_grad_(False)
    with GivenModel(model).lent():
        for parameter in model.parameters():
            parameter.requires_grad_(not parameter.requires_grad)
        model.get_parameter(names[0]).grad = torch.ones_like(model.get_parameter(names[0]))
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * (len(names) - 1)
    assert model.get_parameter(names[0]).grad is None


class Wrapped(torch.nn.Module):
    """A language model with a value head, as other libraries wrap one."""

    def __init__(self, model):
        super().__init__()
        self.pretrained_model = model


def sizes(**more):
    return {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, **more}


REFUSED = {
    "a name": (lambda model: 3, "model is a int; give a name, a folder, or a model of transformers"),
    "peft": (lambda model: get_peft_model(copy.deepcopy(model), LoraConfig(r=2)), "has an adapter in it already"),
    "injected": (lambda model: get_peft_model(model, LoraConfig(r=2)).base_model.model, "has an adapter in it already"),
    "wrapped": (Wrapped, "model is a Wrapped; give the language model inside it, model.pretrained_model"),
    "trunk": (lambda model: AutoModel.from_config(model.config), "is a LlamaModel, no causal language model"),
    "classifier": (
        lambda model: AutoModelForSequenceClassification.from_config(model.config),
        "which gives scores and no text; load it with AutoModelForCausalLM",
    ),
    "encoder-decoder": (
        lambda model: T5ForConditionalGeneration(T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1)),
        "no causal language model",
    ),
    "meta": (lambda model: model.to("meta"), "some of whose weights are not in memory"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_trained_is_refused(make_model, make, message) -> None:
    with pytest.raises(UserError, match=message):
        GivenModel(make(make_model()))


def test_an_encoder_is_no_beginning_of_a_reward_model() -> None:
    encoder = BertForSequenceClassification(BertConfig(**sizes(intermediate_size=16)))
    with pytest.raises(UserError, match="whose trunk is no language model's"):
        GivenModel(encoder, scores=True)


def test_a_quantised_model_is_refused(make_model) -> None:
    model = make_model()
    model.hf_quantizer = object()
    with pytest.raises(UserError, match="a quantised LlamaForCausalLM; give its name or folder"):
        GivenModel(model)


def test_tokenizers(tiny_llama, make_model) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    taken = given_tokenizer(tokenizer, None, str(tiny_llama))
    assert taken is not tokenizer
    assert reads_alike(taken, tokenizer)
    with pytest.raises(UserError, match="writes token ids up to 319, and the model has 61 of them"):
        given_tokenizer(tokenizer, GivenModel(make_model()), None)
    swapped = AutoTokenizer.from_pretrained(tiny_llama)
    names = swapped.convert_ids_to_tokens([50, 51])
    text = swapped.backend_tokenizer.to_str().replace(f'"{names[0]}":50', '"@@":50')
    assert text != swapped.backend_tokenizer.to_str()
    swapped._tokenizer = swapped.backend_tokenizer.from_str(text)
    with pytest.raises(UserError, match="does not fit the model: 1 of the 320 tokens"):
        given_tokenizer(swapped, None, str(tiny_llama))
    bare = AutoTokenizer.from_pretrained(tiny_llama)
    bare.chat_template = None
    assert not reads_alike(bare, tokenizer)
    bare.pad_token = None
    assert given_tokenizer(bare, None, str(tiny_llama)).pad_token == bare.eos_token
    assert bare.pad_token is None
