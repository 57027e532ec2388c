"""The Python front door, used as scripts written for LLaMA-Factory use theirs."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import posttrain
from posttrain.errors import UserError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def base(tmp_path):
    torch.set_num_threads(1)
    names = ["<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    fast.chat_template = CHATML
    fast.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(names), num_key_value_heads=1, eos_token_id=1, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_train_merge_train_on_top_and_predict(base, tmp_path):
    """The flow of the five files: SFT, its merge, a second adapter on the merged model, prediction."""
    rows = [{"instruction": f"<question>:{i}", "input": "", "output": f"\nSELECT {i};\n"} for i in range(4)]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    said = []
    train = {
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_target": "all",
        "dataset": str(tmp_path / "rows.json"),
        "template": "qwen",
        "learning_rate": 0.1,
        "max_steps": 2,
        "report_to": "none",
        "disable_tqdm": True,
    }
    folders = {"model_name_or_path": str(base), "output_dir": str(tmp_path / "sft")}
    results = posttrain.run_exp({**train, **folders}, notify=said.append)
    assert results == json.loads((tmp_path / "sft" / "all_results.json").read_text(encoding="utf-8"))
    assert any("kept 4" in sentence for sentence in said)

    merge = {"model_name_or_path": str(base), "adapter_name_or_path": str(tmp_path / "sft"), "template": "qwen"}
    merged = posttrain.export_model({**merge, "finetuning_type": "lora", "export_dir": str(tmp_path / "merged")})
    assert merged == tmp_path / "merged"
    AutoModelForCausalLM.from_pretrained(merged)

    posttrain.run_exp({**train, "model_name_or_path": str(merged), "output_dir": str(tmp_path / "on_top")})
    predict = {"model_name_or_path": str(merged), "adapter_name_or_path": str(tmp_path / "on_top"), "stage": "sft"}
    chat_model = posttrain.ChatModel({**predict, "finetuning_type": "lora", "template": "qwen", "max_new_tokens": 4})
    res = chat_model.chat([{"role": "user", "content": rows[0]["instruction"]}])
    assert isinstance(res[0], posttrain.Response)
    assert isinstance(res[0].response_text, str)
    assert 1 <= res[0].response_length <= 4


def test_a_path_is_as_good_as_a_mapping_and_mistakes_are_named(tmp_path, base):
    path = tmp_path / "chat.yaml"
    path.write_text(f"model_name_or_path: {base}\nmax_new_tokens: 2\n", encoding="utf-8")
    assert posttrain.ChatModel(path).chat([{"role": "user", "content": "hi"}])[0].response_length <= 2
    for function in (posttrain.run_exp, posttrain.export_model, posttrain.ChatModel, posttrain.PPOTrainer):
        with pytest.raises(UserError, match="did you mean `template`"):
            function({"model_name_or_path": str(base), "templte": "qwen"})
