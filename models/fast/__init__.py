"""Exact, faster ways of computing the networks on CUDA."""
