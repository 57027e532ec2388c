"""Rules about where rows come from."""

import pytest

from posttrain.config import load_config
from posttrain.errors import UserError

PLAIN = {"stage": "sft", "model_name_or_path": "m", "dataset": "a.json, b.json", "output_dir": "out"}


def test_turns_and_their_chances_are_read_as_llamafactory_writes_them():
    config = load_config({**PLAIN, "mix_strategy": "interleave_under", "interleave_probs": "0.7, 0.3"})
    assert (config.data.mix_strategy, config.data.interleave_probs) == ("interleave_under", (0.7, 0.3))
    assert not config.warnings
    assert load_config({**PLAIN, "mix_strategy": "concat"}).data.interleave_probs == ()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"interleave_probs": "0.5,0.5"}, ["interleave_probs", "needs `mix_strategy"]),
        ({"mix_strategy": "interleave_over", "interleave_probs": "0.5"}, ["1 probabilities (0.5) for 2 datasets"]),
        ({"mix_strategy": "interleave_over", "interleave_probs": "0.5, 0.6"}, ["add up to 1", "to 1.1"]),
        ({"mix_strategy": "interleave_over", "interleave_probs": "1.5, -0.5"}, ["above 0"]),
        ({"mix_strategy": "interleave_over", "interleave_probs": "1, 0"}, ["above 0", "left out of `dataset`"]),
        ({"mix_strategy": "interleave_over", "interleave_probs": "half, half"}, ["interleave_probs", "numbers"]),
        ({"mix_strategy": "interleave"}, ["mix_strategy", "interleave_under"]),
        ({"split_key": "doc"}, ["split_key", "val_size"]),
    ],
)
def test_what_cannot_be_meant_is_refused(keys, words):
    with pytest.raises(UserError) as caught:
        load_config({**PLAIN, **keys})
    for word in words:
        assert word in str(caught.value)


def test_encoded_rows_of_ones_own_need_no_dataset():
    keys = {key: value for key, value in PLAIN.items() if key != "dataset"}
    config = load_config({**keys, "tokenized_path": "kept", "preprocessing_batch_size": 500})
    assert (config.data.tokenized_path, config.data.preprocessing_batch_size) == ("kept", 500)
    with pytest.raises(UserError, match="`dataset` is missing"):
        load_config(keys)


STREAMED = {**PLAIN, "streaming": True, "max_steps": 100}


def test_streaming_is_read_as_llamafactory_writes_it():
    config = load_config({**STREAMED, "buffer_size": 500, "val_size": 50})
    assert (config.data.streaming, config.data.buffer_size) == (True, 500)
    assert not config.warnings
    (warning,) = load_config({**STREAMED, "preprocessing_num_workers": 8}).warnings
    assert "preprocessing_num_workers" in warning


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"max_steps": -1}, ["streaming", "needs `max_steps`"]),
        ({"val_size": 0.1}, ["val_size: 0.1", "whole number"]),
        ({"val_size": 50, "buffer_size": 50}, ["buffer_size: 50", "more than `val_size: 50`"]),
        ({"buffer_size": 0}, ["buffer_size", "at least 1"]),
        ({"group_by_length": True}, ["group_by_length", "all rows at once"]),
        ({"tokenized_path": "kept"}, ["tokenized_path", "all rows at once"]),
        ({"save_strategy": "epoch"}, ["save_strategy: epoch", "steps"]),
        ({"eval_strategy": "epoch", "val_size": 5}, ["eval_strategy: epoch", "steps"]),
    ],
)
def test_what_streaming_cannot_do_is_refused(keys, words):
    with pytest.raises(UserError) as caught:
        load_config({**STREAMED, **keys})
    for word in words:
        assert word in str(caught.value)
