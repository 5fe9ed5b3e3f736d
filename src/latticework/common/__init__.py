"""Plain recipes used by name everywhere."""
