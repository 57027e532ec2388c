"""What benchmarks/llamafactory_tokens.py gives to both programs: two tokenizers, and rows of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

NUM_MERGES = 1200
# How both families split text before merging: words with their blank, short numbers, punctuation, line ends.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SPECIAL = {
    "qwen": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "llama3": (
        *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eom_id|>",
    ),
}


def tokenizer(family: str, merges: Sequence[str], more: Iterable[str] = ()) -> Any:
    """A byte-level BPE tokenizer with the special tokens of its family, and no chat template."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    pairs = [tuple(merge.split(" ")) for merge in merges]
    words = dict.fromkeys([*sorted(_alphabet()), *("".join(pair) for pair in pairs)])
    made = _byte_level(Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=pairs)))
    if family == "qwen":
        made.normalizer = normalizers.NFC()
    tokens = [AddedToken(token, special=True, normalized=False) for token in (*SPECIAL[family], *more)]
    made.add_special_tokens(tokens)
    if family == "qwen":
        return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    begin = ("<|begin_of_text|>", made.token_to_id("<|begin_of_text|>"))
    made.post_processor = processors.TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=begin[0], eos_token="<|eot_id|>")


def _alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel.alphabet()


def _byte_level(made: Any) -> Any:
    from tokenizers import Regex, decoders, pre_tokenizers

    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    made.decoder = decoders.ByteLevel()
    return made


def learned_merges(files: Iterable[Path]) -> list[str]:
    """Merges of a byte-level BPE over the texts of some files."""
    from tokenizers import Tokenizer, models, trainers

    made = _byte_level(Tokenizer(models.BPE()))
    size = len(_alphabet()) + NUM_MERGES
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=_alphabet(), show_progress=False)
    made.train_from_iterator([path.read_text(encoding="utf-8") for path in files], trainer)
    return [" ".join(pair) for pair in json.loads(made.to_str())["model"]["merges"]]


def own_sets() -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Rows written here, so that a few can be recorded whole: name -> (entry of dataset_info.json, rows)."""
    asked = [
        {"from": "human", "value": "1 + 1?"},
        {"from": "gpt", "value": "2\n"},
        {"from": "human", "value": "一加二?"},
    ]
    fence = "\n\n```sql\nSELECT 1;\n```"
    chats = [
        {"conversations": [{"from": "system", "value": "Be brief."}, *asked, {"from": "gpt", "value": " 三。"}]},
        {"conversations": [{"from": "human", "value": "\nSELECT 1;\n"}, {"from": "gpt", "value": fence}]},
    ]
    history = [["Hi", "Hello!\n"], ["Ready?", "é"]]
    alpaca = [
        {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day", "system": "", "history": []},
        {"instruction": "So?", "input": "", "output": "OK ☕", "system": "你很友好。", "history": history},
    ]
    better, worse = {"from": "gpt", "value": "3"}, {"from": "gpt", "value": "\nthree, I think"}
    pairs = [
        {"conversations": asked, "chosen": better, "rejected": worse},
        {"conversations": asked[:1], "chosen": worse, "rejected": better},
    ]
    judged = [
        {"instruction": f"{a} + {b}?", "output": str(a + b + (not good)), "good": good}
        for a, b, good in ((1, 2, True), (20, 22, False), (7, 7, True))
    ]
    plain = {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history"}
    sides = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    label = {"prompt": "instruction", "response": "output", "kto_tag": "good"}
    return {
        "own_alpaca": ({"columns": plain}, alpaca),
        "own_chats": ({"formatting": "sharegpt", "columns": {"messages": "conversations"}}, chats),
        "own_pairs": ({"formatting": "sharegpt", "ranking": True, "columns": sides}, pairs),
        "own_judged": ({"columns": label}, judged),
    }


def write_own_sets(folder: Path) -> Path:
    """The rows of ``own_sets`` as LLaMA-Factory's files; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    made = own_sets()
    info = {name: {"file_name": f"{name}.json", **entry} for name, (entry, _) in made.items()}
    for name, content in {"dataset_info": info, **{name: rows for name, (_, rows) in made.items()}}.items():
        (folder / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder


def special_tokens_of(texts: Iterable[str]) -> list[str]:
    """What looks like a special token in the texts of templates."""
    pattern = (
        r"<[|｜][^<>\s]+?[|｜]>|<(?:start|end)_of_turn>|<reserved_\d+>|<sop>|\[/?[A-Za-z]+(?:_PROMPT)?\]|\[\|\w+\|\]"
    )
    return sorted({found for text in texts for found in re.findall(pattern, text)})
