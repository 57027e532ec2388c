"""Reviews in Chinese: texts that praise and blame, pairs of which one praises more, beginnings to go on from."""

from posttrain.data.reviews.generator import DATASET_INFO, Manifest, generate
from posttrain.data.reviews.words import Tone, tone

__all__ = ["DATASET_INFO", "Manifest", "Tone", "generate", "tone"]
