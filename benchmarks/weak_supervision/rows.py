"""The rows of the benchmark's table as data: which labels, which settings.

All rows of one size share networks, cohort and learning rates, so they differ only in what the table names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from configs.settings import CONSTRAINTS, Settings, read_settings

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@dataclass(frozen=True)
class Row:
    """One row of the table: a way of training S.

    Attributes:
        title: shown in the table.
        labels: name of the list of labelled scans.
        config: file in configs/; supervised.yaml trains S alone on labelled and healthy volumes.
        constraints: enabled constraint losses.
        overrides: settings applied after those of the size.
        group: section of the table.
    """

    title: str
    labels: str = "labels_1"
    config: str = "weak.yaml"
    constraints: tuple[str, ...] = CONSTRAINTS
    overrides: tuple[str, ...] = ()
    group: str = "main"


@dataclass(frozen=True)
class Scale:
    """Settings of one benchmark size.

    Attributes:
        overrides: for every row.
        gasnet: for GASNet rows based on weak.yaml.
        supervised: for rows that train S alone; S takes at least as many steps on labelled volumes as in GASNet.
        published: for the row with the published settings; its late terms start at the same fraction of the schedule.
    """

    overrides: tuple[str, ...]
    gasnet: tuple[str, ...]
    supervised: tuple[str, ...]
    published: tuple[str, ...]


PUBLISHED, SUPERVISED = "Gan.yaml", "supervised.yaml"

MANY_LABELS = ("LOSS.LABELLED=1",)
"""For S alone: validation prefers this weight with 40 labels (Dice 0.64 against 0.60 with 5), and 5 with one label."""


def _without(*left_out: str) -> tuple[str, ...]:
    return tuple(name for name in CONSTRAINTS if name not in left_out)


def _ablation(title: str, constraints: tuple[str, ...], *overrides: str) -> Row:
    """A GASNet row with one label that differs from weak.yaml in its constraints and the given overrides."""
    return Row(title, constraints=constraints, overrides=overrides, group="ablations")


ROWS: Mapping[str, Row] = {
    "s-1": Row("S, 1 label", config=SUPERVISED),
    "gasnet-1": Row("GASNet, 1 label"),
    "s-40": Row("S, 40 labels", "labels_40", config=SUPERVISED, overrides=MANY_LABELS),
    "s-10": Row("S, 10 labels", "labels_10", config=SUPERVISED, overrides=MANY_LABELS),
    "published-1": Row("GASNet, 1 label, published weights and gates", config=PUBLISHED),
    "s-3": Row("S, 3 labels", "labels_3", config=SUPERVISED),
    "gasnet-3": Row("GASNet, 3 labels", "labels_3"),
    "gasnet-10": Row("GASNet, 10 labels", "labels_10", overrides=MANY_LABELS),
    **{f"label-{x}": Row(f"GASNet, another label ({x})", f"label_{x}", group="labels") for x in "bcd"},
    **{f"s-label-{x}": Row(f"S, another label ({x})", f"label_{x}", config=SUPERVISED, group="labels") for x in "bcd"},
    **{f"no-{name}": _ablation(f"without {name}", _without(name)) for name in CONSTRAINTS},
    "no-adversarial": _ablation("without D", ("MIL", "perception", "recons"), "LOSS.ADVERSARIAL=0"),
    "perception-only": _ablation("perception only", ("perception",), "LOSS.ADVERSARIAL=0"),
}
"""Rows by name, most informative first."""

_FULL_LEARNING_RATES = (
    "SOLVER.OPTIMIZER.U.LR=1e-3",
    "SOLVER.OPTIMIZER.G.LR=5e-4",
    "SOLVER.OPTIMIZER.D.LR=1e-4",
)

SCALES: Mapping[str, Scale] = {
    "small": Scale(
        overrides=(
            "IMAGE.SIZE=[16, 64, 64]",
            "IMAGE.SLICES=16",
            "MODEL.WIDTH={UNET: 8, G: 8, D: 8}",
            "DATALOADER.NUM_WORKERS=0",
            "DATALOADER.CACHE_MB=200",
            "INTERVAL={LOG: 20, VALID: 50, SAVE: 200, PICTURE: 300, GRADIENTS: 20}",
        ),
        gasnet=(),
        supervised=(),
        published=(
            "SOLVER.ITER_MAX=600",
            "SOLVER.BATCH_SIZE=2",
            "SOLVER.OPTIMIZER.U.LR=2e-3",
            "SOLVER.OPTIMIZER.G.LR=1e-3",
            "SOLVER.OPTIMIZER.D.LR=2e-4",
            "LOSS.MIL_START=20",
            "LOSS.PERCEPTION_START=20",
        ),
    ),
    "full": Scale(
        overrides=(
            "MODEL.WIDTH={UNET: 20, G: 16, D: 16}",
            "SPEED.CHANNELS_LAST=true",
            "DATALOADER.NUM_WORKERS=3",
            "INTERVAL={LOG: 20, VALID: 100, SAVE: 400, PICTURE: 400, GRADIENTS: 20}",
        ),
        gasnet=(
            "SOLVER.ITER_MAX=1100",
            "LOSS.MIL_START=200",
            "LOSS.PERCEPTION_START=200",
            "LOSS.PERCEPTION_RAMP=200",
            *_FULL_LEARNING_RATES,
        ),
        supervised=("SOLVER.ITER_MAX=650", "SOLVER.OPTIMIZER.U.LR=1e-3"),
        published=(
            "SOLVER.ITER_MAX=1100",
            "SOLVER.BATCH_SIZE=2",
            "LOSS.MIL_START=37",
            "LOSS.PERCEPTION_START=37",
            *_FULL_LEARNING_RATES,
        ),
    ),
}

_SPLITS = (
    "DATASET.SPLIT={{LABELED: {}, WO_LABEL: diseased, HEALTHY: healthy, VALID: valid, VALIDH: validh, "
    "TEST: test, TESTH: testh}}"
)


def row_settings(name: str, size: str, seed: int, cohort: Path, output: Path) -> Settings:
    """Settings of one run.

    Args:
        name: key of `ROWS`.
        size: key of `SCALES`.
        seed: seed of weights, scan order and augmentation; the cohort does not depend on it.
        cohort: cohort folder.
        output: results folder of the benchmark; the run writes to a subfolder.
    """
    row, scale = ROWS[name], SCALES[size]
    words = ("supervised",) if row.config == SUPERVISED else ("weak", *row.constraints)
    own = (
        f"EXP.ID={'_'.join(words)}",
        f"EXP.OUTPUT_DIR={output / 'runs' / f'{name}_seed_{seed}'}",
        f"EXP.SEED={seed}",
        f"DATASET.ROOT={cohort}",
        _SPLITS.format(row.labels),
    )
    overrides = [*scale.overrides, *own]
    overrides += {SUPERVISED: scale.supervised, PUBLISHED: scale.published}.get(row.config, scale.gasnet)
    return read_settings(CONFIGS / row.config, [*overrides, *row.overrides])
