r"""Tests a trained segmenter on a cohort: masks, probabilities, and how good they are.

Writes masks/<id>.nii.gz, probabilities/<id>.nii.gz, metrics.csv, summary.json, manifest.json and report.html, a page
to look at, to the output folder, and prints mean and standard deviation over the scans. Scans without lesion are scored
by what was found in them all the same. Besides overlap and volumes they are scored by their surfaces (HD95, surface
Dice) and by single lesions; docs/scores.md defines all. With --images, they are scored on the grids of the raw scans
too, into metrics_raw.csv. The model is a checkpoint of ours, the folder of a release or a run that has one, or a
published checkpointU_*.pth.

Examples:
    python test.py --config-path configs/Gan.yaml
    python test.py --config-path configs/Gan.yaml --model-path S.pth --output output/test --split TEST TESTH --save-vis
    python test.py --config-path configs/Gan.yaml --model-path checkpointU_1000.pth --output output/test \
        --save-vis --generator-path checkpointG_1000.pth DATASET.ROOT=/data/covid
    python test.py --config-path configs/Gan.yaml --images /data/scans --labels /data/lesion_labels
    torchrun --nproc-per-node 2 test.py --config-path configs/Gan.yaml
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from configs.settings import Settings, read_settings
from datasets.cohort import HELD_OUT, TRAINING, WITH_LESION, read_cohort
from datasets.io.volume import Reading, write_volume
from datasets.samples import normalise, scan_input
from evaluation.figures import save_case_figure, slice_to_show
from evaluation.inference import Prediction, predict_scans
from evaluation.native_resolution import find_raw_scans
from evaluation.results import as_text, score_prediction, write_scores
from evaluation.surface import TOLERANCE_MM
from models import Generator
from models.generator import generate_scan
from models.layers import place
from models.objectives import synthesise
from reports.page import made_with
from reports.scores import view_of, write_score_report
from training.checkpoint import BEST, SegmenterInput, find_segmenter, load_generator, load_segmenter
from utils import distributed
from utils.cli import add_device, add_quiet, add_reading, choose_device, new_parser, run, start_logging
from utils.errors import CheckpointError, CohortError
from utils.manifest import recording
from utils.memory import keep_freed_memory
from utils.progress import progress_bar


def write_prediction(prediction: Prediction, output: Path) -> None:
    """Write the mask and the probabilities of a scan, with the geometry of its crop.

    Raises:
        VolumeError: a file cannot be written.
    """
    for folder, array in (
        ("probabilities", prediction.probability.astype(np.float32)),
        ("masks", prediction.mask.astype(np.uint8)),
    ):
        write_volume(prediction.volumes.grid.image(array), output / folder / f"{prediction.case.id}.nii.gz")


def save_figure(
    prediction: Prediction, normalization: str, generator: Generator | None, slices: int, path: Path
) -> None:
    """Save the figure of a scan: input, M, predicted and true label and, where G is given, I_g and I_s."""
    volumes = prediction.volumes
    columns = {
        "input": normalise(volumes.image, normalization),
        "M": prediction.probability,
        "predicted": prediction.mask,
    }
    if prediction.score.counts is not None:
        columns["true"] = volumes.lesion
    if generator is not None:
        scan = scan_input(volumes, normalization).to(next(generator.parameters()).device)
        generated = generate_scan(generator, scan, slices)
        lesion = torch.from_numpy(prediction.probability).to(scan)[None, None]
        # The probabilities are 0 outside the lungs already.
        synthetic = synthesise(scan, lesion, torch.ones_like(lesion), generated)
        for title, volume in (("I_g", generated), ("I_s", synthetic)):
            columns[title] = ((volume[0, 0] + 1) / 2).cpu().numpy()
    x, y, _ = volumes.grid.spacing
    save_case_figure(columns, slice_to_show(volumes.lesion, prediction.mask), y / x, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = new_parser(__doc__)
    parser.add_argument("--config-path", type=Path, required=True, metavar="FILE", help="YAML settings")
    parser.add_argument(
        "--model-path",
        type=Path,
        metavar="FILE|DIR",
        help="the segmenter, or the folder of a release or a run (default: the best one of the config's run)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of the results (default: test/ beside the model)"
    )
    parser.add_argument(
        "--split",
        nargs="+",
        default=["VALID"],
        metavar="SPLIT",
        help=f"splits to test on: {', '.join((*TRAINING, *HELD_OUT))} (default VALID)",
    )
    parser.add_argument("--save-vis", action="store_true", help="save a figure of every scan in figures/")
    parser.add_argument("--generator-path", type=Path, metavar="FILE", help="G, for I_g and I_s in the figures")
    parser.add_argument(
        "--surface-tolerance",
        type=float,
        default=TOLERANCE_MM,
        metavar="MM",
        help=f"surfaces this close to each other agree, in the surface Dice (default {TOLERANCE_MM:g} mm)",
    )
    parser.add_argument("--images", type=Path, metavar="RAW", help="folder of the raw scans; score on their grids too")
    parser.add_argument("--labels", type=Path, metavar="DIR", help="lesion labels of the raw scans, named as they are")
    add_reading(parser)
    parser.add_argument("--no-report", dest="report", action="store_false", help="leave out report.html")
    add_device(parser)
    add_quiet(parser)
    parser.add_argument("overrides", nargs="*", metavar="KEY.SUB=VALUE", help="settings that replace the file's")
    options = parser.parse_intermixed_args(arguments)
    # --split takes what follows it, overrides too.
    overrides = [*options.overrides, *(word for word in options.split if "=" in word)]
    splits = [word for word in options.split if "=" not in word]
    for split in splits:
        if split not in (*TRAINING, *HELD_OUT):
            parser.error(f"argument --split: {split} is none of {', '.join((*TRAINING, *HELD_OUT))}")
    if options.generator_path is not None and not options.save_vis:
        parser.error("--generator-path is for the figures of --save-vis")
    if not 0 <= options.surface_tolerance < math.inf:
        parser.error("--surface-tolerance must be a length of 0 mm or more")
    if options.labels is not None and options.images is None:
        parser.error("--labels are those of the raw scans in --images")
    if options.images is not None and options.labels is None and (labelled := set(splits) & set(WITH_LESION)):
        parser.error(f"--images needs the --labels of {', '.join(sorted(labelled))}")
    start_logging(options.quiet)

    settings = read_settings(options.config_path, overrides)
    device = choose_device(options.device)
    if settings.speed.keep_memory and device.type == "cpu":
        keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False  # the same scores on every device
    model = find_segmenter(options.model_path) if options.model_path else settings.exp.folder / BEST
    output = options.output or model.parent / "test"
    default = SegmenterInput(settings.image.size, settings.image.window, settings.image.normalization)
    segmenter, trained_on = load_segmenter(model, default)
    if trained_on.size != settings.image.size:
        raise CheckpointError(
            f"{model}: was trained on crops of {trained_on.size}, IMAGE.SIZE is {settings.image.size}; "
            "crop the scans to that size and set IMAGE.SIZE"
        )
    if trained_on.window != settings.image.window:
        raise CheckpointError(
            f"{model}: was trained on crops with the window {trained_on.window}, IMAGE.WINDOW is "
            f"{settings.image.window}; crop the scans with that window and set IMAGE.WINDOW"
        )
    generator = place(load_generator(options.generator_path), device) if options.generator_path is not None else None
    cohort = distributed.on_rank_zero(lambda: _read_splits(settings, splits, progress=not options.quiet))
    reading = Reading(options.max_voxels, options.series)
    raw = None if options.images is None else find_raw_scans(options.images, options.labels, reading)
    place(segmenter, device)

    scored, views = [], []
    shares = {split: distributed.shard(cases) for split, cases in cohort.items()}
    total = sum(len(cases) for cases in shares.values())
    with (
        distributed.lock_folder_on_rank_zero(output, "masks", "probabilities", "figures"),
        recording(output, device=device, settings=settings, model=model),
        logging_redirect_tqdm(),
    ):
        with progress_bar(None, "testing", total=total, unit="scan", shown=not options.quiet) as bar:
            for split, cases in shares.items():
                mine, seen = [], []
                predictions = predict_scans(segmenter, cases, split, trained_on.normalization)
                for prediction in predictions:
                    write_prediction(prediction, output)
                    if options.save_vis:
                        path = output / "figures" / f"{prediction.case.id}.png"
                        save_figure(prediction, trained_on.normalization, generator, settings.image.slices, path)
                    score = score_prediction(prediction, raw, options.surface_tolerance)
                    mine.append(score)
                    seen += [view_of(prediction, score.crop)] if options.report else []
                    bar.update()
                scored += distributed.unshard(mine)
                views += distributed.unshard(seen)
        if distributed.is_rank_zero():
            print(as_text(write_scores(scored, output, model, with_raw=raw is not None)))
            if options.report:
                facts = {"model": str(model), "cohort": settings.dataset.root, "splits": ", ".join(splits)}
                write_score_report(output / "report.html", views, {**facts, **made_with(device)})
    print(f"results in {output}")
    return 1 if any(scan.problem for scan in scored) else 0


def _read_splits(settings: Settings, keys: Sequence[str], progress: bool) -> dict:
    splits = {key: getattr(settings.dataset.split, key.lower()) for key in keys}
    unset = [key for key, name in splits.items() if name is None]
    if unset:
        raise CohortError(
            f"--split {unset[0]}: DATASET.SPLIT.{unset[0]} names no list; set it, or choose another split"
        )
    return read_cohort(settings.dataset.root, splits, settings.image.size, settings.image.window, progress)


if __name__ == "__main__":
    raise SystemExit(run(main))
