"""Rules about where rows come from: mixing, splitting, streaming, what is kept of encoded rows."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.config.run import RunConfig

Finding = tuple[str, str]


def data_problems(config: RunConfig) -> Iterator[Finding]:
    """What keeps the rows from being read as asked."""
    yield from _mixing(config)
    yield from _splitting(config)
    if config.data.template and config.data.prompt_template:
        yield "prompt_template", "`template` and `prompt_template` both say how chats are written; keep one"
    if config.data.streaming:
        yield from _streaming(config)


def data_cautions(config: RunConfig) -> Iterator[str]:
    """What works, and may surprise."""
    if config.data.streaming and (config.data.preprocessing_num_workers or 1) > 1:
        yield "`preprocessing_num_workers` changes nothing with `streaming: true`: a step encodes the rows it takes"


def _mixing(config: RunConfig) -> Iterator[Finding]:
    data, probs = config.data, config.data.interleave_probs
    if not probs:
        return
    written = ", ".join(f"{p:g}" for p in probs)
    if data.mix_strategy == "concat":
        yield "interleave_probs", "`interleave_probs` needs `mix_strategy: interleave_under` or `interleave_over`"
    elif len(probs) != len(data.dataset):
        yield (
            "interleave_probs",
            f"`interleave_probs` gives {len(probs)} probabilities ({written}) for {len(data.dataset)} datasets; give "
            "one for each, in their order",
        )
    elif any(p <= 0 for p in probs) or abs(sum(probs) - 1) > 1e-6:
        yield (
            "interleave_probs",
            f"`interleave_probs` ({written}) must be above 0 and add up to 1; they add up to {sum(probs):g}. A dataset "
            "that is not to be drawn is left out of `dataset`",
        )


def _splitting(config: RunConfig) -> Iterator[Finding]:
    data = config.data
    if data.split_key and not data.val_size:
        yield "split_key", "`split_key` says how `val_size` chooses rows; set `val_size`, or remove the line"


def _streaming(config: RunConfig) -> Iterator[Finding]:
    data, train = config.data, config.train
    if train.max_steps < 1:
        yield (
            "streaming",
            "`streaming: true` needs `max_steps`: how many rows there are is not known before they are read",
        )
    if data.val_size % 1:
        yield "val_size", f"`val_size: {data.val_size:g}` must be a whole number of rows with `streaming: true`"
    if data.val_size >= data.buffer_size:
        yield (
            "buffer_size",
            f"`buffer_size: {data.buffer_size}` must be more than `val_size: {data.val_size:g}`, taken from it",
        )
    if data.group_by_length:
        yield "group_by_length", "`group_by_length` needs all rows at once; remove it, or `streaming: true`"
    if data.tokenized_path:
        yield "tokenized_path", "`tokenized_path` holds all rows at once; remove it, or `streaming: true`"
    for key in ("save_strategy", "eval_strategy"):
        if config.value(key) == "epoch":
            yield key, f"`{key}: epoch`: with `streaming: true` a run has no epochs; use steps"
