"""AGLA, and how well each image patch matches the question."""
