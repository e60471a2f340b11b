"""Pages of cases in a real browser: what they show is compared with the arrays that went in."""

import re

import numpy as np
import pytest

from reports.cases import Column, write_case_report
from reports.views import ReportCase, encode_case
from tests.volumes import image_of

SHAPE = (20, 48, 64)
SPACING = (1.5, 2.0, 5.0)
ODD = """</script><script>alert('x')</script>"it's" & <b>bold</b>"""

COLUMNS = (
    Column("dice", "Dice", digits=3, help="2 TP / (2 TP + FP + FN)"),
    Column("predicted_ml", "Predicted", "ml"),
    Column("true_ml", "True", "ml"),
    Column("kind", "Truth"),
    Column("hd95_mm", "HD95", "mm"),
)

VALUES = {
    "b 10": (0.5, 10.0, 12.0, "lesion"),
    ODD: (None, -2.25, None, "unknown"),
    "a 2": (0.75, 9.0, 18.0, "lesion"),
    "c": (float("nan"), 100.0, 0.0, "no lesion"),
}


def masks(seed):
    """Random masks with holes and voxels that touch in corners, of several slices."""
    rng = np.random.default_rng(seed)
    predicted, true = (rng.random(SHAPE) < share for share in (0.4, 0.1))
    predicted[:3] = true[:5] = False
    return predicted, true


def case(case_id, number):
    hu = np.full(SHAPE, -600.0, np.float32)
    hu[:, :, 32:] = 40
    predicted, true = masks(number)
    values = dict(zip(("dice", "predicted_ml", "true_ml", "kind"), VALUES[case_id], strict=True))
    geometry = image_of(np.zeros(SHAPE, np.uint8), SPACING, (-10, 20, 30))
    known = values["true_ml"] is not None
    return ReportCase(case_id, geometry, hu, predicted, true if known else None, np.ones(SHAPE, bool), values)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("a folder") / "report.html"
    views = [encode_case(case(case_id, number)) for number, case_id in enumerate(VALUES)]
    facts = {"model": f"S{ODD}.pth", "device": "cpu"}
    write_case_report(path, f"Title {ODD}", COLUMNS, views, facts)
    return path


def ids(page):
    return page.locator("#cases tbody tr:visible th").all_inner_texts()


def wait_for(page, plane, index):
    page.wait_for_selector(f"#{plane} .stage[data-slice='{index}']")


def shown_slice(page, plane):
    text = page.locator(f"#{plane} output").inner_text()
    return int(re.match(r"slice (\d+) of", text).group(1)) - 1


def enclosed(path, shape):
    """The voxels in a path of borders: to the right of an odd number of vertical edges. And its area, by Green."""
    inside, area, x, y = np.zeros(shape, bool), 0, 0, 0
    for command, numbers in re.findall(r"([Mhvz])([^Mhvz]*)", path):
        if command == "M":
            x, y = map(int, numbers.split())
            start = x, y
        elif command == "h":
            x += int(numbers)
        elif command == "v":
            step = int(numbers)
            inside[min(y, y + step) : max(y, y + step), x:] ^= True
            area += x * step
            y += step
        else:
            assert (x, y) == start, "a loop is not closed"
    return inside, area


def test_the_page_opens_alone_and_lets_no_script_in(report, opened):
    assert report.read_text(encoding="utf-8").count("<script>") == 1
    with opened(report, expected=("Content Security Policy", "Fetch API cannot load")) as page:
        wait_for(page, "axial", shown_slice(page, "axial"))
        assert page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'fetched', () => 'refused')") == "refused"
        page.evaluate(
            "s = document.createElement('script'); s.textContent = 'window.broken = 1'; document.body.append(s)"
        )
        assert page.evaluate("window.broken") is None
        page.locator("footer summary").click()
        assert "cpu" in page.locator("footer .facts").inner_text()
        assert "not a medical device" in page.locator("header").inner_text()


def test_ids_of_any_characters_and_missing_values_are_shown_as_they_are(report, opened):
    with opened(report) as page:
        assert ids(page) == list(VALUES)
        page.locator("#cases tbody button").nth(1).click()
        assert page.locator("#case-id").inner_text() == ODD
        assert page.title() == f"Title {ODD}"
        assert page.locator("b").count() == 0
        assert page.locator("#cases thead th").count() == 5  # an empty column is left out
        for k, shown in enumerate((["0.500", "–", "0.750", "–"], ["10.0", "\N{MINUS SIGN}2.2", "9.0", "100.0"])):  # noqa: RUF001
            assert [row.locator("td").nth(k).inner_text() for row in page.locator("#cases tbody tr").all()] == shown


def test_sorting_puts_missing_values_last(report, opened):
    with opened(report) as page:
        dice = page.locator("#cases thead th").nth(1)
        for order in (["b 10", "a 2", ODD, "c"], ["a 2", "b 10", ODD, "c"]):
            dice.locator("button").click()
            assert ids(page) == order
        page.keyboard.press("Tab")  # to the heading of the predicted volume
        page.keyboard.press("Enter")
        assert ids(page) == [ODD, "a 2", "b 10", "c"]


def test_cases_are_opened_by_click_arrows_and_letters(report, opened):
    with opened(report) as page:
        heading = page.locator("#case-id")
        assert heading.inner_text() == "b 10"
        page.locator("#cases tbody td").nth(4 * 2).click()
        assert heading.inner_text() == "a 2"
        assert "0.750" in page.locator("#values").inner_text()
        for key, shown in (("ArrowDown", "c"), ("j", "c"), ("k", "a 2"), ("ArrowUp", ODD), ("k", "b 10")):
            page.keyboard.press(key)
            assert heading.inner_text() == shown
        # The truth of the next one is not known.
        for button, shown, known in (("#next", ODD, False), ("#previous", "b 10", True)):
            page.locator(button).click()
            assert heading.inner_text() == shown
            assert page.locator("#true-switch").is_visible() == known


def test_the_outlines_follow_the_borders_of_exactly_the_voxels_in_the_masks(report, opened):
    at = "[...document.querySelectorAll('#{} .stage path')].map(e => [e.className.baseVal, e.getAttribute('d') || ''])"
    with opened(report) as page:
        for name, planes, places in (
            ("axial", lambda mask, k: mask[k], (0, 3, 4, 5, 12, 19)),
            ("coronal", lambda mask, k: mask[::-1, k], None),
        ):
            slider = page.locator(f"#{name} input")
            for place in places or range(int(slider.get_attribute("max")) + 1):
                slider.fill(str(place))
                k = shown_slice(page, name)
                wait_for(page, name, k)
                paths = dict(page.evaluate(at.format(name)))
                for which, mask in zip(("predicted", "true"), masks(0), strict=True):
                    inside, area = enclosed(paths[which], planes(mask, k).shape)
                    np.testing.assert_array_equal(inside, planes(mask, k))
                    assert area == inside.sum()
        assert page.locator("#coronal .stage svg").get_attribute("viewBox") == "0 0 64 20"
        # Voxels are 1.5 x 2 mm in axial slices and 1.5 x 5 mm in coronal ones.
        for name, ratio in (("axial", 64 * 1.5 / (48 * 2)), ("coronal", 64 * 1.5 / (20 * 5))):
            box = page.locator(f"#{name} .stage").bounding_box()
            assert box["width"] / box["height"] == pytest.approx(ratio, rel=0.01)


def test_outlines_are_switched_by_box_and_by_key(report, opened):
    with opened(report) as page:
        for name, key in (("predicted", "p"), ("true", "t"), ("cross", "x")):
            path = page.locator(f"#axial .stage path.{name}")
            display = "e => getComputedStyle(e).display"
            assert path.evaluate(display) != "none"
            page.locator(f"#show-{name}").uncheck()
            assert path.evaluate(display) == "none"
            page.keyboard.press(key)
            assert path.evaluate(display) != "none"


def test_slices_are_scrolled_by_keys_wheel_and_slider(report, opened):
    with opened(report) as page:
        stage = page.locator("#axial .stage")
        page.locator("#axial input").fill("10")
        assert shown_slice(page, "axial") == 10
        assert "z = 80.0 mm" in page.locator("#axial output").inner_text()  # 30 + 10 * 5
        stage.focus()
        for key, expected in (("Home", 0), ("End", 19), ("ArrowLeft", 18)):
            page.keyboard.press(key)
            assert shown_slice(page, "axial") == expected
        stage.hover()
        page.mouse.wheel(0, 100)
        page.wait_for_function("document.querySelector('#axial output').textContent.startsWith('slice 18 ')")
        page.locator("#axial input").fill("14")
        wait_for(page, "axial", 14)
        # In the coronal slice, the line of the axial one is in the middle of its row, counted from the top.
        cross = page.locator("#coronal .stage path.cross").get_attribute("d")
        assert cross == f"M0 {19 - 14 + 0.5}H64"


def test_windows_change_the_grey_values_as_they_should(report, opened):
    # HU are -600 and 40. Lung, -1350..150: 255 * 750 / 1500 and 255 * 1390 / 1500. Mediastinum, -160..240: below, half.
    read = """name => { const canvas = document.querySelector(`#${name} canvas`), context = canvas.getContext("2d");
        return [10, 50].map(x => [...context.getImageData(x, canvas.height / 2, 1, 1).data]) }"""
    with opened(report) as page:
        for plane in ("axial", "coronal"):
            wait_for(page, plane, shown_slice(page, plane))
        for window, expected in (("lung", (127.5, 236.3)), ("mediastinum", (0, 127.5)), ("lung", (127.5, 236.3))):
            if window != page.locator("input[name=window]:checked").get_attribute("value"):
                page.keyboard.press("w")
                page.wait_for_timeout(200)
            for plane in ("axial", "coronal"):
                for pixel, value in zip(page.evaluate(read, plane), expected, strict=True):
                    assert pixel == pytest.approx([value, value, value, 255], abs=5)


def test_a_phone_shows_all_of_it_without_scrolling_sideways(report, opened):
    with opened(report, 390, 844, has_touch=True, is_mobile=True, device_scale_factor=2) as page:
        page.locator("#cases tbody button").nth(1).tap()
        assert page.locator("#case-id").inner_text() == ODD
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        # The viewer is below the table, and has come into sight.
        assert page.locator("#axial .stage").bounding_box()["y"] < 844 / 2
