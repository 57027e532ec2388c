"""``--key value`` behind commands: what is a key, what is an option, and where a flag's value ends."""

import pytest

from posttrain.cli.arguments import with_keys

OWN = frozenset({"--rows", "--help", "-h", "--judge"})


@pytest.mark.parametrize(
    ("words", "read"),
    [
        ("ppo.yaml --max_len 768 --batch-size=16", "ppo.yaml max_len=768 batch_size=16"),
        ("--max_len 768 ppo.yaml", "ppo.yaml max_len=768"),
        ("--do_train ppo.yaml", "ppo.yaml do_train=true"),
        ("ppo.yaml --do_train false --seed 3", "ppo.yaml do_train=false seed=3"),
        ("ppo.yaml seed=1 --seed 2 seed=3", "ppo.yaml seed=1 seed=2 seed=3"),
        ("ppo.yaml --device -1", "ppo.yaml device=-1"),
        ("ppo.yaml --packing --fp16", "ppo.yaml packing=true fp16=true"),
        ("ppo.yaml --fp16 seed=3", "ppo.yaml fp16=true seed=3"),
        ("ppo.yaml --rows 3 --seed 3", "ppo.yaml --rows 3 seed=3"),
        ("ppo.yaml --judge=x --jugde y --he", "ppo.yaml --judge=x --jugde y --he"),
        ("ppo.yaml -- --x", "ppo.yaml -- x=true"),
    ],
)
def test_flags_become_keys(words, read):
    assert with_keys(words.split(), own=OWN) == read.split()


def test_a_value_may_hold_blanks_and_equals_signs():
    assert with_keys(["--default_system", "a = b", "c.yaml"]) == ["c.yaml", "default_system=a = b"]


def test_a_file_whose_name_holds_an_equals_sign_stays_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=3").write_text("", encoding="utf-8")
    assert with_keys(["--seed", "3", "lr=3"]) == ["lr=3", "seed=3"]
