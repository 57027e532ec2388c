"""Functions of the user as rewards: how they are asked, and what is said of those that answer badly."""

from __future__ import annotations

import asyncio
import threading
import time
from fractions import Fraction

import pytest
import torch

from posttrain.errors import RewardError, UserError
from posttrain.rewards.function import FunctionReward, load_function


def test_it_gets_lists_and_the_columns_of_the_rows(rollouts):
    seen = {}

    def f(prompts, completions, answer, **columns):
        seen.update(prompts=prompts, completions=completions, answer=answer, columns=columns)
        return [float(c == a) for c, a in zip(completions, answer, strict=True)]

    chats = [({"role": "user", "content": "1+1"},), ({"role": "user", "content": "2+2"},)]
    batch = rollouts(["2", "5"], ["a", "bc"], chats, answer=["2", "4"], level=[1, 2])
    rewards = FunctionReward(f)(batch)
    assert rewards.tolist() == [1.0, 0.0]
    assert rewards.dtype == torch.float32
    assert (seen["prompts"], seen["completions"], seen["answer"]) == (["a", "bc"], ["2", "5"], ["2", "4"])
    assert seen["columns"] == {
        "level": [1, 2],
        "completion_ids": [[ord("2")], [ord("5")]],
        "messages": [list(chat) for chat in chats],
    }


def test_it_gets_only_what_it_names(rollouts):
    def f(completions, *, level=0, other="default"):
        return [len(c) + level[i] + len(other) for i, c in enumerate(completions)]

    assert FunctionReward(f)(rollouts(["x", "xx"], level=[10, 20])).tolist() == [18.0, 29.0]


def test_one_that_takes_a_completion_is_asked_about_each(rollouts):
    def f(completion, prompt, answer):
        return completion == answer and prompt.startswith("q")

    assert FunctionReward(f)(rollouts(["2", "5"], answer=["2", "4"])).tolist() == [1.0, 0.0]


def test_a_column_that_a_row_lacks_is_none_there(rollouts):
    batch = rollouts(["a", "b"])
    batch = batch.with_columns(extras=({"level": 3}, {}))
    assert FunctionReward(lambda completions, level: [level[0], int(level[1] is None)])(batch).tolist() == [3.0, 1.0]


@pytest.mark.parametrize(
    "answer",
    [
        torch.tensor([1.0, 2.0]),
        torch.tensor([[1.0], [2.0]], requires_grad=True),
        (1, 2.0),
        [torch.tensor(1.0), torch.tensor([2.0])],
        [True, Fraction(2)],
    ],
)
def test_tensors_tuples_and_numbers_of_any_kind_are_taken(rollouts, answer):
    rewards = FunctionReward(lambda completions: answer)(rollouts(["a", "b"]))
    assert rewards.tolist() == [1.0, 2.0]
    assert not rewards.requires_grad


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([1.0, float("nan")], r"gave nan for completion 2 of 2 \('bb'\)"),
        ([float("-inf"), 1.0], r"gave -inf for completion 1 of 2 \('a'\)"),
        ([1e39, 1.0], r"gave 1e\+39 for completion 1 of 2"),
        ([1.0, "two"], r"gave 'two' for completion 2 of 2"),
        ([None, 1.0], r"gave None for completion 1 of 2"),
        ([1.0, [2.0, 3.0]], r"gave list \[2.0, 3.0\] for completion 2 of 2"),
        ([1.0, 2j], r"gave complex 2j for completion 2 of 2"),
        ([1.0], "gave 1 number for 2 completions"),
        ([1.0, 2.0, 3.0], "gave 3 numbers for 2 completions"),
        (torch.zeros(2, 2), r"gave list \[0.0, 0.0\] for completion 1 of 2"),
        (1.0, "gave 1.0, not a list of 2 numbers"),
        (None, "gave None, not a list of 2 numbers"),
        ({"a": 1.0, "bb": 2.0}, "gave dict .*, not a list of 2 numbers"),
    ],
)
def test_whatever_is_no_finite_number_for_each_is_refused(rollouts, answer, words):
    reward = FunctionReward(lambda completions: answer, source="the reward my.py:f")
    with pytest.raises(RewardError, match=f"^the reward my.py:f {words}"):
        reward(rollouts(["a", "bb"]))


def test_completions_without_a_number_can_count_0_and_are_told_of(rollouts):
    said = []
    answers = [[1.0, float("nan"), 2.0], [None, 3.0, 4.0], ["x", 1.0, 1.0], ["x", 1.0, 1.0]]
    reward = FunctionReward(lambda completions: answers.pop(0), source="f", on_error="zero", notify=said.append)
    batch = rollouts(["a", "b", "c"])
    assert [reward(batch).tolist() for _ in range(4)] == [[1, 0, 2], [0, 3, 4], [0, 1, 1], [0, 1, 1]]
    assert said == [  # at the first, and when their number has doubled
        "f gave nan for completion 2 of 3 ('b'); 1 so far counted 0",
        "f gave None for completion 1 of 3 ('a'); 2 so far counted 0",
        "f gave 'x' for completion 1 of 3 ('a'); 4 so far counted 0",
    ]


def test_where_no_completion_can_be_scored_even_zero_stops(rollouts):
    reward = FunctionReward(lambda completions: [None, float("nan")], source="f", on_error="zero")
    with pytest.raises(RewardError, match=r"f scored none of 2 completions; it gave None for completion 1"):
        reward(rollouts(["a", "b"]))


def test_an_exception_names_its_place(rollouts):
    def f(completions):
        raise ValueError("no number\nsecond line")

    line = f.__code__.co_firstlineno + 1
    with pytest.raises(RewardError, match=rf"f raised ValueError: no number \(.*test_function.py, line {line}\)\.$"):
        FunctionReward(f, source="f")(rollouts(["a"]))


def test_functions_written_for_chats_are_told_that_completions_are_texts(rollouts):
    with pytest.raises(RewardError, match="Completions are texts here, not lists of messages"):
        FunctionReward(lambda completions: [len(c[0]["content"]) for c in completions])(rollouts(["a"]))


def test_with_zero_a_call_that_raises_is_repeated_row_by_row(rollouts):
    sizes = []

    def f(completions, answer):
        sizes.append(len(completions))
        return [1 / (len(c) - a) for c, a in zip(completions, answer, strict=True)]

    batch = rollouts(["a", "bb", "ccc"], answer=[0, 2, 1])
    assert FunctionReward(f, on_error="zero")(batch).tolist() == [1.0, 0.0, 0.5]
    assert sizes == [3, 1, 1, 1]


def test_a_function_that_ends_the_program_does_not(rollouts):
    with pytest.raises(RewardError, match="raised SystemExit: 3"):
        FunctionReward(lambda completions: exit(3), time_limit_s=5)(rollouts(["a"]))


@pytest.mark.parametrize("on_error", ["stop", "zero"])
def test_one_that_takes_too_long_is_given_up(rollouts, on_error):
    done = threading.Event()
    reward = FunctionReward(lambda completions: done.wait(20), source="f", time_limit_s=0.1, on_error=on_error)
    began = time.monotonic()
    with pytest.raises(RewardError, match=r"f took longer than 0.1 seconds \(reward_time_limit\) for 1 completions"):
        reward(rollouts(["a"]))
    assert time.monotonic() - began < 5
    done.set()


def test_without_a_limit_it_runs_in_our_own_thread(rollouts):
    threads = []
    f = lambda completions: threads.append(threading.current_thread()) or [0.0]  # noqa: E731
    FunctionReward(f)(rollouts(["a"]))
    FunctionReward(f, time_limit_s=5)(rollouts(["a"]))
    assert threads[0] is threading.main_thread()
    assert threads[1] is not threading.main_thread()


def test_asynchronous_functions_about_one_run_at_the_same_time(rollouts):
    running = {"now": 0, "most": 0}

    async def f(completion):
        running["now"] += 1
        running["most"] = max(running.values())
        await asyncio.sleep(0.05)
        running["now"] -= 1
        return len(completion)

    batch = rollouts(["a", "bb", "ccc", "dddd"])
    assert FunctionReward(f)(batch).tolist() == [1.0, 2.0, 3.0, 4.0]
    assert running["most"] == 4
    running["most"] = 0
    FunctionReward(f, at_once=2)(batch)
    assert running["most"] == 2


def test_asynchronous_functions_about_a_batch_are_awaited_in_one_loop(rollouts):
    loops = []

    async def f(prompts, completions, **columns):
        loops.append(asyncio.get_running_loop())  # where sessions belong to
        await asyncio.sleep(0)
        return torch.tensor([float(len(c)) for c in completions])

    reward = FunctionReward(f, time_limit_s=5)
    assert reward(rollouts(["a", "bb"])).tolist() == reward(rollouts(["a", "bb"])).tolist() == [1.0, 2.0]
    assert loops[0] is loops[1]


def test_a_plain_function_that_gives_a_coroutine_is_awaited(rollouts):
    async def scores(completions):
        return [1.0 for _ in completions]

    assert FunctionReward(lambda completions: scores(completions))(rollouts(["a", "b"])).tolist() == [1.0, 1.0]


def test_it_works_inside_a_loop_that_runs_already(rollouts):
    async def f(completion):
        return 2.0

    async def notebook():
        return FunctionReward(f)(rollouts(["a"]))

    assert asyncio.run(notebook()).tolist() == [2.0]


def test_of_asynchronous_rows_only_those_that_take_too_long_fail(rollouts):
    async def f(completion):
        await asyncio.sleep(10 if completion == "slow" else 0)
        return 1.0

    batch = rollouts(["a", "slow", "c"])
    assert FunctionReward(f, time_limit_s=0.1, on_error="zero")(batch).tolist() == [1.0, 0.0, 1.0]
    with pytest.raises(RewardError, match=r"took longer than 0.1 seconds \(reward_time_limit\) for completion 2 of 3"):
        FunctionReward(f, time_limit_s=0.1)(batch)


def test_a_timeout_of_the_functions_own_is_not_taken_for_ours(rollouts):
    async def f(completion):
        raise TimeoutError("the database sleeps")

    with pytest.raises(RewardError, match="the database sleeps for completion 1"):
        FunctionReward(f, time_limit_s=5)(rollouts(["a"]))


def test_an_asynchronous_batch_that_takes_too_long_stops(rollouts):
    async def f(completions):
        await asyncio.sleep(10)

    with pytest.raises(RewardError, match=r"took longer than 0\.1 seconds"):
        FunctionReward(f, time_limit_s=0.1)(rollouts(["a", "b"]))


def test_rows_without_a_column_that_it_needs_are_refused_at_the_start():
    reward = FunctionReward(lambda completions, answer, level=1: [], source="the reward my.py:f")
    reward.check([{"answer": "1"}, {"answer": "2", "level": 3}])
    with pytest.raises(
        UserError, match=r"my.py:f takes `answer`, but row 2 of the data has no such column \(found: gold"
    ):
        reward.check([{"answer": "1"}, {"gold": "2"}])


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda texts: texts, "takes texts, no completions"),
        (lambda: [], "takes no arguments, no completions"),
        (lambda completions, /: completions, "by position only"),
    ],
)
def test_functions_that_could_not_be_asked_are_refused(function, words):
    with pytest.raises(UserError, match=words):
        FunctionReward(function)


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("def score(completions):\n    return 1\n", "scores", "has no function scores; did you mean score"),
        ("x = 1\n", "f", "has no function f; it defines no function"),
        ("def f(:\n", "f", r"rewards.py, line 1: "),
        ("import nothing_of_that_name\n", "f", "cannot be imported: it raised ModuleNotFoundError"),
        ("f = 3\n", "f", "has no function f"),
    ],
)
def test_files_that_hold_no_such_function_say_so(tmp_path, text, name, words):
    (tmp_path / "rewards.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        load_function(tmp_path / "rewards.py", name)


def test_a_file_that_is_not_there_says_so(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*rewards\.py"):
        load_function(tmp_path / "rewards.py", "f")


def test_functions_of_one_file_share_its_module_until_it_changes(tmp_path):
    (tmp_path / "beside_rewards.py").write_text("BONUS = 2.0\n", encoding="utf-8")
    file = tmp_path / "shared_rewards.py"
    file.write_text(
        "from beside_rewards import BONUS\ncalls = []\n"
        "def f(completions):\n    calls.append(1)\n    return [BONUS] * len(completions)\n"
        "def g(completions):\n    return [float(len(calls))] * len(completions)\n",
        encoding="utf-8",
    )
    f, g = load_function(file, "f"), load_function(file, "g")
    assert (f(["a"]), g(["a"])) == ([2.0], [1.0])
    file.write_text("def f(completions):\n    return [7.0]\n", encoding="utf-8")
    assert load_function(file, "f")(["a"]) == [7.0]
