"""A tiny chat model with a tokenizer of bytes, and an adapter on it."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from posttrain.models.adapter_files import write_adapter
from posttrain.models.adapters import adapter_parameters, adapter_state, add_adapter, lora_config
from posttrain.models.lineage import Backbone, Lineage, fingerprint, write_lineage
from posttrain.models.load import load_causal_lm

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A random model; its tokens are bytes, so its answers are odd and may cut characters."""
    folder = tmp_path_factory.mktemp("serve") / "base"
    names = ["<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    fast.chat_template = CHATML
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(names),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter(tmp_path_factory, base):
    """A LoRA adapter that changes what the base says."""
    folder = tmp_path_factory.mktemp("serve") / "sft"
    model = load_causal_lm(base)
    mark = fingerprint(model)
    config = lora_config(model, rank=4, alpha=8, dropout=0.0, targets=("all",))
    add_adapter(model, "own", config)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter_parameters(model, "own").values():
        parameter.data.normal_(std=0.3, generator=generator)
    write_adapter(folder, config, adapter_state(model, "own"), base_model_name_or_path=str(base))
    write_lineage(folder, Lineage(stage="sft", base=Backbone(name_or_path=str(base), fingerprint=mark)))
    return folder
