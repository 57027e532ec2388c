"""Tokenizers small enough to build in a test, each with one habit that real ones have; and shared files."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

SHARED = Path(__file__).resolve().parents[3] / "shared"

TURNS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
)
HEADER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = TURNS + HEADER
INJECTED = "You are a helpful AI assistant named Tiny."
INJECTING = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    + INJECTED
    + "<|im_end|>\n' }}{% endif %}"
    + CHATML
)
STRIPPING = CHATML.replace("message['content']", "message['content'] | trim")
# Writes the header of an answer only together with the answer, as templates older than generation prompts do.
SILENT = TURNS
# Closes an answer with a blank, as Llama 2 does, and opens the next exchange with a special token.
SPACED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ ' ' + message['content'] + ' <|end|>' }}"
    "{% else %}{{ '<|im_start|>[INST] ' + message['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)
# Closes no answer with a token of its own.
UNCLOSED = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
# Drops thoughts from earlier answers and writes an empty one before the last, as Qwen3 does.
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'].split('</think>')[-1] + '<|im_end|>\n' }}{% endfor %}" + HEADER
)

SENTENCES = [
    "Show the names of all students older than twenty.",
    "SELECT name FROM students WHERE age > 20;\n\nSELECT count(*) FROM t;\n",
    "查看备案有效期在今天之后的委托信息",
    "user\n\nassistant\n\nsystem\n\n",
    "the quick brown fox jumps over the lazy dog " * 3,
]


def build_tokenizer(chat_template=None, **special):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|end|>", "<|im_start|>", "<|im_end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    special = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>", **special}
    special = {key: token for key, token in special.items() if token is not None}
    extra = ["<|im_start|>", "<|im_end|>"]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=extra, **special)
    fast.chat_template = chat_template
    return fast


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """Nothing that a test encodes stays with the user."""
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path / "own_home"))


@pytest.fixture(scope="session")
def make_tokenizer():
    """Build a tokenizer with a chat template and special tokens; ``eos_token=None`` leaves one out."""
    return build_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    """ChatML, the answer closed by <|im_end|>, which is the end of sequence too."""
    return build_tokenizer(CHATML)


@pytest.fixture(
    scope="session",
    params=["chatml", "injecting", "stripping", "silent", "spaced", "unclosed", "thinking", "pad is eos", "other eos"],
)
def any_tokenizer(request):
    """One tokenizer per habit."""
    special = {"pad is eos": {"pad_token": "<|im_end|>"}, "other eos": {"eos_token": "<|end|>"}}
    templates = {
        **{"injecting": INJECTING, "stripping": STRIPPING, "silent": SILENT, "spaced": SPACED},
        **{"unclosed": UNCLOSED, "thinking": THINKING},
    }
    return build_tokenizer(templates.get(request.param, CHATML), **special.get(request.param, {}))


@pytest.fixture(scope="session")
def minimind():
    """A real tokenizer, Chinese and English, that injects a system prompt."""
    folder = SHARED / "models" / "minimind2-small"
    if not folder.is_dir():
        pytest.skip("no minimind2-small beside the repository")
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def demo_folder():
    """LLaMA-Factory's demo data with its dataset_info.json."""
    folder = SHARED / "data" / "llamafactory-demo"
    if not folder.is_dir():
        pytest.skip("no LLaMA-Factory demo data beside the repository")
    return folder


@pytest.fixture(scope="session")
def harmless_file():
    """Preference transcripts, gzipped."""
    file = SHARED / "data" / "hh_rlhf_harmless_test" / "test.jsonl.gz"
    if not file.is_file():
        pytest.skip("no hh-rlhf data beside the repository")
    return file


@pytest.fixture(scope="session")
def reference_document():
    """The text that shows the row shapes of SFT and reward data."""
    files = sorted((SHARED / "reference").glob("000_*.txt"))
    if not files:
        pytest.skip("no reference documents beside the repository")
    return files[0].read_text(encoding="utf-8")


@pytest.fixture
def write_rows(tmp_path):
    """Write rows as a JSON list (or JSON Lines, by suffix) and return the path."""

    def write(rows, name="rows.json"):
        path = tmp_path / name
        lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        text = lines if path.suffix == ".jsonl" else json.dumps(rows, ensure_ascii=False, indent=2)
        path.write_text(text, encoding="utf-8", newline="\n")
        return path

    return write
