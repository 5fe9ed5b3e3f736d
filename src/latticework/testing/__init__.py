"""Batteries of checks that every method, task, data set and probe must pass."""
