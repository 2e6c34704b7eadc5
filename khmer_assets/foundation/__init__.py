"""What everything stands on, and what knows nothing of text, models or the graph."""
