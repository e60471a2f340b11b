from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from datasets.phantom.make import write_phantoms
from tests.volumes import write
from utils.cli import run

SPLITS = {
    "train_id_L": ["sick_0"],
    "train_id_WL": ["sick_1", "sick_2", "sick_3"],
    "train_id_H": ["well_0", "well_1"],
    "valid_id_L": ["sick_4", "sick_5"],
    "valid_id_H": ["well_2"],
}

CONFIG = """
EXP: {ID: sample1_recons_origImgToD_genImgToD_perception_MIL, OUTPUT_DIR: %(output)s}
DATASET: {ROOT: %(root)s, SPLIT: {VALIDH: valid_id_H}}
DATALOADER: {NUM_WORKERS: 0}
IMAGE: {SIZE: [20, 64, 64], SLICES: 16}
MODEL: {WIDTH: {UNET: 2, G: 2, D: 2}}
SOLVER:
  BATCH_SIZE: 2
  ITER_MAX: 8
  DISCRIMINATOR_STEPS: 2
  OPTIMIZER: {U: {NAME: Adam, LR: 1e-2}, G: {NAME: Adam, LR: 1e-3}, D: {NAME: RMSprop, LR: 1e-3}}
LOSS: {MIL_START: 3, PERCEPTION_START: 3}
INTERVAL: {LOG: 2, VALID: 4, SAVE: 4, PICTURE: 4}
"""


LONG_FILES = (
    *("test_train.py", "test_states.py", "test_kills.py", "test_readme.py", "test_test.py", "test_predict.py"),
    "test_command.py",
)


@pytest.fixture(scope="session", autouse=True)
def no_cache_of_the_user(tmp_path_factory):
    """Converted networks go to a folder of the tests, in their subprocesses too."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    """A cohort of nine tiny crops: noisy dark lungs, and bright blobs in the sick ones."""
    root = tmp_path_factory.mktemp("cohort with a space")
    rng, place = np.random.default_rng(0), {"spacing": (2.0, 1.5, 6.0), "origin": (-60.0, -40.0, 10.0)}
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (20, 64, 64)), indexing="ij")
    lung = (((np.abs(x) - 0.5) / 0.4) ** 2 + (y / 0.9) ** 2 + (z / 1.1) ** 2 < 1).astype(np.uint8)
    for ids in SPLITS.values():
        for case_id in ids:
            lesion = np.zeros_like(lung)
            if case_id.startswith("sick"):
                centre = rng.uniform(-0.3, 0.3, 3) + np.array([0, 0, rng.choice([-0.5, 0.5])])
                distance = np.sqrt(((np.stack([z, y, x], -1) - centre) ** 2).sum(-1))
                lesion = ((distance < 0.25) & (lung == 1)).astype(np.uint8)
                write(root / "lesion" / f"{case_id}.nii.gz", lesion, **place)
            noise = ndimage.gaussian_filter(rng.normal(size=lung.shape), 1) * 40
            image = np.clip(200 - 120.0 * lung + 80 * lesion + noise, 0, 255).astype(np.float32)
            write(root / "images" / f"{case_id}.nii.gz", image, **place)
            write(root / "lung" / f"{case_id}.nii.gz", lung, **place)
    (root / "id_txt").mkdir()
    for name, ids in SPLITS.items():
        (root / "id_txt" / f"{name}.txt").write_text("\n".join(ids))
    return root


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """Three tiny raw scans with their lungs and lesions: two diseased, one healthy."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, healthy=1, diseased=2, size=(24, 48, 48), seed=5)
    return folder


def write_config(folder, cohort):
    """Write a config of a few iterations on the tiny cohort, with results in FOLDER/output."""
    path = folder / "config.yaml"
    path.write_text(CONFIG % {"root": cohort, "output": folder / "output"})
    return path


@pytest.fixture
def config(cohort, tmp_path):
    return write_config(tmp_path, cohort)


@pytest.fixture(autouse=True)
def _one_thread():
    """A test may take more threads; the next one has one again."""
    import torch

    yield
    torch.set_num_threads(1)


@pytest.fixture
def ends(capsys):
    """Checks the exit code of a command and what it says, printed or as its errors, which is returned."""

    def check(code, command, *texts):
        capsys.readouterr()
        try:
            assert run(command) == code
        except SystemExit as end:
            assert end.code == code  # noqa: PT017
        said = "".join(capsys.readouterr())
        assert all(text in said for text in texts), said
        return said

    return check


@pytest.fixture
def run_folder(tmp_path):
    """Where a run with the config of the fixture `config` writes."""
    return Path(tmp_path) / "output" / "sample1_recons_origImgToD_genImgToD_perception_MIL"


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config, items):
    """Skip slow tests unless asked for; files that take minutes come first, as one process would wait for them."""
    items.sort(key=lambda item: item.path.name not in LONG_FILES)
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow; runs with --slow"))
