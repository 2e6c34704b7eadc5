"""Training mixture -> tokenizer, and the measure of how well it serves each language."""
