"""x"""

from pathlib import Path


def write_report(pipeline, state, notify):
    """plain"""
    p = Path(pipeline.output_dir) / "report.md"
    p.write_text(str(state.records), encoding="utf-8")
    return p
