"""The benchmark of weak supervision: one labelled scan and many volume-level labels, on a synthetic cohort."""
