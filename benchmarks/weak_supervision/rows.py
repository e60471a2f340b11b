"""The rows of the benchmark's table as data: which labels, which settings.

All rows of one size share networks, cohort and learning rates, so they differ only in what the table names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from configs.settings import Settings, read_settings

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@dataclass(frozen=True)
class Row:
    """One row of the table: a way of training S."""

    title: str  # shown in the table
    labels: str = "labels_1"  # name of the list of labelled scans
    config: str = "weak.yaml"  # in configs/; supervised.yaml trains S alone on labelled and healthy volumes
    overrides: tuple[str, ...] = ()  # settings applied after those of the size

    @property
    def group(self) -> str:
        """Section of the table: what learns besides S."""
        return "gasnet" if self.config in (WEAK, PUBLISHED) else "alone"


@dataclass(frozen=True)
class Scale:
    """Settings of one benchmark size."""

    overrides: tuple[str, ...]  # for every row
    by_config: Mapping[str, tuple[str, ...]]  # additional ones for the rows of a config


WEAK, PUBLISHED, SUPERVISED = "weak.yaml", "published.yaml", "supervised.yaml"

PUBLISHED_RECIPE = (
    "IMAGE.SHIFT=[0, 0, 0]",
    "LOSS.SEGMENTATION_LOSS=focal",
    "LOSS.LABELLED=5",
    "SOLVER.LR_COSINE=false",
)
"""Loss, augmentation and learning rate of S as published."""

ROWS: Mapping[str, Row] = {
    "s-1": Row("S, 1 label, healthy scans", config=SUPERVISED),
    "gasnet-1": Row("GASNet, 1 label"),
    "s-40": Row("S, 40 labels, healthy scans", "labels_40", SUPERVISED),
    "no-adversarial": Row(
        "GASNet, 1 label, without D",
        overrides=("EXP.ID=weak_perception", "LOSS.ADVERSARIAL=0", "SOLVER.DISCRIMINATOR_STEPS=1"),
    ),
    "published-1": Row("GASNet, 1 label, published settings", config=PUBLISHED),
    "s-10": Row("S, 10 labels, healthy scans", "labels_10", SUPERVISED),
    "labels-only-1": Row("S, 1 label alone", config="labels_only.yaml"),
    "published-loss-1": Row("S, 1 label, healthy scans, published loss", config=SUPERVISED, overrides=PUBLISHED_RECIPE),
    "published-1-one-head": Row(
        "GASNet, 1 label, published settings, D with one head", "labels_1", PUBLISHED, ("MODEL.DISCRIMINATOR_HEADS=1",)
    ),
    "s-3": Row("S, 3 labels, healthy scans", "labels_3", SUPERVISED),
}
"""Rows by name, most informative first."""


def _schedule(alone: int, gasnet: int, rate: float) -> dict[str, tuple[str, ...]]:
    """Overrides by config: iterations of S alone and of GASNet, and learning rates, relative to that of S.

    The published late terms start half-way, as in the 20,000 iterations that the authors ran.
    """
    segmenter = f"SOLVER.OPTIMIZER.U.LR={rate}"
    others = (f"SOLVER.OPTIMIZER.G.LR={rate / 2}", f"SOLVER.OPTIMIZER.D.LR={rate / 10}")
    published = (
        f"SOLVER.OPTIMIZER.U={{NAME: Adam, LR: {rate}, WEIGHT_DECAY: 1e-3}}",
        f"SOLVER.OPTIMIZER.G={{NAME: Adam, LR: {rate / 2}, WEIGHT_DECAY: 0}}",
        f"SOLVER.OPTIMIZER.D={{NAME: RMSprop, LR: {rate / 10}, WEIGHT_DECAY: 1e-3}}",
        *(f"LOSS.MIL_START={gasnet // 2}", f"LOSS.PERCEPTION_START={gasnet // 2}"),
        *("SOLVER.BATCH_SIZE=2", "SOLVER.STOP_AFTER=0"),
    )
    return {
        **dict.fromkeys((SUPERVISED, "labels_only.yaml"), (f"SOLVER.ITER_MAX={alone}", segmenter)),
        WEAK: (f"SOLVER.ITER_MAX={gasnet}", segmenter, *others),
        PUBLISHED: (f"SOLVER.ITER_MAX={gasnet}", *published),
    }


def _small(alone: int, gasnet: int, valid: int) -> Scale:
    """Scale of 20x96x96 voxels: iterations of S alone and of GASNet, and between validations."""
    return Scale(
        overrides=(
            *("IMAGE.SIZE=[20, 96, 96]", "IMAGE.SLICES=16", "MODEL.WIDTH={UNET: 8, G: 8, D: 8}"),
            *("DATALOADER.NUM_WORKERS=0", "DATALOADER.CACHE_MB=200"),
            f"INTERVAL={{LOG: 20, VALID: {valid}, SAVE: {2 * valid}, PICTURE: {4 * valid}}}",
        ),
        by_config=_schedule(alone, gasnet, 2e-3),
    )


SCALES: Mapping[str, Scale] = {
    "small": _small(240, 320, valid=40),
    "long": _small(720, 960, valid=120),
    "full": Scale(
        overrides=(
            "MODEL.WIDTH={UNET: 20, G: 16, D: 16}",
            "DATALOADER.NUM_WORKERS=3",
            "INTERVAL={LOG: 20, VALID: 100, SAVE: 400, PICTURE: 400}",
        ),
        by_config=_schedule(1200, 1600, 1e-3),
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
    own = (
        f"EXP.OUTPUT_DIR={output / 'runs' / f'{name}_seed_{seed}'}",
        f"EXP.SEED={seed}",
        f"DATASET.ROOT={cohort}",
        _SPLITS.format(row.labels),
    )
    overrides = (*scale.overrides, *scale.by_config.get(row.config, ()), *own, *row.overrides)
    return read_settings(CONFIGS / row.config, overrides)
