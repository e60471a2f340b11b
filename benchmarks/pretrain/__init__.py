"""Training of the pretrained segmenter on synthetic scans alone."""
