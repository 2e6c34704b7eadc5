"""Training mixture and tokenizer -> packed token sequences -> base checkpoint."""
