"""What a segmenter finds on whole scans, how good that is, and how it looks.

The defaults that commands name in their ``--help`` stand here, so that printing it imports no library.
"""

THRESHOLD = 0.5
"""Probabilities above it are lesion."""

TESTED = "tested"
"""Kind of the masks of test.py in the ledger."""

TOLERANCE_MM = 3.0
"""Of the surface Dice. The benchmark of Ma et al. (Medical Physics 48, 2021, arXiv:2004.12537), on the paper's data
set A, allows 3 mm for COVID-19 lesions (and 1 mm for lungs): about what readers differ by at their blurred borders."""
