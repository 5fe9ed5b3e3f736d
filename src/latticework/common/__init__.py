"""Plain recipes used by name everywhere, and what several wings build on."""
