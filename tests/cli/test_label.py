"""`posttrain label` at the command line."""

import json

import pytest

from posttrain.cli import main

ROWS = [{"prompt": f"q{n}", "answers": ["a" * (n + 1), "b" * (n + 2)]} for n in range(3)]


@pytest.fixture
def configured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    (tmp_path / "label.yaml").write_text(
        "dataset: rows.json\njudge_model: referee\njudge_retries: 0\n", encoding="utf-8"
    )
    return tmp_path


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("joined", [True, False])
def test_the_judge_may_be_named_anywhere(configured, judge_server, longer, capsys, place, joined):
    url = judge_server(longer).url
    arguments = ["label.yaml", "output_file=pairs.jsonl", "judge_concurrency=1"]
    arguments[place:place] = [f"--judge={url}"] if joined else ["--judge", url]
    assert main(["label", *arguments]) == 0
    captured = capsys.readouterr()
    assert "***** label metrics *****" in captured.out
    assert "posttrain: wrote 3 preference pairs to pairs.jsonl" in captured.err
    assert (configured / "pairs.jsonl").read_text(encoding="utf-8").count("\n") == 3


def test_it_wins_over_the_file(configured, judge_server, longer, capsys):
    url = judge_server(longer).url
    assert main(["label", "label.yaml", "judge=saves/rm", "output_file=pairs.jsonl", "--judge", url]) == 0


def test_what_argparse_refuses(configured, capsys):
    for arguments in (["label"], ["label", "--judge"], ["label", "label.yaml", "--judge"], ["label", "x", "--jduge=y"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    assert "expected one argument" in capsys.readouterr().err


def test_bad_input_is_status_2_and_a_dead_server_status_1(configured, judge_server, longer, capsys):
    assert main(["label", "label.yaml", "output_file=pairs.jsonl"]) == 2
    assert "label.yaml: `judge` is missing" in capsys.readouterr().err
    server = judge_server(longer)
    server.close()
    assert main(["label", "label.yaml", "output_file=pairs.jsonl", f"judge={server.url}"]) == 1
    message = capsys.readouterr().err
    assert message.count("posttrain: error: ") == 1
    assert f"{server.url}/chat/completions" in message


def test_an_interruption_says_how_to_go_on(configured, judge_server, longer, capsys, monkeypatch):
    from posttrain.serve import label

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(label, "label", interrupted)
    assert main(["label", "label.yaml", "output_file=pairs.jsonl", "--judge", judge_server(longer).url]) == 130
    assert "interrupted. The same command goes on where this one was." in capsys.readouterr().err


def test_it_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "label" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["label", "--help"])
    assert "--judge URL|FOLDER" in capsys.readouterr().out
