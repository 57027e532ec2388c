"""Keys of what a completion is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain.config.options import option
from posttrain.config.reward_names import is_url


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """What a completion is worth: a reward model, a classifier, functions, or several of them together."""

    reward_model: str | None = option(
        None,
        help="Folder of the reward model that stage rm wrote; or the address (http://...) of a server that scores "
        "texts as LLaMA-Factory asks it to.",
        path=True,
    )
    reward_model_type: Literal["lora", "full", "api"] | None = option(
        None,
        help="What `reward_model` must be, lora: an adapter, full: a whole model, api: an address; null takes any.",
    )
    reward_ensemble: tuple[str, ...] = option(
        (),
        help="Further reward model folders, on the same base: the reward is the mean of all, `reward_model` included.",
        path=True,
    )
    reward_disagreement_coef: float = option(
        0.0, help="How much of the deviation between the members of the ensemble is taken off the reward.", minimum=0
    )
    reward_classifier: str | None = option(
        None,
        help="Sequence classifier that scores texts with its own tokenizer: a folder, or a name on the Hugging Face "
        "hub.",
        path=True,
    )
    reward_label: str | None = option(
        None,
        help="Label of `reward_classifier` whose score is the reward: its name or number; may be left out where there "
        "is one label.",
    )
    reward_label_value: Literal["logit", "log_probability", "probability"] = option(
        "logit", help="What of the label is taken. A classifier with one label always gives its raw output."
    )
    reward_template: str | None = option(
        None,
        help="Text that `reward_classifier` reads: `chat` renders with its own chat template; else text with "
        "{completion}, {prompt} (as the actor read it), {question} (the last user message) or {column}. Null is "
        "`chat` where its tokenizer has a template, else question and completion on lines of their own.",
    )
    reward_device: str | None = option(
        None, help="Where `reward_classifier` runs: cpu, cuda, cuda:1; null is where the actor runs."
    )
    reward_dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", help="Precision of `reward_classifier`; auto is the one it is stored in. A CPU computes in float32."
    )
    reward_funcs: tuple[str, ...] = option(
        (),
        help="Rewards that are no model of this run, added up where there are several: `path/to/file.py:function`, "
        "`http://...`, `judge`, `sql_execution` (1 for the rows of the reference, 0.2 for SQL that runs, else 0), and "
        "the rules `regex:PATTERN`, `exact_match`, `numeric_match`, `json_valid`, `length:MIN-MAX`, `repetition:N`.",
        path=True,
    )
    reward_weights: tuple[float, ...] = option(
        (),
        help="Weight of each part of the reward in the order reward_model, reward_classifier, reward_funcs; empty is 1 "
        "each.",
    )
    reward_part_norm: Literal["none", "batch"] = option(
        "none", help="batch: give each part mean 0 and deviation 1 over the completions of an iteration."
    )
    reward_part_clip: tuple[float, ...] = option(
        (),
        help="Clip each part to plus or minus this value before it is weighted: one number for all, or one for each; "
        "0 clips nothing.",
    )
    reward_time_limit: float | None = option(
        60.0, help="Seconds that a function or one request may take; null waits for ever.", above=0
    )
    reward_batch_size: int = option(
        32, help="Completions in one request, in one forward of the classifier, or asked about at once.", minimum=1
    )
    reward_retries: int = option(
        5, help="Further attempts after a request that failed, after 1, 2, 4 ... seconds.", minimum=0
    )
    reward_on_error: Literal["stop", "zero"] = option(
        "stop", help="A completion that cannot be scored stops the run with a checkpoint, or counts 0."
    )
    reward_token_env: str | None = option(
        None, help="Name of the environment variable that holds the bearer token of an endpoint; never the token."
    )

    @property
    def model_folder(self) -> str | None:
        """The reward model's folder; None where there is none, or a server scores."""
        return None if self.model_url else self.reward_model

    @property
    def model_url(self) -> str | None:
        """The server that scores texts as LLaMA-Factory asks it to."""
        return self.reward_model if self.reward_model and is_url(self.reward_model) else None
