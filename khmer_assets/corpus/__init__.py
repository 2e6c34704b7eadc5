"""From raw sources to the training mixture: read, normalize, filter, deduplicate, mix."""
