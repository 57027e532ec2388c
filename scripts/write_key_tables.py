"""Write the tables of keys into docs/from-llama-factory.md and docs/from-trl.md, between their marks."""

from __future__ import annotations

from pathlib import Path

from posttrain.config.key_tables import llamafactory_table, trl_table

ROOT = Path(__file__).resolve().parents[1]
BEGIN = "<!-- keys: written by `python scripts/write_key_tables.py` -->"
END = "<!-- end of keys -->"


def pages() -> dict[Path, str]:
    """Page -> what it should hold."""
    keys = (ROOT / "tests" / "config" / "llamafactory_keys.txt").read_text(encoding="utf-8").split()
    tables = {"from-llama-factory.md": llamafactory_table(keys), "from-trl.md": trl_table()}
    return {ROOT / "docs" / name: page_with(ROOT / "docs" / name, table) for name, table in tables.items()}


def page_with(page: Path, table: str) -> str:
    """The page with this table between its marks."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table}\n{END}{after}"


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8", newline="\n")
