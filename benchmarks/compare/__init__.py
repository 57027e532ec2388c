"""Side-by-side runs of posttrain and its peers; ``python -m benchmarks.compare --help``."""
