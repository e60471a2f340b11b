"""Kills the five scripts at random moments, including saves, and checks that nothing is lost.

Each script runs on tiny phantoms and is killed (SIGKILL) and restarted until it finishes. After every kill, each file
under its final name must be complete; at the end, all files must equal those of an undisturbed run (weights and states
bit for bit, other files byte for byte). A quarter of the kills happen at a random time, the others when a file is
created, grows or is renamed; "in saves" counts kills that left a partial file.

Examples:
    python -m tests.kill_everything
    python -m tests.kill_everything --kills 100 --seed 1 --scripts train lungCrop
"""

from __future__ import annotations

import io
import json
import multiprocessing
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path

import lungCrop
from datasets import make_splits
from datasets.phantom.make import write_phantoms
from models.checkpoint import load
from tests.outputs import same, save_model, written
from tests.several import started_process
from training.states import find_states
from utils.cli import new_parser
from utils.errors import CheckpointError

ROOT = Path(__file__).parents[1]
SCRIPTS = ("lungCrop", "train", "test", "post_processing", "predict")
SIZE = (16, 64, 64)
"""Crop size: the smallest that all networks accept."""

_PROGRESS = 1.5
"""Kills happen within this many seconds after the first file: scripts make progress, but do not finish at once."""


@dataclass(frozen=True)
class Job:
    """A script with its arguments and output folder."""

    script: str
    arguments: list[str]
    output: Path
    check: Callable[[Path, Path, bool], None]  # of the output, by that of the undisturbed run, and whether it is done

    def command(self) -> list[str]:
        """Arguments with which it starts or continues."""
        return [*self.arguments, *(["--resume"] if self.script == "train" else [])]

    def start(self) -> BaseProcess:
        return started_process(self.output.with_suffix(".log"), become, self.script, self.command())

    def errors(self) -> str:
        return (self.output.with_suffix(".log") / "0.err").read_text()[-2000:]

    def begun(self) -> set[Path]:
        """Partial files: being written, or left by a killed process."""
        return set(self.output.rglob(".*.partial.*"))

    def files(self) -> set[tuple[str, int, int]]:
        """Name, inode and size of every file; two snapshots tell whether anything was written."""
        with suppress(FileNotFoundError):  # a file was renamed meanwhile
            entries = [(path, path.stat()) for path in self.output.rglob("*")]
            return {(str(path), entry.st_ino, entry.st_size) for path, entry in entries}
        return self.files()


def become(script: str, arguments: list[str]) -> int:
    """Run a script, in a process that has all modules imported, which saves seconds."""
    multiprocessing.set_start_method("fork", force=True)  # the default for a script's workers on Linux
    return import_module(script).main(arguments)


def make_jobs(folder: Path, iterations: int) -> dict[str, Job]:
    """The five scripts on seven phantoms, by name; generates their inputs."""
    raw, cohort, model = folder / "raw", folder / "cohort", folder / "segmenter.pth"
    write_phantoms(raw, healthy=3, diseased=4, size=(20, 40, 40), seed=0)
    save_model(model, SIZE)
    ct, lungs = str(raw / "ct"), str(raw / "lung")
    crop = [ct, "--labels", str(raw / "lesion"), "--lungs", lungs, "--size", *map(str, SIZE), "--quiet"]
    with redirect_stdout(io.StringIO()):
        lungCrop.main([*crop, "--output", str(cohort)])
        make_splits.main([str(cohort), "--healthy", "healthy_*", "--labeled", "1", "--valid", "1", "--validh", "1"])
    settings = [
        *("--config-path", str(ROOT / "configs" / "demo.yaml"), "--device", "cpu", "--quiet", "EXP.ID=recons_MIL"),
        *(f"DATASET.ROOT={cohort}", f"IMAGE.SIZE={list(SIZE)}", f"EXP.OUTPUT_DIR={folder}"),
    ]
    training = [
        *("--is-validation", "MODEL.WIDTH={UNET: 2, G: 2, D: 2}", "SOLVER.BATCH_SIZE=1", "LOSS.MIL_START=3"),
        *(f"SOLVER.ITER_MAX={iterations}", "SOLVER.DISCRIMINATOR_STEPS=1", "DATALOADER.NUM_WORKERS=1"),
        "INTERVAL={SAVE: 1, VALID: 2, LOG: 1, PICTURE: 3}",
    ]
    testing = ["--model-path", str(model), "--save-vis", "--split", "VALID", "WO_LABEL", "HEALTHY"]
    paste = ["--images", ct, "--masks", str(cohort / "lung"), "--quiet"]
    # Reports would take most of the time.
    predicting = [ct, "--model-path", str(model), "--lungs", lungs, "--no-report", "--save-probabilities", "--quiet"]

    def job(script: str, name: str, *arguments: str) -> Job:
        return Job(script, [*arguments, "--output", str(folder / name)], folder / name, check_files)

    jobs = (
        job("lungCrop", "crops", *crop),
        Job("train", [*settings, *training], folder / "recons_MIL", check_training),
        job("test", "results", *settings, *testing),
        job("post_processing", "masks", *paste),
        job("predict", "predicted", *predicting, "--device", "cpu"),
    )
    return {job.script: job for job in jobs}


def kill_often(job: Job, kills: int, rng: random.Random) -> Counter[str]:
    """Kill a job again and again, from the beginning when it has finished; counts kills, those in saves, and runs."""
    reference = job.output.with_suffix(".undisturbed")
    life = _undisturbed(job)
    job.output.rename(reference)
    tally: Counter[str] = Counter()
    done = False
    while not done or tally["kills"] < kills:
        if done:
            shutil.rmtree(job.output)
        process = job.start()
        if tally["kills"] < kills:
            _wait(process, job, rng, life)
            process.kill()
        process.join()
        done = process.exitcode == 0
        if not done:
            assert process.exitcode == -9, f"{job.script} ended with exit code {process.exitcode}: {job.errors()}"
            tally["kills"] += 1
            ours = {path for path in job.begun() if path.name.startswith(f".{process.pid}.")}
            tally["in saves"] += bool(ours)
            earlier = job.begun() - ours
            assert not (ours and earlier), f"{job.script} did not remove what an earlier kill left: {earlier}"
        tally["runs"] += done
        if job.output.exists():
            job.check(job.output, reference, done)
    return tally


def check_files(folder: Path, reference: Path, done: bool) -> None:
    """Files equal those of the undisturbed run; when finished, none is missing or left over.

    Before, a table may lack rows; every row has its mask.
    """
    _compare_names(folder, reference, done)
    for path in _files(folder):
        twin = reference / path.relative_to(folder)
        if path.suffix == ".csv" and not done:
            first, *rows = path.read_text().splitlines()
            assert {first, *rows} <= set(twin.read_text().splitlines()), f"{path} differs"
            for row in rows:
                assert (folder / "masks" / f"{row.split(',')[0]}.nii.gz").exists(), f"{path}: no mask of {row}"
        elif path.suffix == ".json" and not done:
            json.loads(path.read_text())
        elif path.name != "report.html":  # which tells when and how often a script ran
            assert path.read_bytes() == twin.read_bytes(), f"{path} differs"


def check_training(folder: Path, reference: Path, done: bool) -> None:
    """Checkpoints are complete; when finished, weights, states, log and pictures equal the undisturbed run."""
    for path in _files(folder):
        twin = reference / path.relative_to(folder)
        if path.suffix == ".pth":
            content = load(path)  # compares the checksums of its parts
            assert not (done and twin.exists()) or same(content, load(twin)), f"{path} differs"
        elif path.suffix in (".png", ".yaml"):
            assert path.read_bytes() == twin.read_bytes(), f"{path} differs"
    log = folder / "metrics.jsonl"
    entries = _entries(log, done) if log.exists() else []
    expected = _entries(reference / "metrics.jsonl", True)
    assert entries == expected[: None if done else len(entries)], f"{log} differs"
    if done:
        # Both end with the latest two states, plus one if the last kill prevented the clean-up.
        last = [folder / path.name for path in find_states(reference)]
        assert find_states(folder)[:2] == last, f"{folder} lacks its last states"
        best = (folder / f"segmenter_{name}.pth" for name in ("best", "last"))
        assert all(path.exists() for path in best), f"{folder} lacks its segmenters"
    _compare_names(folder / "pictures", reference / "pictures", done)


def _compare_names(folder: Path, reference: Path, done: bool) -> None:
    there, expected = ({path.relative_to(place) for path in _files(place)} for place in (folder, reference))
    right = there == expected if done else there <= expected
    assert right, f"{folder} holds {sorted(map(str, there))} instead of {sorted(map(str, expected))}"
    left = list(folder.rglob(".*.partial.*")) if done else []
    assert not left, f"{left} were left"


def _files(folder: Path) -> list[Path]:
    return [folder / name for name in written(folder)]


def _entries(path: Path, done: bool) -> list[dict]:
    """Log entries without times; the last line may be incomplete while the run is unfinished."""
    *lines, last = path.read_text().split("\n")
    assert not (done and last), f"{path} ends with {last}"
    return [json.loads(line) | {"seconds_per_iteration": 0} for line in lines]


def _undisturbed(job: Job) -> float:
    """Run a job to its end; return the number of seconds after its start in which kills may happen."""
    start = time.monotonic()
    process = job.start()
    while process.is_alive() and not job.output.exists():
        time.sleep(0.01)
    first = time.monotonic() - start
    process.join()
    assert process.exitcode == 0, f"exit code {process.exitcode}: {job.errors()}"
    return min(time.monotonic() - start, first + _PROGRESS)


def _wait(process: BaseProcess, job: Job, rng: random.Random, life: float) -> None:
    """Wait for the moment of a kill: a random time, or shortly after the n-th creation, growth or rename of a file."""
    look = rng.choice((None, job.files, job.begun, job.begun))
    if look is None:
        process.join(rng.uniform(0, life))
        return
    left, before = rng.randint(1, 6), look()
    while left > 0 and process.is_alive():
        now = look()
        left -= len(now - before)
        before = now
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.005))


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code is 1 if a file was lost."""
    parser = new_parser(__doc__, "python -m tests.kill_everything")
    parser.add_argument("--kills", type=int, default=30, help="kills of each script (default 30)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default 0)")
    parser.add_argument("--scripts", nargs="+", choices=SCRIPTS, default=SCRIPTS, help="scripts to kill (default all)")
    options = parser.parse_args(arguments)
    rng = random.Random(options.seed)
    lost = False
    print(f"{'script':16} {'kills':>5} {'in saves':>8} {'restarts':>8} {'runs':>5} {'s':>5}  result", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        jobs = make_jobs(Path(folder), iterations=2 * options.kills)
        for script in options.scripts:
            tally, result, start = Counter(), "nothing lost", time.monotonic()
            try:
                tally = kill_often(jobs[script], options.kills, rng)
            except (AssertionError, CheckpointError) as error:
                result, lost = f"LOST: {error}", True
            counts = f"{tally['kills']:5} {tally['in saves']:8} {tally['kills']:8} {tally['runs']:5}"
            print(f"{script:16} {counts} {time.monotonic() - start:5.0f}  {result}", flush=True)
    return int(lost)


if __name__ == "__main__":
    raise SystemExit(main())
