import json
import random

import pytest

from posttrain.errors import UserError
from posttrain.evaluate.compare import compare
from posttrain.evaluate.compare_training import compare_training
from posttrain.evaluate.items import digest_of
from posttrain.evaluate.run_folders import read_folders


@pytest.fixture
def evaluation(tmp_path):
    """Write the folder of an evaluation: variant -> its records, whose items are called i0, i1 ..."""

    def write(name, task="match", first=0, settings=None, decoding=None, **variants):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        records = [
            {"id": f"i{first + i}", "index": i, "variant": variant, **record}
            for variant, rows in variants.items()
            for i, record in enumerate(rows)
        ]
        ids = sorted({record["id"] for record in records})
        results = {"task": task, "items": digest_of(ids), "settings": settings or {}, "decoding": decoding}
        (folder / "eval_results.json").write_text(json.dumps(results), encoding="utf-8")
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "predictions.jsonl").write_text(text, encoding="utf-8")
        return str(folder)

    return write


def answers(size, right, seed=0):
    """Records of a match task: ``right`` of them are."""
    order = random.Random(seed).sample(range(size), size)
    return [{"correct": order[i] < right, "found": True} for i in range(size)]


def test_a_better_run_is_told_from_one_that_is_not(evaluation):
    base = answers(200, 80)
    better = [{**row, "correct": row["correct"] or i % 3 == 0} for i, row in enumerate(base)]
    alike = answers(200, 82, seed=0)
    runs = [
        evaluation("base", model=base),
        evaluation("better", model=better),
        evaluation("alike", model=alike),
    ]
    found = compare(read_folders(runs))
    assert found.systems == ("base", "better", "alike")
    assert found.num_items == 200
    tests = {(each.of, each.minus): each for each in found.differences if each.measure.name == "accuracy"}
    assert set(tests) == {("better", "base"), ("alike", "base")}
    better, alike = tests["better", "base"], tests["alike", "base"]
    assert better.is_significant
    assert better.better == "better"
    assert better.difference.low > 0.1
    assert not alike.is_significant
    assert alike.better == ""
    assert alike.difference.value == pytest.approx(0.01)
    # four comparisons (two figures of two pairs): the smallest p counts four times
    assert better.p_holm == pytest.approx(4 * better.difference.p)


def test_where_lower_is_better_the_lower_one_wins(evaluation):
    high = [{"loss_sum": 4.0 + i % 2, "num_tokens": 2, "hits": 1} for i in range(40)]
    low = [{"loss_sum": 3.0 + i % 2, "num_tokens": 2, "hits": 1} for i in range(40)]
    found = compare(read_folders([evaluation("a", task="loss", model=high), evaluation("b", task="loss", model=low)]))
    (loss,) = [each for each in found.differences if each.measure.name == "loss"]
    assert loss.difference.value == pytest.approx(-0.5)
    assert loss.better == "b"
    assert [m.name for m in found.measures] == ["loss", "token_accuracy"]


def test_items_are_paired_by_name_and_not_by_place(evaluation, tmp_path):
    rows = answers(50, 20)
    one = evaluation("one", model=rows)
    two = evaluation("two", model=rows)
    path = tmp_path / "two" / "predictions.jsonl"
    path.write_text("\n".join(reversed(path.read_text(encoding="utf-8").splitlines())), encoding="utf-8")
    (accuracy, _) = compare(read_folders([one, two])).differences
    assert (accuracy.difference.value, accuracy.difference.low, accuracy.difference.p) == (0.0, 0.0, 1.0)


def test_variants_of_one_run_are_systems(evaluation):
    run = evaluation("run", base=answers(40, 10), sft=answers(40, 20), ppo=answers(40, 25))
    found = compare(read_folders([run]), all_pairs=True)
    assert found.systems == ("base", "sft", "ppo")
    assert {(e.of, e.minus) for e in found.differences} == {("sft", "base"), ("ppo", "base"), ("ppo", "sft")}
    two = compare(read_folders([run, evaluation("other", model=answers(40, 30))]))
    assert two.systems == ("run:base", "run:sft", "run:ppo", "other")


def test_runs_of_the_same_name_are_told_apart_and_may_be_named(evaluation):
    one, two = evaluation("s1/eval", model=answers(30, 10)), evaluation("s2/eval", model=answers(30, 12))
    assert compare(read_folders([one, two])).systems == ("s1/eval", "s2/eval")
    assert compare(read_folders([f"mine={one}", two])).systems[0] == "mine"
    assert compare(read_folders([f"{one}/eval_results.json", two])).systems == ("s1/eval", "s2/eval")


def refused(folders, **keys):
    with pytest.raises(UserError) as caught:
        compare(read_folders(folders), **keys)
    return str(caught.value)


def test_other_tasks_are_not_comparable(evaluation):
    loss = [{"loss_sum": 1.0, "num_tokens": 1, "hits": 1}]
    message = refused([evaluation("a", model=answers(3, 1)), evaluation("b", task="loss", model=loss)])
    assert "measured task match and" in message
    assert "only evaluations of one task can be compared" in message


def test_other_items_are_not_comparable_unless_what_is_shared_is_asked_for(evaluation):
    runs = [evaluation("a", model=answers(40, 20)), evaluation("b", first=10, model=answers(40, 20))]
    message = refused(runs)
    assert "a and b measured different items: 10 of 40 are not in b, 10 of 40 not in a" in message
    assert "--common-items to compare on the 30" in message
    found = compare(read_folders(runs), common_items=True)
    assert found.num_items == 30
    assert "compared on the 30 items that all systems measured" in found.notes
    assert "have no item in common" in refused(
        [runs[0], evaluation("c", first=100, model=answers(4, 2))], common_items=True
    )


def test_figures_of_other_settings_are_not_comparable(evaluation):
    runs = [
        evaluation("a", settings={"match": "text"}, model=answers(4, 2)),
        evaluation("b", settings={"match": "number"}, model=answers(4, 2)),
    ]
    assert "measured with match: text and" in refused(runs)


def test_answers_that_were_drawn_differently_are_compared_with_a_note(evaluation):
    runs = [
        evaluation("a", decoding={"do_sample": False}, model=answers(40, 2)),
        evaluation("b", decoding={"do_sample": True, "temperature": 1.0}, model=answers(40, 2)),
    ]
    notes = compare(read_folders(runs)).notes
    assert "answers were drawn differently: do_sample was a False, b True" in notes


def test_many_comparisons_are_drawn_often_enough_to_be_found(evaluation):
    rows = [{"task": f"t{i % 60}", "metrics": {"acc": 0.0}} for i in range(600)]
    other = [{**row, "metrics": {"acc": float(row["task"] == "t0")}} for row in rows]
    found = compare(read_folders([evaluation("r", task="lm_eval", a=rows, b=other, c=other, d=other)]))
    assert len(found.differences) == 180
    assert found.num_resamples == 18_000
    best = min(each.p_holm for each in found.differences)
    assert best < 0.05


def test_few_items_are_said_to_be_few(evaluation):
    found = compare(read_folders([evaluation("run", a=answers(9, 2), b=answers(9, 5))]))
    assert any("9 items are few" in note for note in found.notes)


def test_one_system_alone_has_nothing_to_be_compared_with(evaluation):
    assert "holds one system (model)" in refused([evaluation("a", model=answers(4, 2))])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "predictions.jsonl").unlink(), "has no predictions.jsonl, by which items are paired"),
        (lambda folder: (folder / "predictions.jsonl").write_text(""), "is empty; evaluate again"),
        (lambda folder: (folder / "predictions.jsonl").write_text('{"index": 0}\n'), "records name no items"),
        (lambda folder: (folder / "predictions.jsonl").write_text('{"id": \n'), "line 1: malformed JSON"),
        (
            lambda folder: (folder / "predictions.jsonl").write_text('{"id": "x", "variant": "m"}\n'),
            "does not belong to eval_results.json beside it",
        ),
        (lambda folder: (folder / "eval_results.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "eval_results.json").write_text("[]"), "expected one JSON object"),
        (lambda folder: (folder / "eval_results.json").unlink(), "holds neither a finished evaluation"),
    ],
)
def test_a_damaged_folder_is_one_message(evaluation, tmp_path, break_it, message):
    run = evaluation("a", model=answers(4, 2))
    break_it(tmp_path / "a")
    assert message in refused([run, evaluation("b", model=answers(4, 2))])


def test_folders_that_cannot_be_are_named(evaluation, tmp_path):
    run = evaluation("a", model=answers(4, 2))
    assert "there is no folder" in refused([run, str(tmp_path / "gone")])
    assert "is named twice" in refused([run, run])
    assert "two runs are called x" in refused([f"x={run}", f"x={evaluation('b', model=answers(4, 2))}"])
    assert "neither a folder nor name=folder" in refused([run, "=b"])


@pytest.fixture
def training(tmp_path):
    def write(name, losses, **results):
        folder = tmp_path / name
        folder.mkdir()
        log = [{"current_steps": i + 1, "loss": loss} for i, loss in enumerate(losses)]
        (folder / "trainer_log.jsonl").write_text("".join(json.dumps(x) + "\n" for x in log), encoding="utf-8")
        (folder / "all_results.json").write_text(json.dumps(results), encoding="utf-8")
        (folder / "eval_results.json").write_text(json.dumps({"eval_loss": 1.0}), encoding="utf-8")
        return str(folder)

    return write


def test_training_runs_are_shown_side_by_side_without_a_test(training):
    runs = [
        training("a", [3, 2, 1], train_loss=2.0, eval_loss=1.5, total_steps=3, eval_runtime=9.0),
        training("b", [3, 3], train_loss=3.0, total_steps=2),
    ]
    found = compare_training(read_folders(runs))
    assert found.runs == ("a", "b")
    assert found.figures["train_loss"] == {"a": 2.0, "b": 3.0}
    assert found.figures["eval_loss"] == {"a": 1.5}
    assert "eval_runtime" not in found.figures
    assert found.curves["training loss"]["b"] == ([1.0, 2.0], [3.0, 3.0])


def test_a_training_run_is_not_compared_with_an_evaluation(training, evaluation):
    with pytest.raises(UserError, match=r"is a training run and .* an evaluation"):
        read_folders([training("t", [1]), evaluation("e", model=answers(4, 2))])


def test_questions_of_sql_whose_reference_fails_count_nowhere(evaluation):
    rows = [{"correct": True, "valid": True, "exact": False, "error_class": None} for _ in range(3)]
    rows += [{"correct": False, "valid": False, "exact": False, "error_class": "gold_fails"}]
    found = compare(read_folders([evaluation("r", task="sql", a=rows, b=rows)]))
    assert found.figures["execution_accuracy"]["a"].value == 1.0


def test_tasks_of_the_harness_are_figures_of_their_own(evaluation):
    rows = [{"task": "arc", "metrics": {"acc": 1.0}}, {"task": "arc", "metrics": {"acc": 0.0}}]
    rows += [{"task": "qa", "metrics": {"em": 1.0}}]
    found = compare(read_folders([evaluation("r", task="lm_eval", a=rows, b=rows)]))
    assert {m.name: found.figures[m.name]["a"].value for m in found.measures} == {"arc/acc": 0.5, "qa/em": 1.0}
