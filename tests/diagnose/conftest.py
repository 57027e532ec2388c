"""What the tests of looking before running share."""

import json

import pytest

from posttrain.models.load import load_tokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_llama):
    """Bytes with a few merges: a Chinese character is three tokens."""
    return load_tokenizer(tiny_llama)


@pytest.fixture
def write_rows(tmp_path):
    """Write rows as a JSON list and return the path."""

    def write(rows, name="rows.json"):
        path = tmp_path / name
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8", newline="\n")
        return str(path)

    return write
