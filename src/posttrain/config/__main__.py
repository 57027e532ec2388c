"""``python -m posttrain.config`` writes the configuration reference to standard output."""

import sys

from posttrain.config.reference import reference_markdown

if __name__ == "__main__":
    sys.stdout.buffer.write(reference_markdown().encode("utf-8"))
