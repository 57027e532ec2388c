"""Text-to-SQL data: tables with real SQLite databases, questions in English and Chinese, and realistic mistakes."""

from posttrain.data.text2sql.generator import DATASET_INFO, Manifest, generate

__all__ = ["DATASET_INFO", "Manifest", "generate"]
