"""Trains GASNet: segmenter, generator and discriminator, jointly.

Results go to EXP.OUTPUT_DIR/EXP.ID: segmenter_best.pth and segmenter_last.pth for use, state_*.pth to resume from,
settings.yaml, metrics.jsonl, ledger/, pictures/ and tensorboard/. Any setting can be overridden with KEY.SUB=VALUE.

Examples:
    python train.py --config-path configs/Gan.yaml --is-validation
    python train.py --config-path configs/Gan.yaml --dry-run DATASET.ROOT=/data/covid
    python train.py --config-path configs/Gan.yaml --is-validation --resume
    python train.py --config-path configs/finetune.yaml INIT_MODEL.UNET=output/first/segmenter_best.pth
    torchrun --nproc-per-node 2 train.py --config-path configs/Gan.yaml --is-validation
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))

from utils import distributed
from utils.cli import add_device, add_quiet, new_parser, run, start_logging
from utils.distributed import choose_device
from utils.ledger import recording

if TYPE_CHECKING:
    from configs.settings import Settings
    from training.run import TrainingRun

log = logging.getLogger(__name__)


def train(training: TrainingRun) -> None:
    """The published schedule: two iterations of S and G, two of D, and so on.

    | t // 2 | objective     | trains | batches  | steps                      |
    |--------|---------------|--------|----------|----------------------------|
    | even   | joint         | S, G   | I, I_h   | 1                          |
    |        | segmenter     | S      | I_h, I_l | 1                          |
    | odd    | discriminator | D      | I, I_h   | SOLVER.DISCRIMINATOR_STEPS |

    Every step takes fresh batches. With SOLVER.SEGMENTER_ONLY (ours), every iteration is a step of the segmenter's own
    objective.
    """
    from models.objectives import discriminator_objective, joint_objective, segmenter_objective

    solver, batch = training.settings.solver, training.batch
    for t in training.iterations():
        if solver.segmenter_only:
            training.minimise(segmenter_objective, batch("HEALTHY"), batch("LABELED"), trains=("segmenter",))
        elif (t // 2) % 2 == 0:
            training.minimise(joint_objective, batch("WO_LABEL"), batch("HEALTHY"), trains=("segmenter", "generator"))
            training.minimise(segmenter_objective, batch("HEALTHY"), batch("LABELED"), trains=("segmenter",))
        else:
            for _ in range(solver.discriminator_steps):
                training.minimise(
                    discriminator_objective, batch("WO_LABEL"), batch("HEALTHY"), trains=("discriminator",)
                )


def used_splits(settings: Settings, validate: bool) -> dict[str, str | None]:
    """The lists that training reads, by key of DATASET.SPLIT; those of validation only if `validate`."""
    keys = (*settings.training_splits, *(("VALID", "VALIDWL", "VALIDH") if validate else ()))
    return {key: getattr(settings.dataset.split, key.lower()) for key in keys}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = new_parser(__doc__)
    parser.add_argument("--config-path", type=Path, required=True, metavar="FILE", help="YAML settings")
    parser.add_argument("--is-validation", action="store_true", help="validate, and keep the best segmenter")
    parser.add_argument("--resume", action="store_true", help="resume from the latest state of this run")
    parser.add_argument("--dry-run", action="store_true", help="check settings and cohort, print them, and exit")
    add_device(parser)
    add_quiet(parser)
    parser.add_argument("overrides", nargs="*", metavar="KEY.SUB=VALUE", help="settings that override the file")
    options = parser.parse_intermixed_args(arguments)

    from configs.settings import misspelt_constraints, read_settings
    from datasets.cohort import read_cohort_of
    from training.run import TrainingRun

    start_logging(options.quiet)
    settings = read_settings(options.config_path, options.overrides)
    if warning := misspelt_constraints(settings):
        log.warning("%s", warning)
    device = choose_device(options.device)
    splits = used_splits(settings, options.is_validation)
    cohort = read_cohort_of(settings, splits, not options.quiet)
    if options.dry_run:
        print(settings.to_yaml())
        print(f"constraints: {', '.join(sorted(settings.exp.constraints)) or 'none'}; device: {device}")
        for split, cases in cohort.items():
            print(f"{split:9} {len(cases):5} scans")
        return 0

    with (
        distributed.lock_folder_on_rank_zero(settings.exp.folder, "pictures"),
        recording(settings.exp.folder, device=device, settings=settings, seed=settings.exp.seed),
    ):
        training = TrainingRun(
            settings, cohort, device, options.resume, validate=options.is_validation, progress=not options.quiet
        )
        train(training)
    print(f"finished iteration {training.iteration}; results in {training.folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
