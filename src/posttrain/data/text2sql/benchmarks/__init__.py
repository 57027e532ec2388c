"""Text-to-SQL benchmarks of others (Spider, CSpider, BIRD, DuSQL, WikiSQL) as data sets of ours."""

from posttrain.data.text2sql.benchmarks.convert import FORMATS, Converted, convert

__all__ = ["FORMATS", "Converted", "convert"]
