"""Synthetic scans that are hard to segment: the phantoms of `datasets.phantom` with all that varies among patients."""
