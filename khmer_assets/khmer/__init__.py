"""The Khmer language: pure functions over text. No Dagster, no files, nothing of a stage."""
