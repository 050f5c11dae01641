"""Runs N branches of one answer; knows no paper."""
