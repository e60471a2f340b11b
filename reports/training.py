"""The report page of a training run, finished or not: curves, pictures over the iterations, settings."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter
from PIL import Image

from configs.settings import Settings, read_settings
from reports.page import Plot, draw, write_page
from utils.errors import GasnetError, SettingsError
from utils.ledger import read_runs

PAGE = "report.html"

MOST_POINTS = 300
"""Largest number of points of a curve; in longer logs, neighbours are averaged."""

MOST_PICTURES = 24
"""Largest number of pictures; of more, an even selection with the first and the last."""

LARGEST_PICTURE = 960
"""Largest side of a picture in pixels."""

_COLOURS = ("#2f8fd0", "#e0761a", "#14a37b", "#c46ba4", "#a98f00", "#7d8894", "#5f5bd6")
_LINES = ("-", "--", "-.", ":")
_FAR_APART = 30
_VALIDATION = ("valid/", "validh/", "validwl/")


def write_training_report(folder: Path) -> Path:
    """Write the page of a run, from metrics.jsonl, pictures/, settings.yaml and ledger/ in its folder; return its path.

    Missing or damaged parts are left out, so that an interrupted run has a page, too.

    Raises:
        GasnetError: the folder holds no run.
    """
    if not (folder / "metrics.jsonl").is_file() and not (folder / "settings.yaml").is_file():
        raise GasnetError(f"{folder}: holds no training run (no metrics.jsonl); name its EXP.OUTPUT_DIR/EXP.ID")
    entries = read_log(folder / "metrics.jsonl")
    try:
        settings = read_settings(folder / "settings.yaml")
    except SettingsError:  # of another version, or none
        settings = None
    found = sorted(path for path in (folder / "pictures").glob("*.png") if path.stem.isdigit())
    pictures = [picture for path in spread(found, MOST_PICTURES) if (picture := _picture(path)) is not None]
    rows = [] if settings is None else _setting_rows(settings)
    write_page(
        folder / PAGE,
        "training.html",
        ("training.js",),
        title=f"Training {folder.resolve().name if settings is None else settings.exp.id}",
        summary=_summary(entries, settings),
        figures=training_plots(entries),
        pictures=pictures,
        pictures_note="" if len(pictures) == len(found) else f"{len(pictures)} of {len(found)} pictures of the run.",
        settings=rows,
        changed=sum(row["differs"] for row in rows),
        facts=_facts(folder),
    )
    return folder / PAGE


def read_log(path: Path) -> list[dict[str, float]]:
    """Read the entries of a metrics.jsonl in order; incomplete lines, as a killed run leaves, are skipped."""
    entries = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
            int(entry["iteration"])
        except (ValueError, KeyError, TypeError):
            continue
        entries.append({name: value for name, value in entry.items() if isinstance(value, int | float)})
    return entries


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """Select at most `most` items, evenly spread, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[k] for k in np.linspace(0, len(items) - 1, most).round().astype(int)]


def training_plots(entries: Sequence[Mapping[str, float]]) -> list[Plot]:
    """Plot the curves in a log: validation, losses by objective, learning rates and speed."""
    curves = _curves(entries)
    objectives = list(dict.fromkeys(name.split("/")[0] for name in curves if name.endswith("/total")))
    plots = []
    if "valid/dice" in curves:
        plots.append(_validation_dice(curves["valid/dice"]))
    found = {n: c for n, c in curves.items() if n.startswith(_VALIDATION) and n.endswith("_ml")}
    if found:
        plots.append(_plot("found", "Lesion found in unlabelled scans", found, "ml"))
    for objective in objectives:
        terms = {n: c for n, c in curves.items() if n.startswith(f"{objective}/")}
        plots.append(_plot(objective, f"Losses of the {objective} objective", terms, "loss", prefix=f"{objective}/"))
    rates = {n: c for n, c in curves.items() if n.startswith("lr/")}
    if rates:
        plots.append(_plot("rates", "Learning rates", rates, "learning rate", prefix="lr/"))
    if "seconds_per_iteration" in curves:
        speed = {"seconds_per_iteration": curves["seconds_per_iteration"]}
        plots.append(_plot("seconds", "Seconds per iteration", speed, "seconds"))
    return plots


Curve = tuple[np.ndarray, np.ndarray]
"""Iterations and values."""


def _curves(entries: Sequence[Mapping[str, float]]) -> dict[str, Curve]:
    """Finite values over the iterations, by name."""
    points: dict[str, list[tuple[float, float]]] = {}
    for entry in entries:
        for name, value in entry.items():
            if name != "iteration" and np.isfinite(value):
                points.setdefault(name, []).append((entry["iteration"], value))
    return {name: tuple(np.array(values, float).T) for name, values in points.items()}


def averaged(curve: Curve, most: int = MOST_POINTS) -> tuple[Curve, int]:
    """Average neighbouring points, so that at most `most` remain; returns the curve and the points per mean."""
    iterations, values = curve
    every = -(-len(values) // most)
    starts = np.arange(0, len(values), every)
    counts = np.diff([*starts, len(values)])
    return (np.add.reduceat(iterations, starts) / counts, np.add.reduceat(values, starts) / counts), every


def _plot(name: str, title: str, curves: Mapping[str, Curve], label: str, prefix: str = "") -> Plot:
    short = {key: key.removeprefix(prefix) for key in curves}
    shown = {key: averaged(curve) for key, curve in curves.items()}
    last = ", ".join(f"{short[key]} {values[-1]:.3g}" for key, (_, values) in curves.items())
    iteration = max(int(iterations[-1]) for iterations, _ in curves.values())
    caption = f"Last, at iteration {iteration}: {last}."
    if (every := max(every for _, every in shown.values())) > 1:
        caption += f" Each point is the mean of {every} entries of the log."
    everything = np.concatenate([values for (_, values), _ in shown.values()])

    def paint(axes: Axes) -> None:
        for number, (key, ((iterations, values), _)) in enumerate(shown.items()):
            style = {"color": _COLOURS[number % len(_COLOURS)], "linestyle": _LINES[number // 2 % len(_LINES)]}
            marker = "." if len(values) < 25 else None
            axes.plot(iterations, values, linewidth=1.3, marker=marker, markersize=4, label=short[key], **style)
        if everything.min() > 0 and everything.max() > _FAR_APART * everything.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("iteration")
        axes.set_ylabel(label)
        if len(curves) > 1:
            axes.figure.legend(loc="lower center", ncols=3, frameon=False, handlelength=2, columnspacing=1, borderpad=0)

    rows = -(-len(curves) // 3) if len(curves) > 1 else 0
    return draw(name, title, caption, paint, below=0.18 * rows)


def _validation_dice(curve: Curve) -> Plot:
    iterations, values = curve
    best = int(values.argmax())
    at, highest = int(iterations[best]), float(values[best])
    caption = f"Best {highest:.3f} at iteration {at}; last {values[-1]:.3f} at iteration {int(iterations[-1])}."

    def paint(axes: Axes) -> None:
        axes.plot(*averaged(curve)[0], color=_COLOURS[0], linewidth=1.3)
        axes.axvline(at, color=_COLOURS[1], linewidth=1, linestyle="--")
        axes.plot([at], [highest], "o", color=_COLOURS[1], markersize=6)
        axes.set_ylim(0, max(1.15 * highest, 0.05))
        axes.set_xlabel("iteration")
        axes.set_ylabel("Dice")

    return draw("valid-dice", "Validation Dice", caption, paint)


def _picture(path: Path) -> dict[str, Any] | None:
    try:
        with Image.open(path) as image:
            image = image.convert("RGB")
    except OSError:  # damaged
        return None
    image.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=70, method=2)
    return {"iteration": int(path.stem), "image": base64.b64encode(file.getvalue()).decode()}


def _summary(entries: Sequence[Mapping[str, float]], settings: Settings | None) -> str:
    if not entries:
        return "nothing logged yet"
    last = f"iteration {int(max(entry['iteration'] for entry in entries))}"
    if settings is not None:
        last += f" of {settings.solver.last_iteration}"
    scores = [(entry["valid/dice"], -int(entry["iteration"])) for entry in entries if "valid/dice" in entry]
    if not scores:
        return last
    dice, at = max(scores)
    return f"{last}; best validation Dice {dice:.3f} at iteration {-at}"


def _setting_rows(settings: Settings) -> list[dict[str, Any]]:
    """All settings by the words of their names, with the published value and whether it differs."""
    found, published = (_flat(one.model_dump(by_alias=True, mode="json")) for one in (settings, Settings()))
    return [
        {
            "words": name.split("."),
            "value": _shown(value),
            "published": _shown(published.get(name)),
            "differs": value != published.get(name),
        }
        for name, value in found.items()
    ]


def _facts(folder: Path) -> dict[str, str]:
    """Facts of the last run in the ledger; without one, the folder alone."""
    facts = {"folder": str(folder)}
    runs = read_runs(folder)
    if runs:
        last = {name: value for name, value in runs[-1].items() if name != "settings" and value is not None}
        if last.get("outcome") == "running":  # it writes this page, or was killed
            del last["outcome"]
        facts |= {name: _shown(value) for name, value in _flat(last).items()}
        facts["runs in this folder"] = str(len(runs))
    return facts


def _flat(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Leaves of a tree by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{key}.")
        else:
            flat[f"{before}{key}"] = value
    return flat


def _shown(value: Any) -> str:
    """Format a value as in a config or a command."""
    if isinstance(value, list | tuple):
        return " ".join(map(_shown, value)) if all(isinstance(one, str) for one in value) else json.dumps(value)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
