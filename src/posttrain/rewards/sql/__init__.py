"""SQL as a judge: statements run read-only under limits, their rows compared with those of a reference."""
