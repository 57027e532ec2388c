"""The generated configuration reference is current and complete."""

import subprocess
import sys
from pathlib import Path

from posttrain.config import KEYS, reference_markdown


def test_the_page_in_docs_is_current():
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text(encoding="utf-8") == reference_markdown(), (
        "run: python -m posttrain.config > docs/configuration.md"
    )


def test_every_key_is_there_with_a_sentence():
    rows = [line for line in reference_markdown().splitlines() if line.startswith("| `")]
    for key in KEYS.values():
        row = next(line for line in rows if line.startswith(f"| `{key.name}` |"))
        assert row.count("|") == 5
        assert row.endswith(". |")


def test_the_room_needs_no_torch():
    code = "import sys, posttrain.config; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'peft')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
