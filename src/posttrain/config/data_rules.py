"""Rules about where rows come from: mixing, splitting, streaming, what is kept of encoded rows."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.config.run import RunConfig

Finding = tuple[str, str]


def data_problems(config: RunConfig) -> Iterator[Finding]:
    """What keeps the rows from being read as asked."""
    yield from _mixing(config)
    yield from _splitting(config)


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
