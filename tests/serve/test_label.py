"""Labelling with real servers and real reward models, in this process."""

import json
import math

import pytest

from posttrain.config import load_config
from posttrain.errors import RunError, UserError
from posttrain.serve import samples
from posttrain.serve.generate import generate
from posttrain.serve.label import label
from posttrain.serve.model import ChatModel

FRUITS = ["fig", "apple", "pear", "mango", "blackberry"]
# the data always call the shorter one better; the sides of rows 1 and 3 are the same
PAIRS = [
    {"prompt": f"Name a fruit, number {n}.", "chosen": fruit * (1 if n == 2 else 2), "rejected": fruit * (3 - n % 2)}
    for n, fruit in enumerate(FRUITS)
]


@pytest.fixture
def work(tmp_path):
    """Write rows and return a function that labels them; keywords are keys of the YAML file."""

    def labelled(rows, said=None, **keys):
        (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
        values = {
            **{"dataset": str(tmp_path / "rows.json"), "output_file": str(tmp_path / "out" / "pairs.jsonl")},
            **{"judge_model": "referee", "judge_retries": 1},
            **keys,
        }
        config = load_config({k: v for k, v in values.items() if v is not None}, command="label")
        return label(config, notify=(said if said is not None else []).append)

    return labelled


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_preference_rows_are_judged_in_both_orders_without_any_model(work, tmp_path, judge_server, longer):
    server = judge_server(longer)
    results = work(PAIRS, judge=server.url)
    rows = lines(tmp_path / "out" / "pairs.jsonl")
    assert [(row["chosen"], row["rejected"]) for row in rows] == [
        ("figfigfig", "figfig"),
        ("pearpearpear", "pear"),
        ("blackberry" * 3, "blackberry" * 2),
    ]
    assert rows[0]["prompt"] == [{"role": "user", "content": "Name a fruit, number 0."}]
    assert {(row["votes"], row["judge"]) for row in rows} == {(2, "referee")}
    assert len(server.asked) == len(set(server.asked)) == 6
    assert results["label_num_rows"] == results["label_num_pairs"] == 3
    assert results["label_agreement"] == 0.0
    assert results["label_order_agreement"] == 1.0
    assert results["label_first_share"] == 0.5
    assert results["label_longer_share"] == 1.0
    assert json.loads((tmp_path / "out" / "label_results.json").read_text(encoding="utf-8")) == results


def test_a_judge_that_always_names_the_first_is_found_out_by_the_swap(work, tmp_path, judge_server):
    server = judge_server(lambda question: "Verdict: A")
    rows = [{"prompt": "q", "answers": ["a", "bb", "ccc"]}]
    with pytest.raises(
        RunError, match=r"no preference pair in 3 comparisons \(3 on which the verdicts of the two orders"
    ):
        work(rows, judge=server.url)
    results = json.loads((tmp_path / "out" / "label_results.json").read_text(encoding="utf-8"))
    assert (results["label_disagreed"], results["label_num_pairs"], results["label_first_share"]) == (3, 0, 1.0)
    assert results["label_order_agreement"] == 0.0
    assert not (tmp_path / "out" / "pairs.jsonl").exists()
    work(rows, judge=server.url, judge_swap=False)  # asked nothing new, believed the first order
    assert len(server.asked) == 6
    assert [row["chosen"] for row in lines(tmp_path / "out" / "pairs.jsonl")] == ["a", "bb", "a"]


def test_a_row_on_which_the_judge_babbles_is_recorded_as_undecided(work, tmp_path, judge_server, longer):
    server = judge_server(lambda question: "Hm." if "number 2" in question else longer(question))
    results = work(PAIRS, judge=server.url, judge_retries=2)
    assert (results["label_undecided"], results["label_num_pairs"]) == (1, 2)
    assert len(server.asked) == 2 * 2 + 2 * 3  # two rows in two orders, one row in two orders three times each
    recorded = lines(tmp_path / "out" / "pairs.verdicts.jsonl")[1:]
    assert [record["said"] for record in recorded if record["verdict"] is None] == ["Hm.", "Hm."]
    before = len(server.asked)
    assert work(PAIRS, judge=server.url, judge_retries=2)["label_requests"] == 0
    assert len(server.asked) == before


def test_a_question_that_the_server_refuses_is_asked_again_the_next_time(work, judge_server, longer):
    refuses = [True]
    server = judge_server(lambda q: (400, b"too long") if refuses[0] and "number 2" in q else longer(q))
    said = []
    results = work(PAIRS, said, judge=server.url, judge_concurrency=1)
    assert (results["label_refused"], results["label_undecided"], results["label_num_pairs"]) == (2, 1, 2)
    assert any("refused 2 questions" in sentence and "too long" in sentence for sentence in said)
    assert work(PAIRS, judge=server.url)["label_num_pairs"] == 2  # still refused, and still no reason to stop
    refuses[0] = False
    assert work(PAIRS, judge=server.url)["label_num_pairs"] == 3
    assert len(server.asked) == 6 + 2 + 2


def test_a_server_that_refuses_everything_is_bad_input(work, tmp_path, judge_server):
    server = judge_server(lambda question: (400, b"no model called referee"))
    with pytest.raises(UserError, match=r"refuses every question; the last time it said .*no model called referee"):
        work(PAIRS, judge=server.url, judge_concurrency=1)
    assert len(server.asked) == 5
    assert not (tmp_path / "out" / "pairs.jsonl").exists()


def test_a_server_that_dies_leaves_what_it_said_and_another_start_goes_on(work, tmp_path, judge_server, longer):
    alive = judge_server(longer)
    work(PAIRS, judge=alive.url, output_file=str(tmp_path / "whole" / "pairs.jsonl"))
    died = []
    dying = judge_server(lambda question: (500, b"died") if len(dying.asked) > 4 and not died else longer(question))
    with pytest.raises(RunError, match=rf"no answer from {dying.url}/chat/completions in 2 attempts.*500.*died"):
        work(PAIRS, judge=dying.url, judge_concurrency=1)
    kept = lines(tmp_path / "out" / "pairs.verdicts.jsonl")[1:]
    assert len(kept) == 4
    assert not (tmp_path / "out" / "pairs.jsonl").exists()
    died.append(True)
    before, said = set(dying.asked[:4]), []
    work(PAIRS, said, judge=dying.url)
    assert not before & set(dying.asked[6:])
    assert any("4 of 6 questions are answered" in sentence for sentence in said)
    assert (tmp_path / "out" / "pairs.jsonl").read_bytes() == (tmp_path / "whole" / "pairs.jsonl").read_bytes()


def test_scores_become_pairs_with_their_margin(work, tmp_path, judge_server, longer):
    server = judge_server(longer)
    rows = [{"prompt": "q", "answers": ["four", "sixsix", "twelve twelve", "fourteen it is"]}]
    results = work(rows, judge=server.url, judge_mode="pointwise")
    found = [(row["chosen"], row["margin"]) for row in lines(tmp_path / "out" / "pairs.jsonl")]
    # scores 4, 6, 10 and 10, the highest that there is
    assert found == [
        ("sixsix", 2.0),
        ("twelve twelve", 4.0),
        ("twelve twelve", 6.0),
        ("fourteen it is", 4.0),
        ("fourteen it is", 6.0),
    ]
    assert (results["label_ties"], len(server.asked)) == (1, 4)
    keys = {"judge_min_margin": 2.0, "judge_max_pairs": 1}
    assert work(rows, judge=server.url, judge_mode="pointwise", **keys)["label_num_pairs"] == 1
    assert len(server.asked) == 4
    assert lines(tmp_path / "out" / "pairs.jsonl")[0]["margin"] == 6.0


def test_the_order_of_rows_does_not_depend_on_who_answers_first(work, tmp_path, judge_server, longer):
    rows = [{"prompt": f"q{n}", "answers": ["a" * (n + 1), "b" * (n + 3), "c"]} for n in range(12)]
    for concurrency in (1, 7):
        keys = {"judge_concurrency": concurrency, "output_file": str(tmp_path / str(concurrency) / "pairs.jsonl")}
        work(rows, judge=judge_server(longer).url, **keys)
    one, seven = ((tmp_path / name / "pairs.jsonl").read_bytes() for name in ("1", "7"))
    assert one == seven


def test_a_prompt_of_ones_own_and_the_common_system_message_reach_the_judge(work, tmp_path, judge_server, longer):
    (tmp_path / "own.txt").write_text(
        "{prompt}\n=== answer A ===\n{answer_a}\n=== end of answer\n=== answer B ===\n{answer_b}\n=== end of answer",
        encoding="utf-8",
    )
    server = judge_server(longer)
    work(PAIRS[:1], judge=server.url, judge_prompt=str(tmp_path / "own.txt"), default_system="Be brief.")
    assert server.asked[0].startswith("[System]\nBe brief.\n\n[User]\nName a fruit, number 0.\n=== answer A")
    assert "system" not in json.dumps(lines(tmp_path / "out" / "pairs.jsonl")[0]["prompt"])


def test_other_settings_do_not_continue_a_journal_unless_told_to(work, tmp_path, judge_server, longer):
    server = judge_server(longer)
    work(PAIRS, judge=server.url)
    for change in ({"judge_model": "other"}, {"judge_mode": "pointwise"}, {"judge_temperature": 0.5}):
        (key,) = change
        with pytest.raises(UserError, match=rf"pairs\.verdicts\.jsonl was begun with {key}"):
            work(PAIRS, judge=server.url, **change)
    with pytest.raises(UserError, match="another rows"):
        work(PAIRS[:1], judge=server.url)
    work(PAIRS[:1], judge=server.url, overwrite_output_dir=True)
    assert len(lines(tmp_path / "out" / "pairs.jsonl")) == 1


def test_no_file_of_others_is_written_over(work, tmp_path, judge_server, longer):
    server = judge_server(longer)
    with pytest.raises(UserError, match=r"is the dataset .* itself"):
        work(PAIRS, judge=server.url, dataset=str(tmp_path / "x.jsonl"), output_file=str(mine(tmp_path / "x.jsonl")))
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"pairs\.jsonl is there already, without pairs\.verdicts\.jsonl"):
        work(PAIRS, judge=server.url, output_file=str(mine(tmp_path / "out" / "pairs.jsonl")))
    assert lines(tmp_path / "out" / "pairs.jsonl") == [PAIRS[0]]
    assert server.asked == []


def mine(path):
    path.write_text(json.dumps(PAIRS[0]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"judge": None}, "`judge` is missing"),
        ({"judge_model": None}, "`judge_model` is missing"),
        ({"judge_scale": "high"}, "`judge_scale: high` is no scale"),
        ({"judge_scale": "9-3"}, "is no scale"),
        ({"judge": "http://"}, "no address of a server"),
        ({"judge": "saves/nothing"}, "reward model saves/nothing does not exist"),
        ({"judge_token_env": "NO_SUCH_TOKEN"}, "NO_SUCH_TOKEN is not set"),
        ({"output_file": "pairs.json"}, r"must end in \.jsonl"),
        ({"output_file": None}, "`output_file` is missing: label needs"),
        ({"dataset": None}, "`dataset` is missing: label needs"),
    ],
)
def test_bad_keys_are_said_before_anything_is_asked(work, tmp_path, judge_server, longer, keys, sentence):
    server = judge_server(longer)
    with pytest.raises(UserError, match=sentence):
        work(PAIRS, **{"judge": server.url, **keys})
    assert server.asked == []
    assert not (tmp_path / "out").exists()


SAMPLING = {"num_return_sequences": 3, "max_new_tokens": 6, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
PROMPTS = [{"instruction": f"Name fruit {n}.", "input": "", "output": ""} for n in range(5)]


def test_prompts_are_answered_first_with_the_answers_that_generate_draws(work, tmp_path, base, judge_server, longer):
    server = judge_server(longer)
    keys = {"model_name_or_path": str(base), **SAMPLING}
    results = work(PROMPTS, judge=server.url, **keys)
    predictions = tmp_path / "predictions.jsonl"
    values = {**keys, "dataset": str(tmp_path / "rows.json"), "output_file": str(predictions)}
    generate(load_config(values, command="generate"))
    drawn = [record["answers"] for record in lines(tmp_path / "out" / "pairs.answers.jsonl")[1:]]
    assert drawn == [row["predict"] for row in lines(predictions)]
    rows = lines(tmp_path / "out" / "pairs.jsonl")
    assert results["label_num_rows"] == 5
    assert results["label_num_pairs"] == len(rows) > 5
    assert all(len(row["chosen"]) > len(row["rejected"]) for row in rows)
    # the predictions hold the same, and are judged as they are
    other = str(tmp_path / "other" / "pairs.jsonl")
    work(PROMPTS, judge=judge_server(longer).url, dataset=str(predictions), output_file=other)
    assert lines(tmp_path / "other" / "pairs.jsonl") == rows


def test_pieces_are_drawn_as_generate_draws_the_whole(work, tmp_path, base, judge_server, longer, monkeypatch):
    monkeypatch.setattr(samples, "PIECE", 2)
    keys = {"model_name_or_path": str(base), **SAMPLING}
    # the same question five times: each place in the dataset draws its own answers
    work([PROMPTS[0]] * 5, judge=judge_server(longer).url, **keys)
    values = {**keys, "dataset": str(tmp_path / "rows.json"), "output_file": str(tmp_path / "predictions.jsonl")}
    generate(load_config(values, command="generate"))
    drawn = [record["answers"] for record in lines(tmp_path / "out" / "pairs.answers.jsonl")[1:]]
    assert drawn == [row["predict"] for row in lines(tmp_path / "predictions.jsonl")]


def test_answers_that_are_there_are_not_drawn_again(work, tmp_path, base, judge_server, longer, monkeypatch):
    keys = {"model_name_or_path": str(base), "judge": judge_server(longer).url, **SAMPLING}
    monkeypatch.setattr(samples, "PIECE", 2)
    work(PROMPTS, **keys)
    whole = (tmp_path / "out" / "pairs.answers.jsonl").read_bytes()
    pairs = (tmp_path / "out" / "pairs.jsonl").read_bytes()
    for kept in (-5, len(whole) // 2, 0):  # cut off in the last line, in the middle of a piece, not begun
        (tmp_path / "out" / "pairs.answers.jsonl").write_bytes(whole[:kept])
        work(PROMPTS, **keys)
        assert (tmp_path / "out" / "pairs.answers.jsonl").read_bytes() == whole
        assert (tmp_path / "out" / "pairs.jsonl").read_bytes() == pairs
    monkeypatch.setattr(ChatModel, "__init__", None)  # all answers are there: no model is loaded
    work(PROMPTS, **keys)
    with pytest.raises(UserError, match=r"answers\.jsonl was begun with temperature 1\.0 \(now 0\.5\)"):
        work(PROMPTS, **{**keys, "temperature": 0.5})


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"num_return_sequences": 1}, "`num_return_sequences` is 1"),
        ({"do_sample": False}, "answers to each prompt are all the same"),
        ({"model_name_or_path": None}, "`model_name_or_path` is missing: the dataset holds prompts"),
    ],
)
def test_prompts_that_get_nothing_to_compare_are_bad_input(work, base, judge_server, longer, keys, sentence):
    with pytest.raises(UserError, match=sentence):
        work(PROMPTS, judge=judge_server(longer).url, **{"model_name_or_path": str(base), **SAMPLING, **keys})


def test_a_reward_models_folder_is_a_judge_without_a_server(work, tmp_path, trained, tiny_llama):
    rows = [
        {"prompt": f"name a fruit like {fruit}", "answers": [f"{fruit}!", f"no {fruit}", fruit]} for fruit in FRUITS
    ]
    keys = {"judge": str(trained / "rm"), "judge_model": None, "model_name_or_path": str(tiny_llama), "cutoff_len": 64}
    results = work(rows, per_device_eval_batch_size=2, **keys)
    found = lines(tmp_path / "out" / "pairs.jsonl")
    assert results["label_num_pairs"] == len(found) == 15
    assert {row["judge"] for row in found} == {str(trained / "rm")}
    for row in found:
        assert row["margin"] == pytest.approx(row["chosen_score"] - row["rejected_score"])
        assert row["margin"] > 0
        assert math.isfinite(row["chosen_score"])
    # it was trained to like exclamation marks more than refusals
    liked = [row["chosen"].endswith("!") for row in found if {row["chosen"][-1], row["rejected"][:2]} >= {"!", "no"}]
    assert sum(liked) >= 4
    journal = tmp_path / "out" / "pairs.verdicts.jsonl"
    whole, pairs = journal.read_bytes(), (tmp_path / "out" / "pairs.jsonl").read_bytes()
    journal.write_bytes(whole[: len(whole) * 2 // 3])
    work(rows, per_device_eval_batch_size=2, **keys)
    assert journal.read_bytes() == whole
    assert (tmp_path / "out" / "pairs.jsonl").read_bytes() == pairs
    with pytest.raises(UserError, match=r"begun with (another judge(_weights)?\b|judge )"):
        work(rows, **{**keys, "judge": str(trained / "rm_on_sft")})
