r"""Tests a trained segmenter on a cohort: masks, probabilities and scores.

Writes masks/<id>.nii.gz, probabilities/<id>.nii.gz, metrics.csv, summary.json, manifest.json and report.html to the
output folder, and prints mean and standard deviation over the scans. Scans without lesion are scored by the volume
found in them. Besides overlap and volumes, scans are scored by surface distances (HD95, surface Dice) and by lesion;
docs/scores.md defines all scores. With --images they are also scored on the grids of the raw scans, in
metrics_raw.csv. The model is a segmenter checkpoint, the folder of a release or a run, or a published
checkpointU_*.pth.

Examples:
    python test.py --config-path configs/Gan.yaml
    python test.py --config-path configs/Gan.yaml --model-path S.pth --output output/test --split TEST TESTH --save-vis
    python test.py --config-path configs/Gan.yaml --model-path checkpointU_1000.pth --output output/test \
        --save-vis --generator-path checkpointG_1000.pth DATASET.ROOT=/data/covid
    python test.py --config-path configs/Gan.yaml --images /data/scans --labels /data/lesion_labels
    torchrun --nproc-per-node 2 test.py --config-path configs/Gan.yaml
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from configs.settings import Settings, read_settings
from datasets.cohort import HELD_OUT, TRAINING, WITH_LESION, Case, read_cohort_of
from datasets.public.protocol import lesion_protocols
from datasets.scan_options import add_reading, add_segments, chosen_reading
from evaluation.inference import Prediction, predict_cohort
from evaluation.native_resolution import RawScans, find_raw_scans
from evaluation.results import (
    SUMMARIES,
    Scored,
    as_text,
    save_prediction_figure,
    score_prediction,
    view_of,
    write_prediction,
    write_scores,
)
from evaluation.surface import TOLERANCE_MM
from models import Generator, Segmenter
from models.checkpoint import BEST, SegmenterInput, find_segmenter, load_generator, load_segmenter
from models.layers import place
from reports.cases import CaseView
from reports.page import made_with
from reports.scores import write_score_report
from utils import distributed
from utils.cli import add_device, add_published_crops, add_quiet, choose_device, new_parser, run, start_logging
from utils.errors import CheckpointError, CohortError
from utils.manifest import recording
from utils.memory import keep_freed_memory
from utils.progress import progress_bar
from utils.results import RESULTS, check_own_summaries


@dataclass(frozen=True)
class Job:
    """What a run of this command does.

    Attributes:
        settings: the settings.
        device: device of the networks.
        model: checkpoint of the segmenter.
        segmenter: S, on its device.
        normalization: IMAGE.NORMALIZATION of its training.
        generator: G for the figures, on its device; None leaves out I_g and I_s.
        cohort: cases by split.
        protocols: which labels of public sets are lesion in the cohort.
        raw: the raw scans, to score on their grids; None scores crops only.
        output: folder of the results.
        options: tolerance, figures, report and progress.
    """

    settings: Settings
    device: torch.device
    model: Path
    segmenter: Segmenter
    normalization: str
    generator: Generator | None
    cohort: dict[str, tuple[Case, ...]]
    protocols: list[str]
    raw: RawScans | None
    output: Path
    options: argparse.Namespace


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
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
    parser.add_argument("--images", type=Path, metavar="RAW", help="raw scans; score on their grids too")
    parser.add_argument("--labels", type=Path, metavar="DIR", help="lesion labels of the raw scans, named like them")
    add_segments(parser)
    add_reading(parser)
    add_published_crops(parser)
    parser.add_argument("--no-report", dest="report", action="store_false", help="leave out report.html")
    add_device(parser)
    add_quiet(parser)
    parser.add_argument("overrides", nargs="*", metavar="KEY.SUB=VALUE", help="settings that replace the file's")
    options = parser.parse_intermixed_args(arguments)
    # --split takes all words that follow it, overrides included.
    options.overrides += [word for word in options.split if "=" in word]
    options.split = [word for word in options.split if "=" not in word]
    for split in options.split:
        if split not in (*TRAINING, *HELD_OUT):
            parser.error(f"argument --split: {split} is none of {', '.join((*TRAINING, *HELD_OUT))}")
    if options.generator_path is not None and not options.save_vis:
        parser.error("--generator-path is for the figures of --save-vis")
    if not 0 <= options.surface_tolerance < math.inf:
        parser.error("--surface-tolerance must be a length of 0 mm or more")
    if options.labels is not None and options.images is None:
        parser.error("--labels are those of the raw scans in --images")
    if options.images is not None and options.labels is None and (labelled := set(options.split) & set(WITH_LESION)):
        parser.error(f"--images needs the --labels of {', '.join(sorted(labelled))}")
    options.reading = chosen_reading(parser, options)
    return options


def check(options: argparse.Namespace) -> Job:
    """Load settings and networks, and check that they fit the cohort.

    Raises:
        GasnetError: settings, networks, cohort or raw scans cannot be used, or do not fit each other.
    """
    settings = read_settings(options.config_path, options.overrides)
    device = choose_device(options.device)
    if device.type == "cpu":
        keep_freed_memory()
    model = find_segmenter(options.model_path) if options.model_path else settings.exp.folder / BEST
    image = settings.image
    segmenter, trained_on = load_segmenter(
        model, SegmenterInput(size=image.size, window=image.window, normalization=image.normalization)
    )
    for name, what in (("size", "crops of"), ("window", "crops with the window")):
        if (trained := getattr(trained_on, name)) != (wanted := getattr(image, name)):
            raise CheckpointError(
                f"{model}: was trained on {what} {trained}, IMAGE.{name.upper()} is {wanted}; crop the scans with that "
                f"{name} and set IMAGE.{name.upper()}"
            )
    generator = place(load_generator(options.generator_path), device) if options.generator_path is not None else None
    splits = _splits(settings, options.split)
    cohort = read_cohort_of(settings, splits, not options.quiet, options.published_crops)
    labelled = [case.id for cases in cohort.values() for case in cases if case.lesion is not None]
    raw = None
    if options.images is not None:
        raw = distributed.on_rank_zero(lambda: find_raw_scans(options.images, options.labels, options.reading))
    return Job(
        settings=settings,
        device=device,
        model=model,
        segmenter=place(segmenter, device),
        normalization=trained_on.normalization,
        generator=generator,
        cohort=cohort,
        protocols=lesion_protocols(Path(settings.dataset.root), labelled),
        raw=raw,
        output=options.output or model.parent / "test",
        options=options,
    )


def test(job: Job) -> int:
    """Predict and score all scans, and write the results.

    Returns:
        The exit code: 1 if a scan could not be scored at its own resolution, otherwise 0.
    """
    options, output = job.options, job.output
    scored: list[Scored] = []
    views: list[CaseView] = []
    shares = {split: distributed.shard(cases) for split, cases in job.cohort.items()}
    total = sum(len(cases) for cases in shares.values())

    def save_figure(prediction: Prediction, path: Path) -> None:
        save_prediction_figure(prediction, job.normalization, job.generator, job.settings.image.slices, path)

    distributed.on_rank_zero(lambda: check_own_summaries(output, *SUMMARIES))
    with (
        distributed.lock_folder_on_rank_zero(output, "masks", "probabilities", "figures", RESULTS),
        recording(output, device=job.device, settings=job.settings, model=job.model),
        logging_redirect_tqdm(),
    ):
        with progress_bar(None, "testing", total=total, unit="scan", shown=not options.quiet) as bar:
            for split, cases in shares.items():
                mine, seen = [], []
                for prediction in predict_cohort(job.segmenter, cases, split, job.normalization):
                    write_prediction(prediction, output, save_figure if options.save_vis else None)
                    score = score_prediction(prediction, job.raw, options.surface_tolerance)
                    mine.append(score)
                    seen += [view_of(prediction, score.crop, job.settings.image.window)] if options.report else []
                    bar.update()
                scored += distributed.unshard(mine)
                views += distributed.unshard(seen)
        if distributed.is_rank_zero():
            print(as_text(write_scores(scored, output, job.model, job.raw is not None, job.protocols)))
            if options.report:
                root, splits = job.settings.dataset.root, ", ".join(options.split)
                facts = {"model": str(job.model), "cohort": root, "splits": splits, **made_with(job.device)}
                facts |= {"lesion": "; ".join(job.protocols)} if job.protocols else {}
                write_score_report(output / "report.html", views, facts)
    print(f"results in {output}")
    return 1 if any(scan.problem for scan in scored) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    options = parse(arguments)
    start_logging(options.quiet)
    torch.backends.cudnn.allow_tf32 = False  # the same scores on every device
    return test(check(options))


def _splits(settings: Settings, keys: Sequence[str]) -> dict[str, str]:
    """The lists of these keys of DATASET.SPLIT.

    Raises:
        CohortError: a key names no list.
    """
    splits = {key: getattr(settings.dataset.split, key.lower()) for key in keys}
    unset = [key for key, name in splits.items() if name is None]
    if unset:
        raise CohortError(
            f"--split {unset[0]}: DATASET.SPLIT.{unset[0]} names no list; set it, or choose another split"
        )
    return splits


if __name__ == "__main__":
    raise SystemExit(run(main))
