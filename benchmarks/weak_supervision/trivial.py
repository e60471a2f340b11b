"""Baselines without a network for volumes: what density and position of single voxels tell about lesions.

  threshold        one threshold on HU averaged over 8 mm
  mlp-N            per-voxel classifier with ten features, from the N labelled scans
  mlp-N-negatives  the same, with voxels of the healthy training scans as negatives

Thresholds are chosen on the validation scans. Also printed, learned on the training scans and measured on the test
scans:

  nuisance-auc     telling diseased from healthy scans by noise, slice thickness and HU outside the lesions; should be
                   close to 0.5
  volume-auc       telling them by the voxels of the whole lungs: what volume-level labels can teach a simple method

Examples:
  python -m benchmarks.weak_supervision.trivial cohort --output output/trivial.json
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from scipy.stats import mannwhitneyu
from torch import nn

from datasets.cohort import Case, Volumes, read_cohort, read_volumes
from datasets.geometry import shape_of
from datasets.volumes import read_geometry
from datasets.window import unmap_window
from utils.cli import add_quiet, new_parser, run, start_logging
from utils.files import write_text
from utils.progress import progress_bar

Array = np.ndarray

AVERAGED = 8.0
"""Side in mm of the cube over which the threshold's HU are averaged."""

SCALES = (2.0, 4.0, 8.0)
"""Sigmas in mm of the Gaussians of the features."""

FEATURES = 10
LABELS = (1, 3, 10, 40)
_HIDDEN, _STEPS, _BATCH, _RATE = 32, 1500, 4096, 3e-3
_NEGATIVES = 2000  # voxels of each healthy scan
_APPEARANCE, _QUANTILES, _DECAY = 7, (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99), 1.0

THRESHOLDS = np.linspace(0.02, 0.98, 49)
"""Probabilities to choose a threshold from."""


@dataclass(frozen=True)
class Voxels:
    """The lung voxels of one scan.

    Attributes:
        features: float32 (voxels, `FEATURES`).
        averaged: HU averaged over `AVERAGED` mm, (voxels,).
        lesion: bool (voxels,).
    """

    features: Array
    averaged: Array
    lesion: Array


def lung_voxels(volumes: Volumes) -> Voxels:
    """Compute the features of the lung voxels of a scan.

    They are HU; HU smoothed at three scales; local SD at two scales; distance to the pleura; and position along z, y
    and |x| relative to the lungs' box. Smoothing is restricted to the lungs.
    """
    hu, lung = unmap_window(volumes.image), volumes.lung > 0
    step = np.array(volumes.geometry.GetSpacing()[::-1])
    inside = lung.astype(np.float32)

    def smooth(values: Array, sigma: float) -> Array:
        weight = ndimage.gaussian_filter(inside, sigma / step, truncate=2.5)
        return ndimage.gaussian_filter(values * inside, sigma / step, truncate=2.5) / np.maximum(weight, 1e-3)

    means = [smooth(hu, sigma) for sigma in SCALES]
    spreads = [np.sqrt(np.maximum(smooth(hu * hu, s) - m * m, 0)) for s, m in zip(SCALES[1:], means[1:], strict=True)]
    depth = ndimage.distance_transform_edt(np.pad(lung, 1), sampling=step)[1:-1, 1:-1, 1:-1]
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in lung.shape), indexing="ij", sparse=True)
    where = [np.broadcast_to(axis, lung.shape) for axis in (z, y, np.abs(x))]
    features = np.stack([array[lung] for array in (hu, *means, *spreads, depth, *where)], 1).astype(np.float32)
    size = np.maximum(np.rint(AVERAGED / step), 1).astype(int)
    return Voxels(features, ndimage.uniform_filter(hu, size)[lung], volumes.lesion[lung] > 0)


def dice(predicted: Array, truth: Array) -> float:
    """Dice of two bool arrays; 1 if both are empty."""
    total = int(predicted.sum()) + int(truth.sum())
    return 1.0 if total == 0 else 2 * int((predicted & truth).sum()) / total


def best_threshold(scores: Sequence[Array], truths: Sequence[Array], thresholds: Iterable[float]) -> float:
    """The threshold with the highest mean Dice over scans."""
    return max(thresholds, key=lambda t: np.mean([dice(s > t, truth) for s, truth in zip(scores, truths, strict=True)]))


def fit_mlp(features: Array, targets: Array, seed: int) -> Callable[[Array], Array]:
    """Train a per-voxel classifier with two hidden layers.

    Args:
        features: (voxels, features).
        targets: bool (voxels,).
        seed: random seed.

    Returns:
        Function from features to probabilities, (voxels,).
    """
    rng = torch.Generator().manual_seed(seed)
    mean, sd = features.mean(0), features.std(0) + 1e-6
    layers = [nn.Linear(features.shape[1], _HIDDEN), nn.Linear(_HIDDEN, _HIDDEN), nn.Linear(_HIDDEN, 1)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.normal_(0, (2 / layer.in_features) ** 0.5, generator=rng)
            layer.bias.zero_()
    network = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2], nn.Flatten(0))
    inputs, wanted = torch.from_numpy((features - mean) / sd), torch.from_numpy(targets.astype(np.float32))
    optimiser = torch.optim.Adam(network.parameters(), _RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _STEPS)
    for _ in range(_STEPS):
        batch = torch.randint(len(inputs), (_BATCH,), generator=rng)
        optimiser.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(network(inputs[batch]), wanted[batch]).backward()
        optimiser.step()
        schedule.step()

    @torch.no_grad()
    def predict(values: Array) -> Array:
        return network(torch.from_numpy((values - mean) / sd)).sigmoid().numpy()

    return predict


def auc(scores: Array, positive: Array) -> float:
    """Area under the ROC curve; ties count one half."""
    pairs = positive.sum() * (~positive).sum()
    return float(mannwhitneyu(scores[positive], scores[~positive]).statistic / pairs)


def nuisances(volumes: Volumes) -> Array:
    """What should not tell the disease: noise, correlation between slices, and HU of the lungs away from lesions."""
    hu, lung = unmap_window(volumes.image), volumes.lung > 0
    fine = hu - ndimage.uniform_filter(hu, (1, 3, 3))
    tissue = ~ndimage.binary_dilation(lung, iterations=2) & (hu > -150) & (hu < 150)
    noise = fine[tissue] if tissue.sum() > 100 else fine[~lung]
    both = tissue[1:] & tissue[:-1]
    slices = np.corrcoef(fine[1:][both], fine[:-1][both])[0, 1] if both.sum() > 100 else 0.0
    away = ndimage.binary_erosion(lung) & ~ndimage.binary_dilation(volumes.lesion > 0, iterations=2)
    levels = np.quantile(hu[away], (0.1, 0.5, 0.9))
    return np.array([noise.std(), np.abs(noise).mean(), slices, *levels, hu[away].std()], np.float32)


def volume_facts(voxels: Voxels) -> Array:
    """What the lung of a scan looks like as a whole: quantiles and SD of the features, without those of position."""
    features = voxels.features[:, :_APPEARANCE]
    return np.r_[np.quantile(features, _QUANTILES, axis=0).ravel(), features.std(axis=0)]


def classifier_auc(train: tuple[Array, Array], test: tuple[Array, Array], decay: float) -> float:
    """AUC on `test` of a ridge regression learned on `train`; both are (values, diseased).

    Args:
        train: values (scans, n) and bool (scans,).
        test: the same, of other scans.
        decay: weight of the squared coefficients of standardised values.
    """
    mean, sd = train[0].mean(axis=0), train[0].std(axis=0) + 1e-6
    inputs, held_out = (np.c_[(values - mean) / sd, np.ones(len(values))] for values, _ in (train, test))
    normal = inputs.T @ inputs + decay * np.eye(inputs.shape[1])
    return auc(held_out @ np.linalg.solve(normal, inputs.T @ (2.0 * train[1] - 1)), test[1])


def measure(root: Path, labels: Sequence[int] = LABELS, seed: int = 0, progress: bool = False) -> dict[str, float]:
    """Test Dice of every baseline, and the two AUCs.

    Args:
        root: cohort folder with the lists of the benchmark.
        labels: numbers of labelled scans.
        seed: random seed.
        progress: show progress bars.
    """
    names = {"TEST": "test", "TESTH": "testh", "VALID": "valid", "HEALTHY": "healthy", "WO_LABEL": "diseased"}
    image = next((root / "images").iterdir())
    size = shape_of(read_geometry(image))
    cohort = read_cohort(root, names, size)
    many = f"labels_{max(labels)}"
    labelled = read_cohort(root, {"LABELED": many}, size)["LABELED"]

    def voxels(cases: Sequence[Case], what: str) -> list[Voxels]:
        bar = progress_bar(cases, what, unit="scan", shown=progress, leave=False)
        return [lung_voxels(read_volumes(case)) for case in bar]

    known, valid, test = (voxels(c, "features") for c in (labelled, cohort["VALID"], cohort["TEST"]))
    rng = np.random.default_rng(seed)
    healthy = voxels(cohort["HEALTHY"], "healthy")
    drawn = [rng.choice(v.features, min(_NEGATIVES, len(v.features)), replace=False) for v in healthy]
    negatives = np.concatenate(drawn)

    def score(of: Callable[[Voxels], Array], thresholds: Iterable[float]) -> float:
        cut = best_threshold([of(v) for v in valid], [v.lesion for v in valid], thresholds)
        return float(np.mean([dice(of(v) > cut, v.lesion) for v in test]))

    found = {"threshold": score(lambda v: v.averaged, np.arange(-800, 0, 10.0))}
    for count in labels:
        features = np.concatenate([v.features for v in known[:count]])
        targets = np.concatenate([v.lesion for v in known[:count]])
        predict = fit_mlp(features, targets, seed)
        found[f"mlp-{count}"] = score(lambda v, p=predict: p(v.features), THRESHOLDS)
        more = np.concatenate([targets, np.zeros(len(negatives), bool)])
        predict = fit_mlp(np.concatenate([features, negatives]), more, seed)
        found[f"mlp-{count}-negatives"] = score(lambda v, p=predict: p(v.features), THRESHOLDS)

    def sides(sick: Sequence[Array], well: Sequence[Array]) -> tuple[Array, Array]:
        return np.stack([*sick, *well]), np.arange(len(sick) + len(well)) < len(sick)

    # The training scans' lesion masks exist, so that lesions can be left out.
    masked = [Case(c.id, c.image, c.lung, root / "lesion" / c.image.name) for c in cohort["WO_LABEL"]]
    splits = (masked, cohort["HEALTHY"]), (cohort["TEST"], cohort["TESTH"])
    train, held_out = (sides(*([nuisances(read_volumes(c)) for c in cases] for cases in pair)) for pair in splits)
    found["nuisance-auc"] = classifier_auc(train, held_out, decay=_DECAY)
    diseased, testh = voxels(cohort["WO_LABEL"], "diseased"), voxels(cohort["TESTH"], "held out")
    train, held_out = (
        sides(*([volume_facts(v) for v in scans] for scans in pair)) for pair in ((diseased, healthy), (test, testh))
    )
    found["volume-auc"] = classifier_auc(train, held_out, decay=_DECAY)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = new_parser(__doc__, "python -m benchmarks.weak_supervision.trivial")
    parser.add_argument("cohort", type=Path, metavar="COHORT", help="cohort folder of the benchmark")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file with the numbers")
    parser.add_argument(
        "--labels", type=int, nargs="+", choices=LABELS, default=LABELS, help="numbers of labelled scans (default all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default 0)")
    add_quiet(parser)
    options = parser.parse_args(arguments)
    start_logging(options.quiet)
    found = measure(options.cohort, options.labels, options.seed, progress=not options.quiet)
    for name, value in found.items():
        print(f"{name:20} {value:.3f}")
    if options.output:
        write_text(options.output, json.dumps({name: round(value, 4) for name, value in found.items()}) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
