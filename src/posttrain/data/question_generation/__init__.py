"""Passages in Chinese with questions, good ones and realistic bad ones, and a check that tells them apart."""

from posttrain.data.question_generation.checks import Verdict, verdict
from posttrain.data.question_generation.generator import DATASET_INFO, Manifest, generate

__all__ = ["DATASET_INFO", "Manifest", "Verdict", "generate", "verdict"]
