"""HNeRV: a video as a small decoder and one tiny embedding a frame."""
