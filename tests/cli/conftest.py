"""A tiny model and a folder of data files, good and bad, for commands to run on."""

import json

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ROWS = [{"instruction": f"Count table {i}.", "input": "", "output": f"SELECT count(*) FROM t{i};"} for i in range(8)]
PAIRS = [
    {"conversations": [{"from": "human", "value": f"Count table {i}."}]}
    | {"chosen": {"from": "gpt", "value": f"SELECT count(*) FROM t{i};"}, "rejected": {"from": "gpt", "value": "No."}}
    for i in range(4)
]


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A random Llama whose tokens are bytes."""
    folder = tmp_path_factory.mktemp("cli") / "base"
    names = ["<|im_start|>", "<|im_end|>", "<|pad|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>", "additional_special_tokens": ["<|im_start|>"]}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = CHATML
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(names),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def work(tmp_path, base, monkeypatch):
    """The working directory: data/, and a function that writes a configuration and returns its name."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    (data / "sft.json").write_text(json.dumps(ROWS), encoding="utf-8")
    (data / "pairs.json").write_text(json.dumps(PAIRS), encoding="utf-8")

    def configure(name="sft.yaml", **keys):
        values = {
            "model_name_or_path": str(base),
            "stage": "sft",
            "dataset": "data/sft.json",
            "output_dir": "run",
            "max_steps": 1,
            "per_device_train_batch_size": 2,
            "report_to": "none",
            "disable_tqdm": True,
            **keys,
        }
        kept = {key: value for key, value in values.items() if value is not None}
        (tmp_path / name).write_text(yaml.safe_dump(kept), encoding="utf-8")
        return name

    return configure


@pytest.fixture(autouse=True)
def one_thread():
    """Models of this size run faster on one thread, the more so beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
