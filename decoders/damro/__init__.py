"""DAMRO, and the outlier tokens of a vision tower."""
