"""Questions in, answers out, metrics with their intervals."""
