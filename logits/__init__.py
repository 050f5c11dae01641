"""Arithmetic on scores: rules, logits processors, calibration. Knows no model."""
