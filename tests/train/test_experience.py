"""Completions into a table, and the table into minibatches."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.encode import EncodedPrompt
from posttrain.models.load import load_tokenizer
from posttrain.rollout import SamplingParams
from posttrain.rollout.scripted import ScriptedSampler
from posttrain.train.experience import collect, joined, minibatches, sequence_kl, telling
from posttrain.types import RolloutBatch

STOP = 2


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return load_tokenizer(tiny_llama)


def prompt(*ids, **extras):
    return EncodedPrompt(input_ids=list(ids), text=f"prompt {ids[0]}", extras=extras)


def test_collect_lays_out_every_column(tokenizer) -> None:
    answers = {(0, 0): [70, 71, STOP], (0, 1): [72], (1, 0): [73, 74, 75, 76, 77], (1, 1): [STOP]}
    sampler = ScriptedSampler(lambda p, sample: answers[p.index, sample], logprob=-0.5)
    params = SamplingParams(max_new_tokens=4, stop_token_ids=(STOP,), seed=0)
    seen = []
    batch = collect(
        sampler,
        tokenizer,
        [prompt(10, 11, STOP, answer="a"), prompt(20, answer="b")],
        params,
        group_size=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    pad = tokenizer.pad_token_id
    assert batch.input_ids.tolist() == [
        [10, 11, STOP, 70, 71, STOP],
        [10, 11, STOP, 72, pad, pad],
        [20, 73, 74, 75, 76, pad],
        [20, STOP, pad, pad, pad, pad],
    ]
    assert batch.lengths.tolist() == [6, 4, 5, 2]
    assert batch.loss_mask.int().tolist() == [
        *([0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 0, 0]),
        *([0, 1, 1, 1, 1, 0], [0, 1, 0, 0, 0, 0]),
    ]
    assert torch.equal(batch.logprobs, torch.where(batch.loss_mask, -0.5, 0.0))
    assert batch.ended.tolist() == [True, False, False, True]
    assert batch.prompts == ("prompt 10", "prompt 10", "prompt 20", "prompt 20")
    assert batch.completions[0] == tokenizer.decode([70, 71])
    assert batch.completions[3] == ""
    assert [e["answer"] for e in batch.extras] == ["a", "a", "b", "b"]
    assert seen[-1] == (4, 4)
    assert [p.samples for p in sampler.calls[0][0]] == [2, 2]


def table(rows, group_size):
    ids = torch.arange(1, rows * 3 + 1).view(rows, 3)
    mask = torch.ones(rows, 3, dtype=torch.bool)
    return RolloutBatch(
        input_ids=ids,
        attention_mask=mask,
        loss_mask=mask,
        logprobs=ids.float(),
        ended=mask[:, 0],
        prompts=tuple(f"p{i // group_size}" for i in range(rows)),
        advantages=ids.float() * 2,
    )


@settings(deadline=None)
@given(groups=st.integers(1, 7), group_size=st.integers(1, 3), per_step=st.integers(1, 4), epochs=st.integers(1, 3))
def test_minibatches_cover_every_row_once_an_epoch_with_groups_whole(groups, group_size, per_step, epochs) -> None:
    batch = table(groups * group_size, group_size)
    size = per_step * group_size
    pieces = list(minibatches(batch, epochs=epochs, size=size, group_size=group_size, seed=3, iteration=5))
    per_epoch = -(-len(batch) // size)
    assert len(pieces) == epochs * per_epoch
    for epoch in range(epochs):
        rows = [
            r for piece in pieces[epoch * per_epoch : (epoch + 1) * per_epoch] for r in piece.input_ids[:, 0].tolist()
        ]
        assert sorted(rows) == batch.input_ids[:, 0].tolist()
    for piece in pieces:
        assert len(piece) <= size
        assert set(Counter(piece.prompts).values()) == {group_size}
        assert torch.equal(piece.advantages, piece.input_ids * 2.0)  # columns travel with their row


def scored(width, *rewards, first=1):
    """Rows of ``width`` tokens with these rewards, numbered from ``first`` in their tokens and texts."""
    rows = len(rewards)
    ids = torch.arange(first, first + rows)[:, None].expand(rows, width)
    mask = torch.ones(rows, width, dtype=torch.bool)
    return RolloutBatch(
        input_ids=ids,
        attention_mask=mask,
        loss_mask=mask & (torch.arange(width) > 0),
        logprobs=ids.float(),
        ended=torch.arange(rows) % 2 == 0,
        prompts=tuple(f"p{first + i}" for i in range(rows)),
        extras=({},) * rows,
        rewards=torch.tensor(rewards),
        reward_parts={"rule": torch.tensor(rewards) * 2},
        baseline_rewards=torch.tensor(rewards) + 1,
    )


def test_telling_groups_are_those_with_differences() -> None:
    batch = scored(3, 1.0, 1.0, 0.0, 0.5, 2.0, 2.0, -1.0, 3.0)
    found = telling(batch, 2)
    assert found.rewards.tolist() == [0.0, 0.5, -1.0, 3.0]
    assert found.prompts == ("p3", "p4", "p7", "p8")
    assert found.input_ids[:, 0].tolist() == [3, 4, 7, 8]
    # of four a single difference is enough
    assert telling(batch, 4).rewards.tolist() == batch.rewards.tolist()
    assert telling(scored(3, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0), 4).rewards.tolist() == [0.0, 0.0, 0.0, 1.0]
    assert len(telling(scored(3, 1.0, 1.0), 2)) == 0


def test_joined_tables_are_as_wide_as_the_widest() -> None:
    whole = joined([scored(2, 0.0, 1.0), scored(4, 2.0, first=8), scored(3, 3.0, 4.0, first=20)])
    assert whole.input_ids.tolist() == [[1, 1, 0, 0], [2, 2, 0, 0], [8] * 4, [20, 20, 20, 0], [21, 21, 21, 0]]
    assert whole.lengths.tolist() == [2, 2, 4, 3, 3]
    assert whole.loss_mask.sum(dim=1).tolist() == [1, 1, 3, 2, 2]
    assert not whole.logprobs[~whole.attention_mask].any()
    assert whole.rewards.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert whole.baseline_rewards.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert whole.reward_parts["rule"].tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert whole.ended.tolist() == [True, False, True, True, False]
    assert whole.prompts == ("p1", "p2", "p8", "p20", "p21")
    assert whole.completions == ()
    assert whole.ref_logprobs is None
    # cut again, a row is what it was
    assert torch.equal(whole.rows(torch.tensor([0, 1])).input_ids, scored(2, 0.0, 1.0).input_ids)


def order(**how):
    how = {"epochs": 2, "size": 2, "group_size": 1, "seed": 3, "iteration": 5, **how}
    return [p.input_ids[:, 0].tolist() for p in minibatches(table(12, 1), **how)]


def test_minibatches_are_a_function_of_seed_iteration_and_epoch() -> None:
    assert order() == order()
    assert order() != order(seed=4)
    assert order() != order(iteration=6)
    assert order()[:6] != order()[6:]
    assert order(epochs=1) == order()[:6]


def test_sequence_kl_by_hand() -> None:
    # (1 - 0) + (2 - 0) + (3 - 0) = 6 for row 0; its first token left out: 5
    batch = table(1, 1)
    batch = batch.with_columns(ref_logprobs=torch.zeros(1, 3))
    assert sequence_kl(batch).tolist() == [6.0]
    mask = torch.tensor([[False, True, True]])
    assert sequence_kl(batch.with_columns(loss_mask=mask)).tolist() == [5.0]
    with pytest.raises(ValueError, match="ref_logprobs"):
        sequence_kl(table(1, 1))
