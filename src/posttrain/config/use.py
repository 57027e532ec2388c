"""Keys of everything that uses a trained model: generation, export, prediction, evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain.config.options import option


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How completions are drawn, in chat, generate, evaluation and in rollouts."""

    do_sample: bool = option(
        True, help="Draw tokens at random; false, as in `posttrain eval`, always takes the most probable one."
    )
    temperature: float = option(0.95, help="Divides the logits; 1.0 in stages that sample.", above=0)
    top_p: float = option(
        0.7, help="Keep the most probable tokens up to this mass; 1.0 in stages that sample.", above=0, maximum=1
    )
    top_k: int = option(
        50, help="Keep this many of the most probable tokens; 0 keeps all, as stages that sample do.", minimum=0
    )
    min_p: float = option(
        0.0, help="Keep tokens at least this probable relative to the best one; 0 is off.", minimum=0, maximum=1
    )
    repetition_penalty: float = option(1.0, help="Above 1 makes tokens that occurred already less probable.", above=0)
    max_new_tokens: int = option(1024, help="Longest completion in tokens.", minimum=1)
    min_new_tokens: int = option(0, help="No completion ends before this many tokens.", minimum=0)
    num_return_sequences: int = option(1, help="Completions per prompt.", minimum=1)
    num_beams: int = option(1, help="Only 1: completions are sampled, not searched.", minimum=1)
    skip_special_tokens: bool = option(True, help="Leave special tokens out of the decoded text.")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """`posttrain export`: one Hugging Face folder with the adapters merged in."""

    export_dir: str | None = option(None, help="Folder to write; required by `posttrain export`.", path=True)
    export_size: int = option(5, help="Largest shard in GB.", minimum=1)
    export_device: Literal["cpu", "auto"] = option("cpu", help="Where the merge is computed.")
    export_legacy_format: bool = option(False, help="Accepted for compatibility; safetensors are always written.")


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """`posttrain generate`: completions of a dataset, written to one file."""

    output_file: str | None = option(
        None,
        help="File to write; .jsonl gives one object per line, .json one list. Null is in `output_dir`.",
        path=True,
    )
    keep_columns: tuple[str, ...] = option((), help="Columns of the data rows that are copied to the output.")
    preference_judge: Literal["sql_execution"] | None = option(
        None,
        help="Also write `preference_pairs.jsonl` for stage rm: answers that are right above answers that are not, by "
        "the database that their row names.",
    )


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """`posttrain eval`: what is measured, and the limits under which generated SQL is run."""

    task: Literal["perplexity", "loss", "reward", "sql"] | None = option(
        None, help="What to measure; null goes by stage: pt perplexity, sft loss, rm and ppo reward."
    )
    variants: tuple[str, ...] = option(
        (),
        help="Models to compare: `name=folder` of an adapter, `name=a+b` for two, or `name` for the bare model.",
        path=True,
    )
    database_dir: str | None = option(
        None, help="Folder that the databases of task sql are named from; null is `dataset_dir`.", path=True
    )
    sql_time_limit: float = option(2.0, help="Seconds a query may run before it counts as failed.", above=0)
    sql_row_limit: int = option(10000, help="Rows a query may return before it counts as failed.", minimum=1)
    confidence: float = option(0.95, help="Level of the confidence intervals.", above=0, below=1)
