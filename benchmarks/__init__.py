"""Measurements against a named alternative in the same run. Each prints a table and ends with one JSON line."""
