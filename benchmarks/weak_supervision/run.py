"""Trains and tests the rows of the benchmark of weak supervision, one run a row and seed.

Writes below OUTPUT: cohort/ (made where it is missing), runs/, and results/<row>_seed_<n>.json, which has the test
scores of the segmenter that validation chose, and is written when a run is finished. Runs with a result are skipped and
those that were stopped go on, so that the same command may be given again until all is done. Then:
python -m benchmarks.weak_supervision.table OUTPUT

Examples:
  python -m benchmarks.weak_supervision.run --size small --output output/weak --processes 2
  python -m benchmarks.weak_supervision.run --size small --output output/weak --rows s-1 gasnet-1 s-40 --seeds 0
  python -m benchmarks.weak_supervision.run --size full --output output/weak_full --device cuda
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from benchmarks.weak_supervision.cohort import SIZES, write_cohort
from benchmarks.weak_supervision.rows import ROWS, row_settings
from configs.settings import Settings, read_settings, recorded_settings
from datasets.cohort import read_cohort
from datasets.crop import WINDOW
from evaluation.inference import predict_scans
from evaluation.metrics import summarise
from models.layers import place
from train import train, used_splits
from training.checkpoint import SegmenterInput, find_states, load, load_segmenter
from training.run import TrainingRun
from utils.cli import add_device, add_quiet, choose_device, new_parser, run, start_logging
from utils.errors import GasnetError, SettingsError
from utils.files import lock_folder, write_text
from utils.manifest import environment, recording
from utils.progress import progress_bar

log = logging.getLogger(__name__)


def result_path(output: Path, name: str, seed: int) -> Path:
    """Where the result of a run is written."""
    return output / "results" / f"{name}_seed_{seed}.json"


def train_row(settings: Settings, device: torch.device, progress: bool) -> None:
    """Train a run, or what is left of it.

    Raises:
        SettingsError: it was begun with other settings.
        GasnetError: the cohort or a checkpoint cannot be read.
    """
    begun = settings.exp.folder / "settings.yaml"
    if begun.is_file() and _without_folders(read_settings(begun)) != _without_folders(settings):
        raise SettingsError(
            f"{begun}: this run was begun with other settings; remove its folder, or name another --output"
        )
    cohort = read_cohort(settings.dataset.root, used_splits(settings, validate=True), settings.image.size)
    folder = settings.exp.folder
    with lock_folder(folder, "pictures"), recording(folder, device=device, settings=settings):
        resume = bool(find_states(settings.exp.folder))
        train(TrainingRun(settings, cohort, device, resume, validate=True, progress=progress))


def test_row(settings: Settings, device: torch.device) -> dict[str, Any]:
    """Scores of the segmenter that validation chose, on the test scans: what `summarise` says, and a row a scan."""
    split = settings.dataset.split
    default = SegmenterInput(settings.image.size, WINDOW, settings.image.normalization)
    segmenter, trained_on = load_segmenter(settings.exp.folder / "segmenter_best.pth", default)
    cohort = read_cohort(settings.dataset.root, {"TEST": split.test, "TESTH": split.testh}, settings.image.size)
    place(segmenter, device)
    scores = [
        prediction.score
        for key, cases in cohort.items()
        for prediction in predict_scans(segmenter, cases, key, trained_on.normalization)
    ]
    return {**summarise(scores), "rows": [score.row() for score in scores]}


def run_row(name: str, size: str, seed: int, output: Path, device: torch.device, progress: bool = False) -> Path:
    """Train and test one run, and write its result; nothing is done where there is one.

    Returns:
        The file with the result.

    Raises:
        GasnetError: the run cannot be trained, or was begun with other settings.
    """
    settings = row_settings(name, size, seed, output / "cohort", output)
    path = result_path(output, name, seed)
    if path.is_file():
        # Checked as settings: keys that were added since have the values that they had without being there.
        found = recorded_settings(json.loads(path.read_text(encoding="utf-8"))["settings"], str(path))
        if _without_folders(found) != _without_folders(settings):
            raise SettingsError(f"{path}: made with other settings; remove it and its run, or name another --output")
        return path
    train_row(settings, device, progress)
    best = load(settings.exp.folder / "segmenter_best.pth")
    result = {
        "row": name,
        "seed": seed,
        "size": size,
        "best_iteration": best["iteration"],
        "valid_dice": best["valid_dice"],
        "test": test_row(settings, device),
        "curve": _curve(settings.exp.folder / "metrics.jsonl"),
        "environment": environment(device),
        "settings": _without_folders(settings).model_dump(by_alias=True, mode="json"),
    }
    write_text(path, json.dumps(result, indent=1) + "\n")
    return path


def _without_folders(settings: Settings) -> Settings:
    """Settings that are the same wherever the benchmark's folder lies."""
    return settings.model_copy(
        update={
            "exp": settings.exp.model_copy(update={"output_dir": "output"}),
            "dataset": settings.dataset.model_copy(update={"root": "cohort"}),
        }
    )


def _curve(path: Path) -> list[dict[str, float]]:
    """The validations of a run: iteration, Dice, and what was found in healthy scans."""
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = {"iteration": "iteration", "valid/dice": "dice", "validh/false_positive_ml": "false_positive_ml"}
    return [{short: e[name] for name, short in names.items() if name in e} for e in entries if "valid/dice" in e]


def _start_worker() -> None:
    start_logging(quiet=True)
    torch.set_num_threads(1)


def run_all(
    runs: Sequence[tuple[str, int]], size: str, output: Path, device: torch.device, processes: int, progress: bool
) -> dict[str, str]:
    """Do several runs, several at a time; one that fails does not keep the others from being done.

    Args:
        runs: name of the row and seed of each, in the order in which they are begun.
        size: in `SIZES`.
        output: folder of the results.
        device: that trains.
        processes: runs at a time; with more than one, each has a single thread.
        progress: show progress bars.

    Returns:
        What went wrong, by run.
    """
    failed = {}
    if processes == 1:
        for name, seed in runs:
            try:
                run_row(name, size, seed, output, device, progress)
            except GasnetError as error:
                failed[f"{name}, seed {seed}"] = str(error)
        return failed
    # Spawned: a forked process could not use CUDA.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _start_worker) as pool:
        jobs = {pool.submit(run_row, name, size, seed, output, device): (name, seed) for name, seed in runs}
        for job in progress_bar(as_completed(jobs), "running", unit="run", total=len(jobs), shown=progress):
            name, seed = jobs[job]
            try:
                job.result()
            except GasnetError as error:
                failed[f"{name}, seed {seed}"] = str(error)
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = new_parser(__doc__, "python -m benchmarks.weak_supervision.run")
    parser.add_argument("--size", choices=list(SIZES), default="small", help="of the scans (default small)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of cohort, runs and results")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), metavar="ROW", help=f"some of {', '.join(ROWS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="default 0 1 2")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="runs side by side (default 1)")
    add_device(parser)
    add_quiet(parser)
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.rows if name not in ROWS]:
        parser.error(f"argument --rows: {unknown[0]} is none of {', '.join(ROWS)}")
    if options.processes < 1 or min(options.seeds) < 0:
        parser.error("--processes must be at least 1, --seeds at least 0")
    start_logging(options.quiet)
    device = choose_device(options.device)
    progress = not options.quiet

    makers = os.cpu_count() if device.type == "cuda" else options.processes
    write_cohort(options.output / "cohort", SIZES[options.size], processes=makers or 1, progress=progress)
    # A seed of all rows before the next seed: a table that is not complete still compares.
    runs = [(name, seed) for seed in options.seeds for name in options.rows]
    failed = run_all(runs, options.size, options.output, device, options.processes, progress)
    print(f"{len(runs) - len(failed)} of {len(runs)} runs have a result in {options.output / 'results'}")
    for name, reason in failed.items():
        log.error("%s: %s", name, reason)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(run(main))
