"""Trains and tests the rows of the weak-supervision benchmark, one run per row and seed.

Writes to OUTPUT: cohort/ (generated if missing), runs/, and one results/<row>_seed_<n>.json per finished run with the
test scores of the segmenter selected on validation, at the threshold that is best on validation. Finished runs are
skipped and interrupted ones resume, so the same command can be repeated until everything is done. To use more cores,
run it for several rows or seeds at once. Then run python -m benchmarks.weak_supervision.table OUTPUT.

Examples:
  OMP_NUM_THREADS=1 python -m benchmarks.weak_supervision.run --size small --output output/weak
  python -m benchmarks.weak_supervision.run --size small --output output/weak --rows s-1 gasnet-1 s-40 --seeds 0
  timeout 600 python -m benchmarks.weak_supervision.run --size full --output output/weak_full --device cuda
"""

from __future__ import annotations

import json
import logging
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.records import as_json
from benchmarks.weak_supervision.cohort import SIZES, write_cohort
from benchmarks.weak_supervision.rows import ROWS, SCALES, row_settings
from configs.settings import Settings, read_settings
from datasets.cohort import read_cohort
from evaluation.inference import predict_case
from evaluation.metrics import COLUMNS, summarise
from models.checkpoint import BEST, load_segmenter
from models.layers import place
from train import train, used_splits
from training.run import TrainingRun
from utils.cli import add_device, add_quiet, new_parser, run, start_logging
from utils.distributed import choose_device
from utils.errors import GasnetError, SettingsError
from utils.files import lock_folder, write_text
from utils.ledger import environment, recording

log = logging.getLogger(__name__)

THRESHOLDS = np.linspace(0.02, 0.98, 49)
"""Probabilities to choose a threshold from."""


def result_path(output: Path, name: str, seed: int) -> Path:
    """Result file of a run."""
    return output / "results" / f"{name}_seed_{seed}.json"


def best_threshold(probabilities: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> float:
    """The one of `THRESHOLDS` with the highest mean Dice over scans with lesion."""

    def mean_dice(threshold: float) -> float:
        masks = [(found > threshold, truth) for found, truth in zip(probabilities, truths, strict=True)]
        return float(np.mean([2 * (mask & truth).sum() / (mask.sum() + truth.sum()) for mask, truth in masks]))

    return float(max(THRESHOLDS, key=mean_dice))


def test_row(settings: Settings, device: torch.device) -> dict[str, Any]:
    """Score the selected segmenter on the test scans.

    Returns:
        ``best_iteration`` and ``valid_dice`` of the segmenter; ``test``: ``threshold``, chosen on the validation scans
        with lesion, the summary of the scores, and ``rows``, one per scan, without scores that are undefined for it;
        and the ``curve`` of the training.
    """
    split, normalization = settings.dataset.split, settings.image.normalization
    segmenter, facts = load_segmenter(settings.exp.folder / BEST)
    segmenter = place(segmenter, device)
    names = {"VALID": split.valid, "TEST": split.test, "TESTH": split.testh}
    cohort = read_cohort(settings.dataset.root, names, settings.image.size)
    known = [predict_case(segmenter, case, "VALID", normalization) for case in cohort.pop("VALID")]
    threshold = best_threshold([p.probability for p in known], [p.volumes.lesion > 0 for p in known])
    scores = [
        predict_case(segmenter, case, key, normalization, threshold=threshold).score
        for key, cases in cohort.items()
        for case in cases
    ]
    rows = [{name: score[name] for name in COLUMNS if score[name] is not None} for score in scores]
    return {
        "best_iteration": facts.iteration,
        "valid_dice": facts.valid_dice,
        "test": {"threshold": round(threshold, 3), **summarise(scores), "rows": rows},
        "curve": _curve(settings.exp.folder / "metrics.jsonl"),
    }


def run_once(
    path: Path,
    about: Mapping[str, Any],
    settings: Settings,
    test: Callable[[Settings, torch.device], dict[str, Any]],
    device: torch.device,
    progress: bool = False,
    validate: bool = True,
) -> Path:
    """Train, or resume, and test one run and write its result, what is said about it first, unless it is there.

    With ``validate``, the best segmenter is kept. Returns the file of the result.

    Raises:
        SettingsError: the result was made, or the run was started, with other settings.
        GasnetError: the run cannot be trained: its cohort or a checkpoint cannot be read.
    """
    recorded, folder = settings_to_record(settings), settings.exp.folder
    if path.is_file():
        if json.loads(path.read_text(encoding="utf-8"))["settings"] != recorded:
            raise SettingsError(f"{path}: made with other settings; remove it and its run or choose another --output")
        return path
    begun = folder / "settings.yaml"
    if begun.is_file() and settings_to_record(read_settings(begun)) != recorded:
        raise SettingsError(
            f"{begun}: this run was started with other settings; remove its folder or choose another --output"
        )
    cohort = read_cohort(settings.dataset.root, used_splits(settings, validate), settings.image.size)
    with lock_folder(folder, "pictures"), recording(folder, device=device, settings=settings, seed=settings.exp.seed):
        train(TrainingRun(settings, cohort, device, resume=True, validate=validate, progress=progress))
    facts = {**about, **test(settings, device), "environment": environment(device), "settings": recorded}
    write_text(path, as_json(facts))
    return path


def settings_to_record(settings: Settings) -> dict[str, Any]:
    """Settings of a run as JSON, without the location of the benchmark's folder."""
    exp = settings.exp.model_copy(update={"output_dir": "output"})
    dataset = settings.dataset.model_copy(update={"root": "cohort"})
    return settings.model_copy(update={"exp": exp, "dataset": dataset}).model_dump(by_alias=True, mode="json")


def _curve(path: Path) -> list[dict[str, float]]:
    """Validation history of a run: Dice, and false positives in healthy scans in ml."""
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = {"iteration": "iteration", "valid/dice": "dice", "validh/false_positive_ml": "false_positive_ml"}
    return [{short: e[name] for name, short in names.items() if name in e} for e in entries if "valid/dice" in e]


def parse_runs(parser: ArgumentParser, rows: Iterable[str], arguments: Sequence[str] | None) -> Namespace:
    """Add the options that choose runs, parse all and start logging."""
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for runs and results")
    parser.add_argument("--rows", nargs="+", choices=list(rows), default=list(rows), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="default 0 1 2")
    add_device(parser)
    add_quiet(parser)
    options = parser.parse_intermixed_args(arguments)
    if min(options.seeds) < 0:
        parser.error("--seeds must be at least 0")
    start_logging(options.quiet)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = new_parser(__doc__, "python -m benchmarks.weak_supervision.run")
    sizes = "small (the default): 20x96x96 voxels; long: the same, three times as many iterations; full: 40x160x160"
    parser.add_argument("--size", choices=list(SCALES), default="small", help=sizes)
    options = parse_runs(parser, ROWS, arguments)
    device, progress, failed = choose_device(options.device), not options.quiet, {}
    write_cohort(options.output / "cohort", SIZES[options.size], processes=os.cpu_count() or 1, progress=progress)
    # All rows of a seed before the next seed, so that an incomplete table is still comparable.
    runs = [(name, seed) for seed in options.seeds for name in options.rows]
    for name, seed in runs:
        try:
            settings = row_settings(name, options.size, seed, options.output / "cohort", options.output)
            about = {"row": name, "seed": seed, "size": options.size}
            run_once(result_path(options.output, name, seed), about, settings, test_row, device, progress)
        except GasnetError as error:
            failed[f"{name}, seed {seed}"] = str(error)
    print(f"{len(runs) - len(failed)} of {len(runs)} runs finished; results in {options.output / 'results'}")
    for name, reason in failed.items():
        log.error("%s: %s", name, reason)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(run(main))
