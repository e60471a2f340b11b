"""Measurements of our ways of doing things against the published ones, in the same run."""
