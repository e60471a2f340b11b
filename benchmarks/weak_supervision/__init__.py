"""Weak-supervision benchmark: one labelled scan and many volume-level labels, on a synthetic cohort."""
