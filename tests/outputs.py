"""Segmenters for commands to run, and what commands write."""

import csv
import json

import torch

from models import Segmenter
from models.checkpoint import SegmenterFacts, SegmenterInput, save_segmenter


def save_model(path, size, seed=1, seen=(), **changes):
    """Write a tiny segmenter with random weights; of most seeds, its predictions are neither empty nor full."""
    trained_on = {"size": size, "window": (-1250.0, 250.0), "normalization": "minmax", **changes}
    facts = SegmenterFacts(trained_on=SegmenterInput(**trained_on), iteration=0, seen=list(seen))
    torch.manual_seed(seed)
    save_segmenter(path, Segmenter(2), facts)
    return path


def table(path):
    """The rows of a CSV file by id."""
    with path.open(newline="", encoding="utf-8") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def summary(folder):
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def written(folder):
    """Files below a folder, but for hidden ones and those of its ledger."""
    paths = [path.relative_to(folder) for path in folder.rglob("[!.]*") if path.is_file()]
    return sorted(str(path) for path in paths if path.parts[0] != "ledger")


def same_files(folder, other):
    assert written(folder) == written(other)
    for name in written(folder):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def same(a, b):
    """Whether nested dicts, lists and tuples hold the same values, tensors bit for bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
