"""MVP, and its vote over views."""
