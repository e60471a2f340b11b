"""The public data sets of the paper: `sets.py` describes them, `make.py` makes cohorts of them."""
