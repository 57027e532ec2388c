"""What tests of many rooms share: one thread, tiny models of several families, tiny data, and runs over both."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from posttrain.types import Batch, PreferenceBatch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FRUITS = ["apple", "pear", "plum", "fig", "lime", "kiwi", "date", "peach", "melon", "grape", "mango", "berry"]
VOCABULARY = 61
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 7,
    "pad_token_id": 0,
}
GEMMA = {**SIZE, "initializer_range": 0.15, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZE, head_dim=8)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZE, sliding_window=5)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            **{"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
            **{"initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 7},
        )
    ),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=3.0)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**GEMMA, layer_types=["sliding_attention", "full_attention"])),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SIZE, sliding_window=5)),
    "olmo2": lambda: Olmo2ForCausalLM(Olmo2Config(**SIZE)),
    "smollm3": lambda: SmolLM3ForCausalLM(SmolLM3Config(**SIZE, no_rope_layers=[1, 0])),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZE)),
}


@pytest.fixture(scope="session", autouse=True)
def threads():
    """Models of this size run faster on one thread, the more so beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_model():
    """Build a random model of a family (``llama``, ``gpt2`` ...), the same one for the same seed."""

    def make(family="llama", seed=11):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = FAMILIES[family]()
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1:  # norms and biases start at 1 or 0, where a mistake may not show
                    with torch.no_grad():
                        parameter += 0.1 * torch.randn(parameter.shape) * (1 if "norm" in name or "ln" in name else 3)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def make_batch():
    """Right-padded rows as a batch; by default all tokens but the first quarter of each row train."""

    def make(rows, *, pad=0, starts=None, pairs=False, margins=None, width=None):
        width = width or max(map(len, rows))
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.tensor([list(row) + [pad] * (width - len(row)) for row in rows])
        columns = torch.arange(width)[None, :]
        attention = columns < lengths[:, None]
        begins = lengths // 4 if starts is None else torch.tensor(starts)
        kind = PreferenceBatch if pairs else Batch
        options = {"margins": margins} if pairs else {}
        mask = attention & (columns >= begins[:, None])
        return kind(input_ids=ids, attention_mask=attention, loss_mask=mask, **options)

    return make


@pytest.fixture(scope="session")
def ragged_rows():
    """Random rows of random lengths; runs of neighbours share a prefix."""

    def draw(seed, groups=3, *, longest=18, vocabulary=VOCABULARY):
        chance = random.Random(seed)
        rows = []
        for _ in range(groups):
            prefix = [chance.randrange(8, vocabulary) for _ in range(chance.choice([1, 4, 9, longest]))]
            for _ in range(chance.randint(1, 3)):
                tail = chance.randint(0 if len(prefix) > 1 else 1, longest)
                rows.append(prefix + [chance.randrange(8, vocabulary) for _ in range(tail)])
        return rows

    return draw


def build_tokenizer():
    """Byte-level BPE with a ChatML template whose end of turn is the end of sequence."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"user assistant system name a fruit {fruit}\n" for fruit in FRUITS], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=["<|im_start|>"],
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
    )
    fast.chat_template = CHATML
    return fast


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """Folder of a random two-layer Llama with its tokenizer, as the hub would give it."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        **{**SIZE, "vocab_size": len(tokenizer), "intermediate_size": 64, "max_position_embeddings": 256},
    )
    config.eos_token_id, config.pad_token_id, config.bos_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id, None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """Folder of small datasets: chat.json, pairs.json, judged.json, prompts.json, text.jsonl."""
    folder = tmp_path_factory.mktemp("data")
    asked = [f"name a fruit like {fruit}" for fruit in FRUITS]
    answers = FRUITS[1:] + FRUITS[:1]
    tables = {
        "chat.json": [{"instruction": q, "input": "", "output": a} for q, a in zip(asked, answers, strict=True)],
        "pairs.json": [
            {"prompt": q, "chosen": f"{a}!", "rejected": f"no {a}"} for q, a in zip(asked, answers, strict=True)
        ],
        "judged.json": [
            {"instruction": q, "output": f"{a}!" if i % 3 else f"no {a}", "kto_tag": bool(i % 3)}
            for i, (q, a) in enumerate(zip(asked, answers, strict=True))
        ],
        "prompts.json": [{"instruction": q, "input": "", "output": ""} for q in asked],
    }
    for name, rows in tables.items():
        (folder / name).write_text(json.dumps(rows), encoding="utf-8", newline="\n")
    lines = [json.dumps({"text": f"{q} {a} " * 3}) for q, a in zip(asked, answers, strict=True)]
    (folder / "text.jsonl").write_text("\n".join(lines), encoding="utf-8", newline="\n")
    return folder


@pytest.fixture(scope="session")
def tiny_config(tiny_llama, tiny_data):
    """A resolved configuration of a short run on the tiny model; keywords are keys of the YAML file."""
    from posttrain.config import is_online, load_config

    datasets = {
        **{"pt": "text.jsonl", "sft": "chat.json", "rm": "pairs.json", "dpo": "pairs.json", "kto": "judged.json"},
    }

    def make(stage, output_dir: Path | str, **keys):
        values = {
            "stage": stage,
            "model_name_or_path": str(tiny_llama),
            "dataset": str(tiny_data / datasets.get(stage, "prompts.json")),
            "output_dir": str(output_dir),
            "cutoff_len": 64,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "num_train_epochs": 1,
            "lora_rank": 4,
            "logging_steps": 1,
            "disable_tqdm": True,
            "report_to": "none",
            "seed": 1,
        }
        if is_online(stage):
            values |= {"max_new_tokens": 8, "ppo_epochs": 2, "ppo_buffer_size": 1}
        return load_config({**values, **keys})

    return make


@pytest.fixture(scope="session")
def trained(tiny_llama, tiny_config, tmp_path_factory):
    """Folders of finished runs on the tiny model, moved far enough from it that a mistake shows.

    ``pt``, ``sft`` and ``rm`` are adapters on the base; ``sft_on_pt`` and ``rm_on_sft`` stand on another adapter;
    ``merged`` is the base with ``sft`` added by peft, its lineage written beside it.
    """
    from peft import PeftModel

    from posttrain.models.adapter_files import read_adapter
    from posttrain.models.lineage import Backbone, Lineage, Parent, adapter_fingerprint, fingerprint, write_lineage
    from posttrain.models.load import load_causal_lm, load_tokenizer
    from posttrain.train.run import train

    root = tmp_path_factory.mktemp("trained")
    upon = {"sft_on_pt": "pt", "rm_on_sft": "sft"}
    for name in ("pt", "sft", "rm", "sft_on_pt", "rm_on_sft"):
        keys = {"adapter_name_or_path": str(root / upon[name]), "create_new_adapter": True} if name in upon else {}
        stage = name.split("_")[0]
        train(tiny_config(stage, root / name, learning_rate=2e-2, num_train_epochs=3, save_strategy="no", **keys))
    base = load_causal_lm(tiny_llama)
    mark = fingerprint(base)
    merged = PeftModel.from_pretrained(base, root / "sft").merge_and_unload()
    merged.save_pretrained(root / "merged")
    load_tokenizer(tiny_llama).save_pretrained(root / "merged")
    parent = Parent(path=str(root / "sft"), fingerprint=adapter_fingerprint(read_adapter(root / "sft").state))
    write_lineage(
        root / "merged",
        Lineage(
            stage="export",
            base=Backbone(name_or_path=str(tiny_llama), fingerprint=mark),
            parents=(parent,),
            merged=True,
            weights=fingerprint(merged),
        ),
    )
    return root


class JudgeServer:
    """A server on this machine that answers chat completions as a function of what it is asked.

    Attributes:
        url: its base URL. asked: the questions in the order in which they came. headers: of each request.
        payloads: of each request, as parsed.
    """

    def __init__(self, reply):
        """``reply``: question -> the answer's text; (status, body) or (status, body, headers); None hangs up."""
        self.asked, self.headers, self.payloads = [], [], []
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.asked.append(payload["messages"][-1]["content"])
                    outer.headers.append({"path": self.path, **self.headers})
                    outer.payloads.append(payload)
                said = reply(payload["messages"][-1]["content"])
                if said is None:
                    self.close_connection = True
                    return
                status, body, *more = (200, outer.completion(said)) if isinstance(said, str) else said
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **(more[0] if more else {})}.items():
                    self.send_header(name, value)
                with contextlib.suppress(ConnectionError):  # whoever asked may be dead by now
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_):
                """Nothing: the output of tests is for failures."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @staticmethod
    def completion(text):
        """The body of a chat completion that says ``text``."""
        message = {"role": "assistant", "content": text}
        return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()

    @staticmethod
    def answers_in(question):
        """The answers that a question of the built-in English prompts shows: two, or one."""
        return re.findall(r"=== answer ?[AB]? ===\n(.*?)\n=== end of answer", question, re.DOTALL)

    def close(self):
        """From now on nobody listens there."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def judge_server():
    """Start a server with a reply; see ``JudgeServer``. All of them end with the test."""
    started = []

    def start(reply):
        started.append(JudgeServer(reply))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture
def longer():
    """A judge without whims: the longer answer is better; with one answer, its length up to 10 is its score."""

    def reply(question):
        answers = JudgeServer.answers_in(question)
        if len(answers) == 1:
            return f"Its length decides.\nScore: {max(1, min(len(answers[0]), 10))}"
        first, second = map(len, answers)
        return f"I counted.\n\n**Verdict: {'tie' if first == second else 'A' if first > second else 'B'}**"

    return reply
