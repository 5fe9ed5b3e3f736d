"""Learning on point clouds and particles."""
