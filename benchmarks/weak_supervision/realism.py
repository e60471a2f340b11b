"""Compares the benchmark's scans with real ones: HU and texture of lungs and lesions.

Generates scans like the cohort's, each with one kind of lesion and a grid as fine as real slices. Writes realism.md
(mean, SD and correlation length next to those measured on axial slices of COVID-19 patients), histograms.png and, with
--real, beside.png with slices of synthetic and real CTs and the histograms of their lungs.

Examples:
  python -m benchmarks.weak_supervision.realism output/realism
  python -m benchmarks.weak_supervision.realism output/realism --real thorax.nii.gz chest.nrrd
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import SimpleITK as sitk
from scipy import ndimage

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from datasets.geometry import lps_view
from datasets.lungs import segment_by_threshold
from datasets.phantom.hard import PLAIN_SITE, Crop, make_crop
from datasets.phantom.stages import FILLINGS, Patient
from datasets.scans import read_ct
from datasets.window import WINDOW
from evaluation.figures import save_figure, slice_to_show
from utils.cli import add_quiet, new_parser, run, start_logging
from utils.files import write_text
from utils.progress import progress_bar

MATRIX = (24, 288, 288)
"""Matrix of the scans, (z, y, x): pixels of 1.0 to 1.3 mm."""

HEALTHY = "aerated lung"

MEASURED: Mapping[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float] | None]] = {
    HEALTHY: ((-780, -680), (120, 180), None),
    "ground glass": ((-520, -300), (120, 170), (2, 3)),
    "crazy paving": ((-240, -240), (155, 155), (4, 4)),
    "consolidation": ((-280, -100), (190, 230), (2, 4)),
}
"""Ranges on real slices: HU (median of lung, mean of lesions), SD in HU, and half-length of the correlation in mm."""


@dataclass(frozen=True)
class Texture:
    """HU of a tissue: median, mean, SD, and the in-plane distance in mm at which its autocorrelation is one half."""

    median: float
    mean: float
    sd: float
    half_length: float


def half_length(values: np.ndarray, mask: np.ndarray, spacing: tuple[float, float], longest: int = 24) -> float:
    """The in-plane distance at which the autocorrelation falls to one half.

    The correlation at a lag is taken over all pairs of voxels inside the mask at that distance, along rows and along
    columns, with linear interpolation between lags.

    Args:
        values: HU, (z, y, x).
        mask: bool, same shape.
        spacing: (y, x) in mm.
        longest: maximum lag in voxels.

    Returns:
        Distance in mm, the mean of both directions; NaN if the correlation stays above one half.
    """
    found = []
    for axis, step in zip((1, 2), spacing, strict=True):
        before = 1.0
        for lag in range(1, longest + 1):
            near, far = (np.take(mask, range(*part), axis) for part in _shifted(mask.shape[axis], lag))
            both = near & far
            if both.sum() < 3:
                break
            a, b = (np.take(values, range(*part), axis)[both] for part in _shifted(mask.shape[axis], lag))
            now = float(np.corrcoef(a, b)[0, 1])
            if now <= 0.5:
                found.append(step * (lag - 1 + (before - 0.5) / (before - now)))
                break
            before = now
    return float(np.mean(found)) if found else float("nan")


def _shifted(length: int, lag: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return (0, max(length - lag, 0)), (min(lag, length), length)


def texture(values: np.ndarray, mask: np.ndarray, spacing: tuple[float, float]) -> Texture:
    """Statistics of the voxels inside a mask; arguments as for `half_length`."""
    inside = values[mask]
    return Texture(
        float(np.median(inside)), float(inside.mean()), float(inside.std()), half_length(values, mask, spacing)
    )


def make_kinds(seed: int, number: int, progress: bool = False) -> dict[str, list[Crop]]:
    """Make scans with a single kind of lesion each, and healthy ones, from the site with the thinnest slices.

    Args:
        seed: random seed.
        number: number of scans of each kind.
        progress: show a progress bar.

    Returns:
        Scans by kind.
    """
    found: dict[str, list[Crop]] = {}
    todo = [(kind, k) for kind in (HEALTHY, *FILLINGS) for k in range(number)]
    for kind, k in progress_bar(todo, "making scans", unit="scan", shown=progress):
        rng = np.random.default_rng([seed, k, len(found)])
        patient = None if kind == HEALTHY else Patient(None, {kind: 1.0}, float(rng.random()))
        found.setdefault(kind, []).append(make_crop(rng, MATRIX, patient, PLAIN_SITE))
    return found


def tissue_mask(kind: str, scan: Crop) -> np.ndarray:
    """Voxels to measure: the lesion, or the lungs without their rim."""
    if kind == HEALTHY:
        return ndimage.binary_erosion(scan.lung > 0, iterations=2)
    return scan.lesion > 0


def _pool(kind: str, scans: Sequence[Crop]) -> Texture:
    found = [texture(p.hu, tissue_mask(kind, p), (p.spacing[1], p.spacing[0])) for p in scans]
    return Texture(*(float(np.nanmean([getattr(t, f) for t in found])) for f in Texture.__dataclass_fields__))


def as_markdown(found: Mapping[str, Texture]) -> str:
    """The table: synthetic scans next to the ranges of `MEASURED`."""
    lines = [
        "| tissue | HU | real | SD, HU | real | half-length, mm | real |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, measured in found.items():
        centre = measured.median if kind == HEALTHY else measured.mean
        real = MEASURED.get(kind, (None, None, None))
        cells = [kind]
        for value, span, digits in zip((centre, measured.sd, measured.half_length), real, (0, 0, 1), strict=True):
            cells += [f"{value:.{digits}f}", "" if span is None else _span(span)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _span(span: tuple[float, float]) -> str:
    low, high = span
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def plot_histograms(scans: Mapping[str, Sequence[Crop]], path: Path) -> None:
    """Plot histograms of HU, one line per tissue, with the real range of its centre as a bar below."""
    figure, axis = plt.subplots(figsize=(8, 4))
    bins = np.arange(-1050, 300, 15)
    for number, (kind, members) in enumerate(scans.items()):
        values = np.concatenate([p.hu[tissue_mask(kind, p)] for p in members])
        density, _ = np.histogram(values, bins, density=True)
        axis.plot(bins[:-1] + 7.5, density, label=kind, color=f"C{number}")
        if kind in MEASURED:
            low, high = MEASURED[kind][0]
            axis.plot([low - 4, high + 4], [-2e-4 * (1 + number)] * 2, color=f"C{number}", linewidth=4)
    axis.set_xlabel("HU; bars below: range of the centre on real slices")
    axis.set_ylabel("density")
    axis.legend(fontsize=8)
    save_figure(figure, path)


def plot_beside(scans: Mapping[str, Sequence[Crop]], real: Sequence[Path], path: Path) -> None:
    """Plot slices of synthetic and real CTs in the window of the crops, above the histograms of their lungs.

    The slice is the one with the most lesion, or the middle of the lungs.
    """
    shown = [(kind, p.hu, p.lung > 0, p.lesion > 0) for kind, (p, *_) in scans.items()]
    for file in real:
        image = read_ct(file)
        hu, lung = (lps_view(a, image) for a in (sitk.GetArrayFromImage(image), segment_by_threshold(image)))
        shown.append((file.name, hu, lung > 0, np.zeros(lung.shape, bool)))
    figure, axes = plt.subplots(2, len(shown), figsize=(2.4 * len(shown), 4.2), squeeze=False)
    for (title, hu, lung, lesion), above, below in zip(shown, *axes, strict=True):
        inside = lung.any((1, 2)).nonzero()[0]
        index = slice_to_show(lesion) if lesion.any() else int(inside[len(inside) // 2])
        above.imshow(hu[index], cmap="gray", vmin=WINDOW[0], vmax=WINDOW[1])
        above.set_title(title, fontsize=7)
        above.axis("off")
        below.hist(hu[lung], bins=np.arange(-1050, 300, 25), density=True)
        below.tick_params(labelsize=6)
        below.set_yticks([])
    save_figure(figure, path, pad=0.4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = new_parser(__doc__, "python -m benchmarks.weak_supervision.realism")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder for the table and the figures")
    parser.add_argument("--number", type=int, default=3, metavar="N", help="scans of each kind (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the scans (default 0)")
    parser.add_argument("--real", nargs="+", type=Path, default=[], metavar="CT", help="real CTs to show")
    add_quiet(parser)
    options = parser.parse_args(arguments)
    if options.number < 1 or options.seed < 0:
        parser.error("--number must be at least 1, --seed at least 0")
    start_logging(options.quiet)
    scans = make_kinds(options.seed, options.number, progress=not options.quiet)
    table = as_markdown({kind: _pool(kind, members) for kind, members in scans.items()})
    write_text(options.output / "realism.md", table)
    plot_histograms(scans, options.output / "histograms.png")
    if options.real:
        plot_beside(scans, options.real, options.output / "beside.png")
    print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
