"""Kinds of data: containers, readers, checks, writers, catalogue."""
