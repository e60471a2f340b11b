r"""Trains and tests GASNet and its rivals on the paper's public data sets, with one labelled scan.

COHORT is made by python -m datasets.public from CovidSeg (A), MedSeg (B) and MosMed (C, D), see docs/public_data.md.
The rows differ in what learns besides S, and in nothing else:

  s-1-alone        S on the labelled scan
  s-1              S on the labelled scan and on healthy volumes of D
  gasnet-1         the config as it is
  no-adversarial   the same without D

Tests the segmenter of the last iteration on A_sub1, A_sub2, B and C at a threshold of 0.5, as published, and prints the
published Dice next to it. B is compared with labels 1, 2 and 3 as lesion: crop it with --lesion-labels 1 2 3. Finished
runs are skipped and interrupted ones resume, so the same command can be repeated. Any setting can be overridden with
KEY.SUB=VALUE, for all rows.

Other patients, cropped by lungCrop.py, with lists of their own: --tested names the lists of test scans; of one without
lesion masks, the table holds the mean volume found, in ml. INIT_MODEL.UNET starts all rows from the same segmenter.

Examples:
  python -m benchmarks.weak_supervision.public data_public --output output/public --device cuda
  python -m benchmarks.weak_supervision.public data_public --output output/public --rows s-1 gasnet-1 --seeds 0
  python -m benchmarks.weak_supervision.public data_public --output output/short SOLVER.STOP_AFTER=2000
  python -m benchmarks.weak_supervision.public cohort --output output/patients --config-path configs/weak.yaml \
      --tested test normal INIT_MODEL.UNET=pretrained/segmenter.pth MODEL.WIDTH.UNET=16
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.records import as_table
from benchmarks.weak_supervision.run import parse_runs, result_path, run_once
from configs.settings import Settings, read_settings
from datasets.cohort import LIST_FOLDER, find_volume, lesion_folder, notes_of, read_cohort, read_id_list
from evaluation.inference import predict_case
from models.checkpoint import LAST, load_segmenter
from models.layers import place
from utils.cli import new_parser, run
from utils.distributed import choose_device
from utils.files import write_text

log = logging.getLogger(__name__)

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "mosmed.yaml"

ROWS: Mapping[str, tuple[str, ...]] = {
    "s-1-alone": ("EXP.ID=supervised", "SOLVER.SEGMENTER_ONLY=true", "LOSS.HEALTHY=0"),
    "s-1": ("EXP.ID=supervised", "SOLVER.SEGMENTER_ONLY=true"),
    "gasnet-1": (),
    "no-adversarial": ("EXP.ID=perception", "LOSS.ADVERSARIAL=0"),
}
"""Settings of each row that differ from those of the config."""

TESTED = ("A_sub1", "A_sub2", "B", "C")
"""Lists of test scans of the public sets."""

PUBLISHED: Mapping[str, float] = {"A_sub1": 76.7, "A_sub2": 63.2, "B": 60.2, "C": 54.2}
"""Dice in percent from the readme of the published code."""

_ITERATIONS = "SOLVER.STOP_AFTER=20000"
"""The published checkpoints are from before iteration 20,000."""


def row_settings(name: str, seed: int, cohort: Path, output: Path, config: Path, overrides: Sequence[str]) -> Settings:
    """Settings of one run; arguments as on the command line."""
    own = (
        f"EXP.OUTPUT_DIR={output / 'runs' / f'{name}_seed_{seed}'}",
        f"EXP.SEED={seed}",
        f"DATASET.ROOT={cohort}",
        "DATASET.SPLIT.TEST=null",
    )
    return read_settings(config, [_ITERATIONS, *ROWS[name], *overrides, *own])


def test_segmenter(settings: Settings, device: torch.device, lists: Sequence[str]) -> dict[str, Any]:
    """Score the last segmenter on lists of test scans; missing lists are left out.

    Returns:
        ``dice``, by list and scan; ``found_ml``, the same for lists without lesion masks; ``protocols``, the notes of
        the cohort.
    """
    segmenter = place(load_segmenter(settings.exp.folder / LAST)[0], device)
    root, image = Path(settings.dataset.root), settings.image
    found: dict[str, Any] = {"dice": {}, "found_ml": {}}
    tested = []
    for name in lists:
        if not (root / LIST_FOLDER / f"{name}.txt").is_file():
            log.warning("%s: no list %s; left out", root, name)
            continue
        ids = read_id_list(root / LIST_FOLDER / f"{name}.txt")
        known = any(find_volume(lesion_folder(root), case_id) for case_id in ids)
        split, kind, score = ("TEST", "dice", "dice") if known else ("TESTH", "found_ml", "predicted_ml")
        cases = read_cohort(root, {split: name}, image.size, image.window)[split]
        scores = [predict_case(segmenter, case, split, image.normalization).score for case in cases]
        found[kind][name] = {one["id"]: one[score] for one in scores}
        tested += cases
    return found | {"protocols": notes_of(tested)}


def as_markdown(paths: Sequence[Path], lists: Sequence[str] = TESTED) -> str:
    """The table of the results: mean and SD over seeds of the mean over scans.

    Dice in percent, or ml found in lists without lesions; for the public sets, also the published row.
    """
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    rows = []
    for name in ROWS:
        of_row = [result for result in results if result["row"] == name]
        if of_row:
            rows.append({"row": name, "seeds": len(of_row), **{key: _cell(of_row, key) for key in lists}})
    if set(lists) <= set(PUBLISHED):
        rows.append({"row": "readme of the published code", "seeds": None, **{key: PUBLISHED[key] for key in lists}})
    notes = sorted({note for result in results for note in result["protocols"]})
    return "\n".join([as_table(rows), *notes]).rstrip() + "\n"


def _cell(results: Sequence[Mapping[str, Any]], key: str) -> str:
    for kind, factor, unit in (("dice", 100, ""), ("found_ml", 1, " ml")):
        by_scan = [result[kind][key].values() for result in results if key in result.get(kind, {})]
        means = [factor * np.mean(list(values)) for values in by_scan]
        if means:
            spread = f" ± {np.std(means):.1f}" if len(means) > 1 else ""
            return f"{np.mean(means):.1f}{spread}{unit}"
    return "-"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = new_parser(__doc__, "python -m benchmarks.weak_supervision.public")
    parser.add_argument("cohort", type=Path, metavar="COHORT", help="cohort folder of python -m datasets.public")
    parser.add_argument("--config-path", type=Path, default=CONFIG, metavar="FILE", help="default configs/mosmed.yaml")
    parser.add_argument(
        "--tested", nargs="+", default=list(TESTED), metavar="LIST", help=f"test lists (default {' '.join(TESTED)})"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY.SUB=VALUE", help="settings that override the file")
    options = parse_runs(parser, ROWS, arguments)
    device = choose_device(options.device)
    paths, test = [], partial(test_segmenter, lists=options.tested)
    for seed in options.seeds:
        for name in options.rows:
            settings = row_settings(name, seed, options.cohort, options.output, options.config_path, options.overrides)
            path, validate = result_path(options.output, name, seed), settings.dataset.split.valid is not None
            about = {"row": name, "seed": seed}
            paths.append(run_once(path, about, settings, test, device, not options.quiet, validate))
    table = as_markdown(paths, options.tested)
    write_text(options.output / "table.md", table)
    print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
