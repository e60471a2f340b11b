"""Report page of a cohort: a table of cases, slices with outlined lesions, and plots.

views = [encode_case(case) for case in cases]
write_case_report(Path("report.html"), "Test", columns, views, {"model": "segmenter_best.pth"})
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from reports.page import INK, MINUS, Plot, draw, write_page
from reports.views import View

PREDICTED, OTHER = "#e0761a", "#14a37b"
"""Orange and green, distinguishable with colour blindness (after Okabe and Ito) on light and dark pages."""

LIMITS = 1.96
"""Standard deviations from the mean difference to the limits of agreement."""


@dataclass(frozen=True)
class Column:
    """A column of the table: key in the values of a `View`, heading, unit, decimal places, and an explanation."""

    key: str
    title: str
    unit: str = ""
    digits: int = 1
    help: str = ""


def write_case_report(
    path: Path, title: str, columns: Sequence[Column], views: Sequence[View], facts: Mapping[str, str]
) -> None:
    """Write the page of a cohort atomically, with facts (model, device, versions) in its footer.

    The first column is always the id; columns that are empty for all cases are left out.
    """
    given = {column.key: column for column in columns}
    used = [given.get("id", Column("id", "Case"))]
    used += [c for c in columns if c.key != "id" and any(view["values"].get(c.key) is not None for view in views)]
    numeric = {c.key: not any(isinstance(view["values"].get(c.key), str) for view in views) for c in used[1:]}
    headings = [{**asdict(column), "numeric": numeric.get(column.key, False)} for column in used]
    rows = [
        [_cell(column, view["id"] if column.key == "id" else view["values"].get(column.key)) for column in used]
        for view in views
    ]
    write_page(
        path,
        title=title,
        summary="1 case" if len(views) == 1 else f"{len(views)} cases",
        columns=headings,
        helps=[column for column in headings if column["help"]],
        rows=rows,
        figures=cohort_plots([view["values"] for view in views]),
        cases=[{key: part for key, part in view.items() if key != "values"} for view in views],
        facts=facts,
    )


def _cell(column: Column, value: str | float | None) -> dict[str, object]:
    """Text and sort value of a cell."""
    if value is None:
        return {"text": "\N{EN DASH}", "value": "", "numeric": True}
    if isinstance(value, str):
        return {"text": value, "value": value, "numeric": False}
    digits = 0 if isinstance(value, int) else column.digits
    return {"text": f"{value:.{digits}f}".replace("-", MINUS), "value": repr(value), "numeric": True}


def agreement(differences: np.ndarray) -> tuple[float, float | None, float | None]:
    """Bias and limits of agreement of paired measurements (Bland & Altman, Lancet 1986).

    Returns:
        The mean, and the mean minus and plus 1.96 sample standard deviations; None for the limits of a single pair.
    """
    bias = float(differences.mean())
    if len(differences) < 2:
        return bias, None, None
    spread = LIMITS * float(differences.std(ddof=1))
    return bias, bias - spread, bias + spread


def cohort_plots(rows: Sequence[Mapping[str, str | float | None]]) -> list[Plot]:
    """Draw the plots for which the rows of the table have values: Dice, volumes, shares of the lungs."""
    plots = []
    for key, title, unit, digits, of in (
        ("dice", "Dice", "Dice", 3, " with lesion"),
        ("lesion_ml", "Lesion volume", "ml", 1, ""),
        ("lesion_percent_of_lung", "Lesion in percent of the lung", "%", 1, ""),
    ):
        if len(values := _numbers(rows, key)):
            caption = f"{_cases(values)}{of}: {_spread(values, digits, '' if key == 'dice' else f' {unit}')}."
            plots.append(draw(key, title, caption, lambda axes, v=values, u=unit: _boxes(axes, {"": v}, u), left=0.2))
    volumes = {name: values for name in ("predicted", "true") if len(values := _numbers(rows, f"{name}_ml"))}
    if volumes:
        caption = " ".join(f"{name.capitalize()}, {_cases(v)}: {_spread(v, 1, ' ml')}." for name, v in volumes.items())
        plots.append(draw("volumes", "Lesion volume", caption, lambda axes: _boxes(axes, volumes, "ml"), left=0.75))
    # A scan without lesion cannot be underestimated, and many of them would hide how far the others are off.
    pairs = [(row["predicted_ml"], row["true_ml"]) for row in rows if row.get("true_ml")]
    if pairs:
        plots.append(_bland_altman(*np.array(pairs).T))
    return plots


def _bland_altman(predicted: np.ndarray, true: np.ndarray) -> Plot:
    differences = predicted - true
    lines = dict(zip(("mean", "lower", "upper"), agreement(differences), strict=True))
    caption = (
        f"{_cases(predicted)} with lesion: the predicted volume differs from the true one by "
        f"{_signed(lines['mean'])} ml on average"
    )
    if lines["lower"] is not None:
        caption += (
            f"; limits of agreement (mean ± {LIMITS} standard deviations) {_signed(lines['lower'])} to "
            f"{_signed(lines['upper'])} ml (Bland and Altman 1986)"
        )

    def paint(axes: Axes) -> None:
        axes.axhline(0, color=INK, linewidth=0.6, alpha=0.5)
        axes.scatter((predicted + true) / 2, differences, s=18, color=OTHER, alpha=0.8, linewidths=0)
        for what, value in lines.items():
            if value is not None:
                axes.axhline(value, color=PREDICTED, linewidth=1.2, linestyle="-" if what == "mean" else "--")
                text = f"{what} {_signed(value)}"
                axes.annotate(text, (1, value), (-2, 2), ("axes fraction", "data"), "offset points", ha="right")
        axes.set_xlabel("mean of predicted and true volume, ml")
        axes.set_ylabel(f"predicted {MINUS} true, ml")
        axes.margins(y=0.18)

    return draw("bland-altman", "Agreement of volumes (Bland-Altman)", caption + ".", paint, left=0.95)


def _boxes(axes: Axes, groups: Mapping[str, np.ndarray], unit: str) -> None:
    """Medians, quartiles and ranges; the scale is logarithmic above 1 if values are far apart."""
    styles = {key: {"color": INK} for key in ("boxprops", "whiskerprops", "capprops", "medianprops")}
    axes.boxplot(list(groups.values()), orientation="horizontal", tick_labels=list(groups), whis=(0, 100), **styles)
    largest = max(float(values.max()) for values in groups.values())
    smallest = min(float(np.median(values)) for values in groups.values())
    if largest > 30 * max(smallest, 1.0):
        axes.set_xscale("symlog", linthresh=1.0)
        axes.xaxis.set_major_formatter("{x:g}")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"{unit}; median, quartiles and range")


def _numbers(rows: Sequence[Mapping[str, str | float | None]], key: str) -> np.ndarray:
    """The finite numbers of a column."""
    values = (row.get(key) for row in rows)
    return np.array([value for value in values if isinstance(value, int | float) and np.isfinite(value)], float)


def _cases(values: Sequence[float]) -> str:
    return "1 scan" if len(values) == 1 else f"{len(values)} scans"


def _spread(values: np.ndarray, digits: int, unit: str = "") -> str:
    low, middle, high = np.percentile(values, (25, 50, 75))
    mean = f"{values.mean():.{digits}f} ± {values.std():.{digits}f}{unit}"
    return f"mean {mean}, median {middle:.{digits}f} (quartiles {low:.{digits}f} and {high:.{digits}f}){unit}"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", MINUS)
