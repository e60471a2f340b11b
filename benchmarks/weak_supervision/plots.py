"""Figures of the benchmark: OUTPUT/curves.png and OUTPUT/cases.png.

curves.png shows validation scores over the iterations, per run and per row, and which kinds of volumes D of GASNet can
tell from healthy ones. cases.png shows test scans with the
predictions of the rows in `COMPARED` (seed 0), and I_g and I_s of GASNet's last state. The scans are the 10th, 50th and
90th percentile of lesion volume and one healthy scan, so they are not selected by score.

Examples:
  python -m benchmarks.weak_supervision.plots output/weak
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.weak_supervision.rows import ROWS, row_settings
from benchmarks.weak_supervision.run import load_trained
from benchmarks.weak_supervision.table import read_results
from configs.settings import Settings
from datasets.cohort import Case, read_cohort
from datasets.samples import normalise, scan_input
from evaluation.figures import save_figure, slice_to_show
from evaluation.inference import predict_cohort
from models.checkpoint import BEST, load_generator
from models.generator import generate_scan
from models.objectives import synthesise
from training.states import find_states
from utils.cli import new_parser, run
from utils.errors import GasnetError

COMPARED = (("s-1",), ("gasnet-1",), ("s-40", "s-10"))
"""Rows in cases.png: the first row of each group that has a result."""

DRAWN = ("s-1", "gasnet-1", "s-40", "teacher-1", "no-adversarial")
"""Rows in curves.png."""

_KINDS = {
    "original": "I",
    "generated": "I_g",
    "synthetic": "I_s",
    "true_lesion": "I_s with the true mask",
    "whole_lung": "I_s with the lung mask",
    "reconstructed": "G(I_h)",
}

PLACES = (0.1, 0.5, 0.9)
"""Quantiles of lesion volume at which test scans are shown."""


def plot_curves(results: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Plot validation Dice, false positives and D's AUCs: one pale line per run, means over seeds in bold.

    Args:
        results: results of the runs by row; only the rows in `DRAWN` are drawn.
        path: PNG to write.
    """
    figure, axes = plt.subplots(1, 3, figsize=(17, 4))
    for axis, key in zip(axes, ("dice", "false_positive_ml"), strict=False):
        for colour, name in enumerate(name for name in DRAWN if name in results):
            curves = [{at["iteration"]: at[key] for at in result["curve"] if key in at} for result in results[name]]
            _plot_mean(axis, curves, f"C{colour}", ROWS[name].title)
    judged = [result["judged"] for result in results.get("gasnet-1", ()) if "judged" in result]
    kinds = [key for key in judged[0][0] if key != "iteration"] if judged else []
    for colour, kind in enumerate(kinds):
        _plot_mean(axes[2], [{at["iteration"]: at[kind] for at in run} for run in judged], f"C{colour}", _KINDS[kind])
    axes[0].set_ylabel("Dice, validation scans with lesion")
    axes[1].set_ylabel("found in healthy validation scans, ml")
    axes[1].set_yscale("symlog", linthresh=1)
    axes[2].set_ylabel("AUC of D of GASNet against healthy volumes")
    axes[2].set_ylim(-0.02, 1.02)
    for axis in axes:
        axis.set_xlabel("iteration")
        axis.grid(alpha=0.3)
    for axis in axes[1:]:
        if axis.lines:
            axis.legend(fontsize=7)
    save_figure(figure, path)


def _plot_mean(axis: plt.Axes, curves: Sequence[Mapping[int, float]], colour: str, label: str) -> None:
    for curve in curves:
        axis.plot(*zip(*curve.items(), strict=True), color=colour, linewidth=0.8, alpha=0.3)
    # Runs may stop early: average only the iterations that all runs reached.
    shared = sorted(set.intersection(*map(set, curves)))
    means = [np.mean([curve[iteration] for curve in curves]) for iteration in shared]
    axis.plot(shared, means, color=colour, linewidth=2, label=label)


def scans_to_show(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Ids of the scans at `PLACES` by true lesion volume, and of the first healthy scan.

    Args:
        rows: scores of one result, one mapping per test scan.
    """
    lesion = sorted((row for row in rows if row["kind"] == "lesion"), key=lambda row: row["true_ml"])
    shown = [lesion[round(place * (len(lesion) - 1))]["id"] for place in PLACES]
    return shown + [row["id"] for row in rows if row["kind"] == "no lesion"][:1]


@torch.no_grad()
def _columns(
    case: Case, split: str, runs: Mapping[str, Settings], results: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, np.ndarray], int, float]:
    """Volumes of one scan by title, index of the slice to show, and pixel aspect ratio (height / width)."""
    columns: dict[str, np.ndarray] = {}
    for name, settings in runs.items():
        result = results[name]
        segmenter, normalization = load_trained(settings, BEST)
        (prediction,) = predict_cohort(segmenter, [case], split, normalization, threshold=result["test"]["threshold"])
        volumes = prediction.volumes
        columns.setdefault("input", normalise(volumes.image, "window"))
        columns.setdefault("true", volumes.lesion.astype(float))
        if not settings.solver.segmenter_only:
            columns["M"] = prediction.probability
        columns[ROWS[name].title] = prediction.mask.astype(float)
        if not settings.solver.segmenter_only:
            generator = load_generator(find_states(settings.exp.folder)[0])
            scan = scan_input(volumes, normalization)
            generated = generate_scan(generator, scan, settings.image.slices)
            lesion = torch.from_numpy(prediction.probability)[None, None]
            # Probabilities outside the lungs are already 0.
            synthetic = synthesise(scan, lesion, torch.ones_like(lesion), generated)
            last = {"I_g": generated, "I_s": synthetic}
    columns |= {title: ((volume[0, 0] + 1) / 2).numpy() for title, volume in last.items()}
    x, y, _ = volumes.geometry.GetSpacing()
    return columns, slice_to_show(volumes.lesion, volumes.lung), y / x


def _first(results: Mapping[str, Sequence[Mapping[str, Any]]], name: str) -> Mapping[str, Any] | None:
    """Result of a row with seed 0, or None."""
    return next((result for result in results.get(name, ()) if result["seed"] == 0), None)


def rows_to_compare(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[str, ...]:
    """Rows shown in cases.png: from each group of `COMPARED` the first row with a result of seed 0."""
    return tuple(next((name for name in names if _first(results, name)), names[0]) for names in COMPARED)


def plot_cases(results: Mapping[str, Sequence[Mapping[str, Any]]], output: Path, path: Path) -> None:
    """Plot slices of test scans next to the predictions of the rows in `COMPARED`, seed 0.

    Raises:
        GasnetError: a row has no result.
    """
    compared = rows_to_compare(results)
    if lacking := [name for name in compared if _first(results, name) is None]:
        raise GasnetError(f"{output}: no result for {', '.join(lacking)} with seed 0; run these rows first")
    result = _first(results, compared[0])
    runs = {name: row_settings(name, result["size"], 0, output / "cohort", output) for name in compared}
    settings = runs[compared[0]]
    split = settings.dataset.split
    cohort = read_cohort(settings.dataset.root, {"TEST": split.test, "TESTH": split.testh}, settings.image.size)
    cases = {case.id: (case, key) for key, found in cohort.items() for case in found}
    shown = [
        _columns(*cases[case_id], runs, {name: _first(results, name) for name in runs})
        for case_id in scans_to_show(result["test"]["rows"])
    ]
    titles = list(shown[0][0])
    figure, axes = plt.subplots(len(shown), len(titles), figsize=(1.6 * len(titles), 1.7 * len(shown)), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8)
    for line, (columns, index, aspect) in zip(axes, shown, strict=True):
        for axis, volume in zip(line, columns.values(), strict=True):
            axis.imshow(volume[index], cmap="gray", vmin=0, vmax=1, aspect=aspect, interpolation="nearest")
            axis.axis("off")
    save_figure(figure, path, pad=0.3)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = new_parser(__doc__, "python -m benchmarks.weak_supervision.plots")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="results folder of the benchmark")
    options = parser.parse_args(arguments)
    results = read_results(options.output)
    plot_curves(results, options.output / "curves.png")
    plot_cases(results, options.output, options.output / "cases.png")
    print(f"{options.output / 'curves.png'}, {options.output / 'cases.png'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
