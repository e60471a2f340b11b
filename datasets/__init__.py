"""How a scan becomes a sample: reading and checking volumes, cropping, cohorts, augmentation, batches.

The defaults that commands name in their ``--help`` stand here, so that printing it imports no library.
"""

CROP_SIZE = (40, 160, 160)
"""Depth, height, width of a crop."""

WINDOW = (-1250.0, 250.0)
"""HU that become 0 and 255."""

MAX_VOXELS = 2**29
"""Most voxels that a volume may have unless more are allowed: 512x512x2048."""

TRAINING = ("LABELED", "WO_LABEL", "HEALTHY")
HELD_OUT = ("VALID", "VALIDWL", "VALIDH", "TEST", "TESTH")
"""Splits, keys of DATASET.SPLIT."""
WITH_LESION = ("LABELED", "VALID", "TEST")
"""Splits whose scans need a voxel label."""
