"""Learning on clips."""
