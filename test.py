r"""Tests a trained segmenter on a cohort: masks, probabilities and scores.

Writes masks/<id>.nii.gz, probabilities/<id>.nii.gz, metrics.csv, summary.json and report.html to the output folder, and
prints mean and standard deviation over the scans. Scans without lesion are scored by the volume found in them. Besides
overlap and volumes, scans are scored by surface distances (HD95, surface Dice) and by lesion; docs/scores.md defines
all scores. With --images they are also scored on the grids of the raw scans, in metrics_raw.csv. Scans that the same
model was tested on before with the same options are skipped. Scans that the model was trained on or chosen by are
refused unless --allow-seen is given. The model is a segmenter checkpoint, the folder of a release or a run, or a
published checkpointU_*.pth.

Examples:
    python test.py --config-path configs/Gan.yaml --allow-seen
    python test.py --config-path configs/Gan.yaml --model-path S.pth --output output/test --split TEST TESTH --save-vis
    python test.py --config-path configs/Gan.yaml --model-path checkpointU_1000.pth --output output/test \
        --save-vis --generator-path checkpointG_1000.pth DATASET.ROOT=/data/covid
    python test.py --config-path configs/Gan.yaml --images /data/scans --labels /data/lesion_labels
    python test.py --config-path configs/Gan.yaml --split TEST --part 1/4
    torchrun --nproc-per-node 2 test.py --config-path configs/Gan.yaml --split TEST
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))

from datasets import HELD_OUT, TRAINING, WITH_LESION
from datasets.scan_options import add_scan_options, chosen_reading
from evaluation import THRESHOLD, TOLERANCE_MM
from utils import distributed
from utils.cli import add_device, add_part, add_published_crops, add_quiet, new_parser, run, start_logging
from utils.errors import CheckpointError, CohortError
from utils.ledger import Entry, Ledger
from utils.progress import print_failures

if TYPE_CHECKING:
    from configs.settings import Settings
    from datasets.cohort import Case

log = logging.getLogger(__name__)


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
    parser.add_argument(
        "--allow-seen", action="store_true", help="test on scans that the model was trained on or chosen by, too"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help=f"probabilities above it are lesion (default: that of the segmenter's file, or {THRESHOLD})",
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
    parser.add_argument("--images", type=Path, nargs="+", metavar="RAW", help="raw scans; score on their grids too")
    parser.add_argument(
        "--labels", type=Path, nargs="+", metavar="DIR", help="lesion labels of the raw scans, named like them"
    )
    add_scan_options(parser, "segments", "series", "max-voxels")
    add_published_crops(parser)
    parser.add_argument("--no-report", dest="report", action="store_false", help="leave out report.html")
    add_part(parser)
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
    if options.threshold is not None and not 0 <= options.threshold < 1:
        parser.error("--threshold must be at least 0 and below 1")
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Raises:
        GasnetError: settings, networks, cohort, raw scans or output cannot be used, or do not fit each other.
    """
    options = parse(arguments)

    import torch

    from configs.settings import read_settings
    from datasets.cohort import notes_of, read_cohort_of
    from evaluation.results import FIGURES, TESTED, make_results, read_views, ways_of
    from evaluation.testing import REPORT_COLUMNS, Tester, as_text, find_raw_scans, write_scores
    from models.checkpoint import BEST, SegmenterInput, find_segmenter, fingerprint, load_generator, load_segmenter
    from models.engine import Engine
    from models.layers import place
    from reports.cases import write_case_report
    from reports.page import made_with

    start_logging(options.quiet)
    torch.backends.cudnn.allow_tf32 = False  # the same scores on every device
    settings = read_settings(options.config_path, options.overrides)
    device = distributed.choose_device(options.device)
    if device.type == "cpu":
        distributed.keep_freed_memory()
    image = settings.image
    model = find_segmenter(options.model_path) if options.model_path else settings.exp.folder / BEST
    segmenter, facts = load_segmenter(
        model, SegmenterInput(size=image.size, window=image.window, normalization=image.normalization)
    )
    trained_on = facts.trained_on
    for name, what in (("size", "crops of"), ("window", "crops with the window")):
        if (trained := getattr(trained_on, name)) != (wanted := getattr(image, name)):
            raise CheckpointError(
                f"{model}: was trained on {what} {trained}, IMAGE.{name.upper()} is {wanted}; crop the scans with that "
                f"{name} and set IMAGE.{name.upper()}"
            )
    cohort = read_cohort_of(settings, _splits(settings, options.split), not options.quiet, options.published_crops)
    splits = _split_by_id(cohort)
    cases = {case.id: case for of_split in cohort.values() for case in of_split}
    seen = _check_unseen(cases, model, frozenset(facts.seen or ()), options.allow_seen)
    threshold = facts.threshold if options.threshold is None else options.threshold
    raw = None
    if options.images is not None:
        raw = distributed.on_rank_zero(lambda: find_raw_scans(options.images, options.labels or (), options.reading))
    generator = place(load_generator(options.generator_path), device) if options.generator_path is not None else None
    output = options.output or model.parent / "test"
    ledger = Ledger(output, TESTED)
    tester = Tester(
        segmenter=Engine(place(segmenter, device)),
        normalization=trained_on.normalization,
        window=image.window,
        threshold=threshold,
        tolerance_mm=options.surface_tolerance,
        raw=raw,
        generator=generator,
        slices=image.slices,
        ledger=ledger,
    )
    made_by = {
        "model": fingerprint(segmenter),
        "threshold": threshold,
        "tolerance_mm": options.surface_tolerance,
        "normalization": trained_on.normalization,
        "published_crops": options.published_crops,
        "generator": None if generator is None else fingerprint(generator),
    }
    wanted = [what for what, asked in ((FIGURES, options.save_vis), ("report", options.report)) if asked]
    recipes = {case_id: tester.recipe(case, splits[case_id], made_by, wanted) for case_id, case in cases.items()}
    names = ["metrics.csv", "summary.json"]
    names += [name for name, asked in (("metrics_raw.csv", raw), ("report.html", options.report)) if asked]
    notes = notes_of(cases.values())

    def write(done: dict[str, Entry], _: dict[str, str]) -> None:
        print(as_text(write_scores(done, output, model, raw is not None, seen, notes)))
        if options.report:
            about = {"model": str(model), "cohort": settings.dataset.root, "splits": ", ".join(options.split)}
            about |= {**made_with(device), **({"lesion": "; ".join(notes)} if notes else {})}
            about["computed_by"] = ", ".join(ways_of(done))
            views = read_views(output, done)
            write_case_report(output / "report.html", "Test of a segmenter", REPORT_COLUMNS, views, about)

    _, failed = make_results(
        ledger,
        recipes,
        lambda: lambda case_id, recipe: tester.test(cases[case_id], recipe),
        "testing",
        names,
        write,
        part=options.part,
        progress=not options.quiet,
        device=device,
        settings=settings,
        seed=settings.exp.seed,
        model=model,
    )
    print(f"results in {output}")
    return print_failures(failed)


def _split_by_id(cohort: dict[str, tuple[Case, ...]]) -> dict[str, str]:
    """The split of each scan.

    Raises:
        CohortError: a scan is in two of them.
    """
    splits: dict[str, str] = {}
    for split, cases in cohort.items():
        for case in cases:
            if splits.setdefault(case.id, split) != split:
                raise CohortError(f"{case.id}: is in {splits[case.id]} and in {split}; test one of these splits")
    return splits


def _check_unseen(cases: dict[str, Case], model: Path, seen: frozenset[str], allowed: bool) -> list[str]:
    """The ids of the scans that a model was trained on or chosen by.

    Raises:
        CohortError: there are some, and that is not allowed.
    """
    found = [case.id for case in cases.values() if case.content in seen]
    if found and not allowed:
        names = ", ".join(found[:10]) + (", ..." if len(found) > 10 else "")
        raise CohortError(
            f"{model}: was trained on, or chosen by, {len(found)} of these scans: {names}; test other scans, or give "
            "--allow-seen"
        )
    if found:
        log.warning("%s: was trained on, or chosen by, %d of these scans, the first %s", model, len(found), found[0])
    return found


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
