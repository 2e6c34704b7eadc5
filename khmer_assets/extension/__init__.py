"""Base model and training mixture -> the base's tokenizer with Khmer tokens, and the model with rows for them."""
