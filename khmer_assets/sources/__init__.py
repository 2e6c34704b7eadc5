"""What text comes from: the catalogue's entries, the kinds of source, and what kinds share."""
