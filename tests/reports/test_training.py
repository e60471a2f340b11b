import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from configs.settings import read_settings
from reports.training import averaged, read_log, spread, training_plots, write_training_report
from utils.errors import GasnetError


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """What a run of 400 iterations leaves, as its log and pictures are written."""
    folder = tmp_path_factory.mktemp("runs") / "first<run>"
    (folder / "pictures").mkdir(parents=True)
    lines = []
    for t in range(10, 401, 10):
        terms = {"adversarial": 1 + 1 / t, "recons": 1000 / t}
        lines.append(
            {"iteration": t}
            | {f"joint/{name}": value for name, value in {**terms, "total": sum(terms.values())}.items()}
            | {"discriminator/total": 0.5, "lr/segmenter": 1e-4, "lr/generator": 1e-5, "seconds_per_iteration": 0.25}
        )
        if t % 100 == 0:
            dice = {100: 0.2, 200: 0.6, 300: 0.4, 400: 0.6}[t]
            lines.append({"iteration": t, "valid/dice": dice, "validh/false_positive_ml": 100.0 - t / 10})
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / "metrics.jsonl").write_text(text + '\n{"iteration": 410, "joint/to')
    for t in range(1, 41):
        colour = Image.fromarray(np.full((30, 40, 3), 5 * t, np.uint8))
        colour.save(folder / "pictures" / f"{10 * t:07d}.png")
    settings = read_settings(
        None, ["EXP.ID=first", "SOLVER.ITER_MAX=500", "LOSS.MIL=10", "IMAGE.SIZE=[20,64,64]", "IMAGE.SLICES=16"]
    )
    (folder / "settings.yaml").write_text(settings.to_yaml())
    record = {"command": "train.py <x>", "outcome": "finished", "versions": {"torch": "2.11"}, "settings": {"A": 1}}
    (folder / "ledger" / "runs").mkdir(parents=True)
    for name, entry in (("1", {"command": "earlier"}), ("2", record)):
        (folder / "ledger" / "runs" / f"{name}.json").write_text(json.dumps(entry))
    return folder


def test_lines_that_are_no_entries_are_passed_over(run_folder, tmp_path):
    assert len(read_log(run_folder / "metrics.jsonl")) == 44
    (tmp_path / "metrics.jsonl").write_bytes(
        b'[]\n{}\n7\n\xff\n{"iteration": 3, "a": "text", "b": 1.5}\n{"iteration": "x"}\n'
    )
    assert read_log(tmp_path / "metrics.jsonl") == [{"iteration": 3, "b": 1.5}]
    assert read_log(tmp_path / "none.jsonl") == []


def test_pictures_are_spread_and_curves_averaged():
    assert spread([1, 2, 3], 5) == [1, 2, 3]
    assert spread(list(range(11)), 3) == [0, 5, 10]
    (x, y), every = averaged((np.arange(7.0), np.arange(7.0) ** 2), 3)
    # Of 3 and 3 and 1: means of 0, 1, 4 and 9, 16, 25 and 36.
    assert every == 3
    assert x.tolist() == [1, 4, 6]
    np.testing.assert_allclose(y, [5 / 3, 50 / 3, 36])


def test_the_curves_say_in_words_what_they_show(run_folder):
    plots = training_plots(read_log(run_folder / "metrics.jsonl"))
    titles = [re.search(r'aria-label="([^.]*)', plot.svg).group(1) for plot in plots]
    assert titles == [
        "Validation Dice", "Lesion found in unlabelled scans", "Losses of the joint objective",
        "Losses of the discriminator objective", "Learning rates", "Seconds per iteration",
    ]  # fmt: skip
    # Of two equal ones the first is kept, as training does it.
    assert plots[0].caption == "Best 0.600 at iteration 200; last 0.600 at iteration 400."
    assert plots[1].caption == "Last, at iteration 400: validh/false_positive_ml 60."
    assert plots[2].caption == "Last, at iteration 400: adversarial 1, recons 2.5, total 3.5."
    assert "recons" in re.sub(r"<svg [^>]*>", "", plots[2].svg)
    ids = [name for plot in plots for name in re.findall(r'\bid="([^"]+)"', plot.svg)]
    assert len(set(ids)) == len(ids)


def test_a_long_log_is_drawn_with_bounded_size():
    rng = np.random.default_rng(0)
    noise = np.exp(rng.normal(size=6000))
    entries = [{"iteration": 50 * t, "joint/total": float(value)} for t, value in enumerate(noise, 1)]
    (plot,) = training_plots(entries)
    assert "Each point is the mean of 20 entries of the log." in plot.caption
    assert len(plot.svg) < 60_000


def test_a_run_that_stops_early_is_measured_against_what_it_will_do(run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    settings = read_settings(folder / "settings.yaml", ["SOLVER.STOP_AFTER=450"])
    (folder / "settings.yaml").write_text(settings.to_yaml())
    page = write_training_report(folder).read_text(encoding="utf-8")
    assert "iteration 400 of 450;" in page
    assert "of 500" not in page


def test_the_page_shows_curves_pictures_and_settings(run_folder, opened):
    path = write_training_report(run_folder)
    assert path == run_folder / "report.html"
    with opened(path) as page:
        header = page.locator("header").inner_text()
        assert "Training first" in header
        assert "iteration 400 of 500; best validation Dice 0.600 at iteration 200" in header
        assert "not a medical device" in header
        assert page.locator(".plot svg[role=img]").count() == 6

        # 24 of the 40 pictures, the first and the last among them, whose grey values are 5 times their number.
        slider, picture = page.locator("#picture-slider"), page.locator("#picture")
        assert slider.get_attribute("max") == "23"
        value = """image => image.decode().then(() => { const canvas = document.createElement("canvas");
            const context = canvas.getContext("2d"); context.drawImage(image, 0, 0);
            return [...context.getImageData(20, 15, 1, 1).data] })"""
        assert picture.evaluate(value)[0] == pytest.approx(200, abs=3)
        assert "iteration 400" in picture.get_attribute("alt")
        slider.focus()
        page.keyboard.press("Home")
        assert page.locator("#picture-iteration").inner_text() == "10"
        assert picture.evaluate(value)[0] == pytest.approx(5, abs=3)

        visible = page.locator("#settings tbody tr:visible").all_inner_texts()
        assert [text.split()[0] for text in visible] == [
            "EXP.ID", "IMAGE.SIZE", "IMAGE.SLICES", "SOLVER.ITER_MAX", "LOSS.MIL",
        ]  # fmt: skip
        assert visible[-1].split() == ["LOSS.MIL", "10", "1000"]
        page.locator("#only-changed").uncheck()
        assert page.locator("#settings tbody tr:visible").count() > 60

        page.locator("footer summary").click()
        facts = page.locator(".facts").inner_text()
        assert "train.py <x>" in facts
        assert "2.11" in facts
        assert "earlier" not in facts


def test_a_run_that_has_logged_nothing_yet_has_a_page_and_another_folder_none(tmp_path):
    (tmp_path / "settings.yaml").write_text("EXP: {ID: young}\n")
    page = write_training_report(tmp_path).read_text(encoding="utf-8")
    assert "nothing logged yet" in page
    assert "Training young" in page
    with pytest.raises(GasnetError, match="holds no training run"):
        write_training_report(tmp_path / "none")


def test_a_damaged_picture_and_settings_of_another_version_are_left_out(run_folder, tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in ("metrics.jsonl", "pictures/0000010.png"):
        shutil.copy(run_folder / name, tmp_path / name)
    (tmp_path / "settings.yaml").write_text("EXP: {OLD: 1}\n")
    (tmp_path / "pictures" / "0000020.png").write_bytes(b"damaged")
    page = write_training_report(tmp_path).read_text(encoding="utf-8")
    assert re.findall(r'"iteration": (\d+)', page) == ["10"]
    assert "1 of 2 pictures of the run." in page
    assert "LOSS" not in page
    assert "best validation Dice 0.600" in page
