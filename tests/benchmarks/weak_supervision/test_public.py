import json

import numpy as np
import pytest
import torch

from benchmarks.weak_supervision import public
from benchmarks.weak_supervision.cohort import Counts, Size, write_cohort
from benchmarks.weak_supervision.public import PUBLISHED, as_markdown, main, row_settings
from models import Segmenter
from tests.benchmarks.weak_supervision.test_cohort import read_facts
from tests.datasets.public.test_command import covidseg, made, medseg, mosmed
from tests.datasets.public.test_command import lungmask as lungmask  # a fixture
from utils.errors import GasnetError

SMALL = (
    "IMAGE.SIZE=[16, 32, 64]", "IMAGE.SLICES=16", "MODEL.WIDTH={UNET: 2, G: 2, D: 2}", "DATALOADER.NUM_WORKERS=0",
    "SOLVER.STOP_AFTER=3", "SOLVER.BATCH_SIZE=2", "SOLVER.DISCRIMINATOR_STEPS=1", "LOSS.PERCEPTION_START=1",
    "INTERVAL={LOG: 2, VALID: 2, SAVE: 4, PICTURE: 4}",
)  # fmt: skip


def settings_of(name, config=public.CONFIG, overrides=()):
    return row_settings(name, 3, public.Path("c"), public.Path("o"), config, overrides)


def test_rows_differ_in_what_learns_besides_s_only():
    gasnet, without_d, alone = (settings_of(n) for n in ("gasnet-1", "no-adversarial", "s-1"))
    assert settings_of("s-1-alone").training_splits == ("LABELED",)
    assert gasnet.exp.constraints == {"recons", "origImgToD", "genImgToD", "perception"}
    assert (without_d.exp.constraints, without_d.loss.adversarial) == ({"perception"}, 0)
    assert alone.training_splits == ("LABELED", "HEALTHY")
    for row in (without_d, alone):
        assert (row.solver.optimizer, row.solver.last_iteration) == (gasnet.solver.optimizer, 20_000)
        assert (row.image, row.dataset) == (gasnet.image, gasnet.dataset)
        assert row.loss.segmentation == gasnet.loss.segmentation
    assert set(PUBLISHED) == set(public.TESTED)


def test_from_downloads_to_the_table(tmp_path, capsys):
    cohort = tmp_path / "cohort"
    downloads = {"covidseg": covidseg, "medseg": medseg, "mosmed": mosmed}
    for name, download in downloads.items():
        more = ["--lesion-labels", "1", "2", "3"] if name == "medseg" else []
        more += ["--lungs", "lungmask"] if name == "mosmed" else []
        assert made(name, download(tmp_path / name), cohort, *more, size=(16, 32, 64)) == 0
    capsys.readouterr()
    options = ["--output", str(tmp_path / "o"), "--device", "cpu", "--quiet"]
    arguments = [str(cohort), *SMALL, *options, "--rows", "s-1", "gasnet-1", "--seeds", "0", "1"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| row | seeds | A_sub1 | A_sub2 | B | C |"
    assert [line.split("|")[1].strip() for line in lines[2:5]] == ["s-1", "gasnet-1", "readme of the published code"]
    assert lines[4].endswith("| 76.7 | 63.2 | 60.2 | 54.2 |")
    assert "MedSeg (B): lesion is labels 1 2 3, as in the published test" in "\n".join(lines)
    # The means are those of the scans in the results.
    results = [tmp_path / "o" / "results" / f"gasnet-1_seed_{seed}.json" for seed in (0, 1)]
    means = [100 * np.mean(list(json.loads(path.read_text())["dice"]["C"].values())) for path in results]
    assert lines[3].split("|")[6].strip() == f"{np.mean(means):.1f} ± {np.std(means):.1f}"
    # Nothing is trained again, and results of other settings are not mixed.
    before = (tmp_path / "o" / "table.md").read_text()
    assert main(arguments) == 0
    assert (tmp_path / "o" / "table.md").read_text() == before
    with pytest.raises(GasnetError, match="made with other settings"):
        main([str(cohort), "LOSS.RECONS=7", *arguments[1:]])


def test_lists_without_lesions_hold_the_volume_found(tmp_path, monkeypatch):
    root = tmp_path / "cohort"
    write_cohort(root, Size((16, 32, 64), Counts(1, 1, 1, 1, 1, 2, 2)), seed=5)
    for path in (root / "lesion").glob("testh_*"):
        path.unlink()
    small = ["IMAGE.SIZE=[16, 32, 64]", "IMAGE.SLICES=16"]
    settings = row_settings("s-1", 0, root, tmp_path / "o", public.CONFIG, small)
    everything = Segmenter(2)
    with torch.no_grad():
        everything.predict.weight.zero_()
        everything.predict.bias.fill_(9)
    monkeypatch.setattr(public, "load_segmenter", lambda path: (everything, None))
    found = public.test_segmenter(settings, torch.device("cpu"), ["test", "testh"])
    lesion, lung = ({name: facts[key] for name, facts in read_facts(root).items()} for key in ("lesion_ml", "lung_ml"))
    assert found["found_ml"]["testh"] == pytest.approx({n: lung[n] for n in ("testh_000", "testh_001")}, abs=0.1)
    expected = {n: 2 * lesion[n] / (lesion[n] + lung[n]) for n in ("test_000", "test_001")}
    assert found["dice"]["test"] == pytest.approx(expected, abs=1e-3)
    (tmp_path / "0.json").write_text(json.dumps({"row": "s-1", "seed": 0, **found}))
    lines = as_markdown([tmp_path / "0.json"], ["test", "testh"]).splitlines()
    assert lines[0] == "| row | seeds | test | testh |"
    assert lines[2].endswith(f"| {np.mean(list(found['found_ml']['testh'].values())):.1f} ml |")
    assert "readme" not in "".join(lines)


def test_wrong_options(ends):
    ends(2, lambda: main(["c", "--output", "o", "--rows", "s-2"]), "invalid choice: 's-2'")
    ends(2, lambda: main(["c", "--output", "o", "--seeds", "-1"]), "--seeds must be at least 0")
