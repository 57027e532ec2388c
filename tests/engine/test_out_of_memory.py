"""Memory that runs out: the step is computed again in smaller pieces, exactly, and only what cannot be cut fails."""

from __future__ import annotations

import pytest
import torch

from posttrain.algorithms import PPO, SFT
from posttrain.engine import Processes, TooLargeError
from posttrain.engine.shares import Shares, attempted
from posttrain.engine.task import Task
from posttrain.types import Role

from .test_engine import CASES, filled, make_engine, prepared, rollout, trained

ROOM = 20


class Scarce:
    """A backbone whose backward pass fails half-way on micro-batches of more than so many tokens.

    Gradients of the upper layers have been written by then. ``forward=True`` fails in the forward pass already.
    """

    def __init__(self, engine, room=ROOM, *, forward=False, message="DefaultCPUAllocator: can't allocate memory"):
        self.room, self.forward, self.message = room, forward, message
        self.failures = 0
        for role in Role:
            if role in engine.roles:
                engine.roles.backbone_of(role).model.layers[0].mlp.register_forward_hook(self._hook)
                break

    def _hook(self, module, inputs, output):
        if output.shape[1] <= self.room:
            return
        if self.forward or not output.requires_grad:
            self._fail()
        output.register_hook(lambda grad: self._fail())

    def _fail(self):
        self.failures += 1
        raise RuntimeError(self.message)


def steps(engine, algorithm, batch, count=3):
    found = []
    for _ in range(count):
        engine.accumulate(algorithm, batch)
        found.append(engine.optimizer_step())
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_step_computed_again_equals_one_that_was_small_from_the_start(make_model, make_batch, name) -> None:
    said = []
    options = {"dropout": 0.2} if name in ("sft", "rm") else {}
    engine, algorithm, batch = prepared(name, make_model, make_batch, max_tokens=1000, **options)
    scarce = Scarce(engine, room=30)
    engine.shares.announce = said.append
    found = steps(engine, algorithm, batch)
    assert scarce.failures == len(said) > 0
    assert engine.max_tokens <= 30
    small, _, _ = prepared(name, make_model, make_batch, max_tokens=engine.max_tokens, **options)
    assert found == steps(small, algorithm, batch)
    assert all(torch.equal(weight, trained(small)[key]) for key, weight in trained(engine).items())
    assert engine.trained_tokens == small.trained_tokens
    assert f"at most {engine.max_tokens}" in said[-1]
    assert "The objective is the same" in said[-1]


def test_what_the_step_had_already_is_computed_again_too(make_model, make_batch) -> None:
    """The second of two calls fails: gradients and metrics of the first count once."""
    engine, algorithm, batch = prepared("ppo value_head", make_model, make_batch, max_tokens=1000)
    short, _, _ = prepared("ppo value_head", make_model, make_batch, max_tokens=ROOM)
    few = make_batch([[5, 6, 7, 8], [9, 9, 3]])
    Scarce(engine)
    engine.shares.announce = lambda sentence: None
    results = []
    for one in (engine, short):
        one.accumulate(SFT(), few, temperature=1.0)
        one.accumulate(algorithm, batch)
        results.append(one.optimizer_step())
    assert results[0] == pytest.approx(results[1], rel=1e-5, abs=1e-7)
    for key, weight in trained(engine).items():
        torch.testing.assert_close(weight, trained(short)[key], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("forward", [False, True])
def test_columns_and_scores_come_whole_from_pieces_that_were_cut_again(make_model, make_batch, forward) -> None:
    batch = rollout(make_batch).with_columns(ref_logprobs=None, values=None)
    engine, whole = (make_engine(make_model, PPO(), critic="adapter", max_tokens=1000) for _ in range(2))
    scarce = Scarce(engine, forward=forward)
    engine.shares.announce = lambda sentence: None
    for roles in ((Role.REFERENCE, Role.CRITIC), (Role.ACTOR,)):
        found, expected = engine.consult(roles, batch), whole.consult(roles, batch)
        for name in ("logprobs", "ref_logprobs", "values"):
            if getattr(expected, name) is not None:
                torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(engine.scores(batch), whole.scores(batch), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(engine.sequence_logps(batch), whole.sequence_logps(batch), atol=1e-5, rtol=1e-5)
    assert scarce.failures >= 1
    assert engine.max_tokens <= ROOM


@pytest.mark.parametrize("name", ["sft", "rm", "ppo value_head"])
def test_evaluation_counts_every_row_once(make_model, make_batch, name) -> None:
    engine, algorithm, batch = prepared(name, make_model, make_batch, max_tokens=1000)
    whole, _, _ = prepared(name, make_model, make_batch, max_tokens=1000)
    scarce = Scarce(engine)
    engine.shares.announce = lambda sentence: None
    assert engine.evaluate(algorithm, [batch, batch]) == pytest.approx(whole.evaluate(algorithm, [batch]), rel=1e-4)
    assert scarce.failures >= 1


def test_what_cannot_be_cut_ends_the_run_and_says_what_was_tried(make_model, make_batch) -> None:
    engine, algorithm, batch = prepared("sft", make_model, make_batch, max_tokens=1000)
    Scarce(engine, room=5)
    said = []
    engine.shares.announce = said.append
    with pytest.raises(TooLargeError, match=r"one row of \d+ tokens, which is the least .*can't allocate memory"):
        engine.accumulate(algorithm, batch)
    assert said
    pairs, algorithm, batch = prepared("rm", make_model, make_batch, max_tokens=1000)
    Scarce(pairs, room=5)
    pairs.shares.announce = said.append
    with pytest.raises(TooLargeError, match="2 rows that belong together"):
        pairs.accumulate(algorithm, batch)


def test_other_errors_are_not_tried_again(make_model, make_batch) -> None:
    engine, algorithm, batch = prepared("sft", make_model, make_batch, max_tokens=1000)
    scarce = Scarce(engine, message="shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        engine.accumulate(algorithm, batch)
    assert scarce.failures == 1


def test_the_smaller_limit_is_in_the_checkpoint(make_model, make_batch, tmp_path) -> None:
    engine, algorithm, batch = prepared("ppo value_head", make_model, make_batch, max_tokens=1000)
    Scarce(engine)
    engine.shares.announce = lambda sentence: None
    steps(engine, algorithm, batch, 1)
    engine.save(tmp_path)
    steps(engine, algorithm, batch, 2)
    again, _, _ = prepared("ppo value_head", make_model, make_batch, max_tokens=1000)
    again.resume(tmp_path)
    assert again.max_tokens == engine.max_tokens < 1000
    steps(again, algorithm, batch, 2)
    assert all(torch.equal(weight, trained(engine)[key]) for key, weight in trained(again).items())


def test_a_warning_says_it_where_nobody_listens(make_model, make_batch) -> None:
    engine, algorithm, batch = prepared("sft", make_model, make_batch, max_tokens=1000)
    Scarce(engine)
    with pytest.warns(UserWarning, match="memory ran out on a micro-batch of"):
        engine.accumulate(algorithm, batch)


class Pair(Processes):
    """Two processes; the other one says ``tokens``."""

    def __init__(self, rank, tokens):
        super().__init__(rank, 2)
        self.tokens = tokens

    def gather(self, value):
        return [value, self.tokens]


def test_processes_deal_by_what_they_agreed_on_and_cut_their_share_finer(make_batch) -> None:
    batch = make_batch([[n] * 10 for n in range(1, 9)])
    shares = [Shares(20, Pair(rank, 20)) for rank in (0, 1)]
    before = [share.own(batch) for share in shares]
    assert [count for _, count in before] == [4, 4]
    said = []
    shares[0].announce = said.append
    shares[0].lower(before[0][0][0].rows, attempted(_no_memory), together=1, padded=False)
    assert (shares[0].max_tokens, shares[0].own_tokens) == (20, 10)
    after = [share.own(batch) for share in shares]
    assert after[1][1] == 4
    assert torch.equal(
        torch.cat([piece.rows.input_ids for piece in after[0][0]]),
        torch.cat([piece.rows.input_ids for piece in before[0][0]]),
    )
    assert [(piece.number, piece.part) for piece in after[0][0]] == [
        (piece.number, part) for piece in before[0][0] for part in (0, 1)
    ]
    other = shares[1]
    other._processes.tokens = 10
    other.announce = said.append
    other.agree()
    assert other.max_tokens == other.own_tokens == 10
    assert "another process" in said[-1]


def _no_memory():
    raise MemoryError


def test_dropout_differs_in_the_parts_of_a_piece(make_model, make_batch) -> None:
    """Else rows that were cut apart would wear one mask."""
    engine = make_engine(make_model, SFT(), dropout=0.5, max_tokens=100)
    batch = filled(make_batch, SFT())
    seeds = []
    piece = engine.shares.own(batch)[0][0]
    for part in (0, 1):
        seeds.append(type(piece)(piece.rows, piece.number, part))
    drawn = []
    for one in seeds:
        engine._backpropagate(_task(engine, batch), one, {"token": 1.0})
        drawn.append(torch.rand(1).item())
    assert drawn[0] != drawn[1]


def _task(engine, batch):
    return Task(SFT(), batch, 1.0, engine.max_tokens)
