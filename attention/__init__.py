"""Arithmetic on keys: what attention weighs more or less, and what it is asked to record."""
