"""Searching, shrinking and stitching neural nets."""
