"""Learning on images."""
