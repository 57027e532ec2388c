"""Keys of everything that uses a trained model: generation, export, prediction, evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain.config.addresses import hidden
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
    export_size: int = option(
        5, help="Largest safetensors file in GB; an index names them where there are several.", minimum=1
    )
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

    task: (
        Literal["perplexity", "loss", "reward", "sql", "generation", "match", "win_rate", "frontier", "lm_eval"] | None
    ) = option(None, help="What to measure; null goes by stage: pt perplexity, sft loss, rm and ppo reward.")
    variants: tuple[str, ...] = option(
        (),
        help="Models to compare: `name=folder` of an adapter, `name=a+b` for two, or `name` for the bare model.",
        path=True,
    )
    database_dir: str | None = option(
        None, help="Folder that the databases of task sql are named from; null is `dataset_dir`.", path=True
    )
    database_url: str | None = option(
        None,
        help="Server that has the databases of task sql, such as `postgresql://reader@host/{db}`; `{db}`, there or in "
        "`?schema={db}`, is the row's `db` without folder and ending. Passwords: PGPASSWORD or ~/.pgpass.",
    )
    allow_privileged_role: bool = option(
        False, help="Run SQL on a server under a role that could write; its transactions still are read-only."
    )
    sql_time_limit: float = option(2.0, help="Seconds a query may run before it counts as failed.", above=0)
    sql_row_limit: int = option(10000, help="Rows a query may return before it counts as failed.", minimum=1)
    sql_dialect: Literal["sqlite", "oracle", "postgres", "mysql"] | None = option(
        None,
        help="In which SQL answers and references are written, translated to that of the database; null runs them as "
        "they stand.",
    )
    sql_reference_dialect: Literal["sqlite", "oracle", "postgres", "mysql"] | None = option(
        None, help="In which SQL references are written where that is not `sql_dialect`; null is `sql_dialect`."
    )
    sql_column_order: Literal["position", "any"] = option(
        "position",
        help="Columns of results are compared by position, as BIRD does, or in any order, as Spider's test suites do.",
    )
    confidence: float = option(0.95, help="Level of the confidence intervals.", above=0, below=1)
    predictions: tuple[str, ...] = option(
        (),
        help="Tasks sql, generation, match, win_rate: files of predictions to score instead of asking a model, "
        "`name=file.jsonl` each, as `posttrain generate` or `posttrain eval` wrote them.",
        path=True,
    )
    prediction_column: str | None = option(
        None, help="Column of `predictions` that holds the answer; null looks for predict, completion, prediction ..."
    )
    reference_column: str | None = option(
        None,
        help="Column that holds what is right, in data or `predictions`; null looks for reference, label, gold, "
        "answer, output.",
    )
    metric_tokenizer: Literal["auto", "13a", "intl", "zh", "char"] = option(
        "auto",
        help="Task generation: how text is cut into words. 13a: as sacrebleu cuts English; zh: Chinese, for ROUGE by "
        "jieba; intl: any script with spaces; char: characters. auto goes by the letters of the references.",
    )
    match: Literal["text", "number", "contains"] = option(
        "text",
        help="Task match: the answer equals the reference as text, in its last number, or contains it.",
    )
    match_pattern: str | None = option(
        None,
        help="Task match: regular expression whose group is the answer, the last one found, such as `#### *(.+)`; one "
        "that is not found is wrong. Null takes all of the text.",
    )
    match_ignore_case: bool = option(False, help="Task match: upper and lower case are the same.")
    match_ignore_punctuation: bool = option(False, help="Task match: punctuation and symbols do not count.")
    match_tolerance: float = option(
        1e-6, help="Task match: by how much numbers may differ, as a share of the larger one.", minimum=0
    )
    checkpoints_of: str | None = option(
        None, help="Task frontier: output_dir of an online run, whose checkpoint-N folders are measured.", path=True
    )
    max_checkpoints: int | None = option(
        None, help="Task frontier: at most this many checkpoints, evenly spaced, the last one included.", minimum=1
    )
    lm_eval_tasks: tuple[str, ...] = option((), help="Task lm_eval: names of tasks of lm-evaluation-harness.")
    lm_eval_include: str | None = option(
        None, help="Task lm_eval: folder with task files of your own, as lm-evaluation-harness reads them.", path=True
    )
    lm_eval_num_fewshot: int | None = option(
        None, help="Task lm_eval: examples before each question; null is what the task says.", minimum=0
    )
    lm_eval_chat_template: bool = option(
        False, help="Task lm_eval: render questions with the tokenizer's chat template."
    )

    def __post_init__(self) -> None:
        if self.database_url is not None:
            object.__setattr__(self, "database_url", hidden(self.database_url))
