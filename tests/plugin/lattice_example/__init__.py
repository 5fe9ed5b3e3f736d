"""Somebody else's package: a method, a data set, a probe and a task that join Latticework through one entry point."""
