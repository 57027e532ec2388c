"""Keys of the model and of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain.config.options import option


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model is loaded, with which adapters on it, and in which precision."""

    model_name_or_path: str = option(
        help="Folder of the base model, or a name that `posttrain model fetch` or the Hugging Face hub knows.",
        path=True,
    )
    adapter_name_or_path: tuple[str, ...] = option(
        (), help="LoRA adapter folders worn by the base, the innermost first.", path=True
    )
    cache_dir: str | None = option(None, help="Where downloaded models are kept.", path=True)
    model_revision: str = option("main", help="Branch, tag or commit of a model from the hub.")
    use_fast_tokenizer: bool = option(True, help="Use the tokenizer written in Rust where there is one.")
    trust_remote_code: bool = option(False, help="Run Python code that a downloaded model brings along.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        help="Precision of the loaded weights; `auto` takes bf16 or fp16 where asked for on a GPU, else float32.",
    )
    quantization_bit: int | None = option(
        None, help="Bits of the frozen base under LoRA adapters, 4 or 8, through bitsandbytes; null loads it as it is."
    )
    quantization_method: Literal["bnb"] = option("bnb", help="What quantises: bitsandbytes.")
    quantization_type: Literal["nf4", "fp4"] = option("nf4", help="Code book of 4 bits.")
    double_quantization: bool = option(True, help="4 bits: quantise the scales of the blocks, too.")
    quantization_device_map: Literal["auto"] | None = option(
        None, help="Accepted for compatibility; the base is put whole on the one device that a process uses."
    )
    device_map: str | None = option(
        None, help="Where the model is put: null or `auto` is the GPU if there is one; `cpu`, `cuda` or `cuda:0`."
    )
    ref_model_quantization_bit: int | None = option(
        None,
        help="Bits of `ref_model`; null loads it as it is. Without one the reference stands on the base of the model "
        "that trains, and has its bits.",
    )
    reward_model_quantization_bit: int | None = option(
        None, help="Bits of a reward model that is a whole model; null loads it as it is. An adapter has its base's."
    )
    allow_mismatch: bool = option(
        False, help="Accept an adapter that was trained on another backbone; its scores may mean nothing."
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which rows are read, how they are rendered to tokens, and how they are cut."""

    dataset: tuple[str, ...] = option(
        (),
        help="Names in `dataset_info.json`, paths of files or folders (JSON, CSV, text, Parquet, Arrow), or owner/name "
        "of the Hugging Face hub.",
        path=True,
    )
    eval_dataset: tuple[str, ...] = option(
        (), help="Datasets for evaluation, named like `dataset`; excludes `val_size`.", path=True
    )
    dataset_dir: str = option("data", help="Folder that holds `dataset_info.json` and the files it names.", path=True)
    split: str = option("train", help="Split to take from a dataset that has several.")
    template: str | None = option(
        None,
        help="`alpaca`, `default`, `empty`, `vicuna`: that plain text format. The name of a model family, such as "
        "`qwen`: the tokenizer's own template, or that family's for a tokenizer that has none. A path that ends in "
        "`.jinja`, or jinja text: a template of your own.",
    )
    prompt_template: str | None = option(
        None,
        help='A template of your own in one line, `"问:{prompt}\\n\\n答:"`; the answer and its end of sequence follow. '
        "`{system}` is where a system message goes. Names of columns may stand in the place of `{prompt}`: "
        '`"{title}\\n{text}\\nTL;DR:"`.',
    )
    question_template: str | None = option(
        None,
        help='The user\'s message made of columns of its row, `"Summarise: {title}\\n{text}"`; the chat template goes '
        "around it. Null takes the column of the prompt.",
    )
    columns: tuple[str, ...] = option(
        (),
        help="What the columns of the rows are for, as under `columns` in `dataset_info.json`: `prompt=question, "
        "response=reply`; empty goes by that file, else by the names of the columns.",
    )
    train_after_end_of_turn: bool | None = option(
        None,
        help="Stages sft, dpo, kto: keep and learn what the template writes behind the end of an answer (in ChatML a "
        "line end), as LLaMA-Factory does; null is true where `template` is one of its names.",
    )
    default_system: str | None = option(None, help="System message for rows that have none.")
    cutoff_len: int = option(2048, help="Longest row in tokens, prompt and answer together.", minimum=4)
    truncation_side: Literal["left", "middle", "right"] = option(
        "middle",
        help="What goes of the longest user message where a row is too long: its beginning, middle or end. Template, "
        "end of turn and the beginning of the answer always stay.",
    )
    cut_prompts: bool = option(
        False,
        help="Stages that sample, and generate: cut prompts that are longer than `cutoff_len` at `truncation_side` "
        "instead of leaving them out.",
    )
    train_on_prompt: bool = option(False, help="SFT: learn the prompt tokens too, not only the answers.")
    mask_history: bool = option(False, help="SFT: learn only the last answer of a conversation.")
    packing: bool | None = option(
        None,
        help="Stage pt: join documents and cut them into rows of `cutoff_len`; null is true there. Changes nothing in "
        "stage sft, whose rows are computed without padding anyway.",
    )
    neat_packing: bool = option(
        False,
        help="Stage pt: keep documents in rows of their own, so that attention stays within each; switches `packing` "
        "on. Changes nothing in stage sft, whose rows see only themselves anyway.",
    )
    max_samples: int | None = option(None, help="Take at most this many rows of each dataset.", minimum=1)
    val_size: float = option(
        0.0, help="Rows held out for evaluation: a share below 1, or a whole number of rows.", minimum=0
    )
    split_key: str | None = option(
        None,
        help="Column by which `val_size` chooses: rows with the same value are never on both sides, and which values "
        "are held out depends on nothing else.",
    )
    mix_strategy: Literal["concat", "interleave_under", "interleave_over", "interleave_once"] = option(
        "concat",
        help="How several datasets become one: after each other; or in turns, until the first ends (under), all have "
        "ended (over, the shorter ones beginning again), or each row was taken once (once).",
    )
    interleave_probs: tuple[float, ...] = option(
        (), help="Chance of each dataset to give the next row, in the order of `dataset`; empty takes turns."
    )
    text_column: str | None = option(
        None, help="Column with raw text: stage pt reads it as documents, stage sft learns all of its tokens."
    )
    group_by_length: bool = option(False, help="Put rows of similar length into the same batch, except in stage ppo.")
    overwrite_cache: bool = option(False, help="Encode the rows anew, whatever an earlier run kept of them.")
    streaming: bool = option(
        False, help="Training: read rows as they are needed instead of all at once; needs `max_steps`."
    )
    buffer_size: int = option(
        16384, help="Streaming: rows that are read ahead and drawn from, which is how they are shuffled.", minimum=1
    )
    tokenized_path: str | None = option(
        None,
        help="Folder of encoded rows: they are taken from there where it holds some, whatever `dataset` says, else "
        "written there.",
        path=True,
    )
    preprocessing_num_workers: int | None = option(
        None, help="Processes that encode rows; any number gives the same rows.", minimum=0
    )
    preprocessing_batch_size: int = option(1000, help="Rows that such a process is given at a time.", minimum=1)
