"""Rows -> rendered tokens -> batches: reading files, chat templates, truncation, collation."""
