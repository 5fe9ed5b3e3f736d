"""Learning on events in time."""
