"""The HTML report in a browser."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_backbones import write_dino

from contextanyone_core.media.video_io import write_clip
from evaluation import run
from evaluation.clip_set import Item
from evaluation.metrics.evaluate import Results
from evaluation.metrics.page import mean_curve, write_page

SWITCHES = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
EVIL = '<script>window.broken = 1</script></script><b>{{js}} & "quoted"'


@pytest.fixture
def report(tmp_path) -> Path:
    """Results of two systems on three items, with a prompt and a system's name that are markup."""
    rows = []
    for index in range(3):
        name = f"a clip {index}.mp4"
        rng = np.random.default_rng(index)
        still = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
        Image.fromarray(still).save(tmp_path / f"{index}.png")
        for system, step in (("slow", 1), ("<i>fast</i>", 4)):
            folder = tmp_path / system.strip("</i>")
            folder.mkdir(exist_ok=True)
            write_clip(folder / name, np.stack([np.roll(still, step * time, axis=1) for time in range(9)]), {})
        rows.append({"id": f"i{index}", "reference": f"{index}.png", "later": EVIL, "seed": 0, "file": name})
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_dino(tmp_path / "dino")
    words = ["--set", str(tmp_path / "set.jsonl"), "--dino", str(tmp_path / "dino"), "--out", str(tmp_path / "out")]
    systems = [f"slow={tmp_path / 'slow'}", f"<i>fast</i>={tmp_path / 'fast'}"]
    assert run.main([*words, "--videos", *systems, "--base", "slow"]) == 0
    return tmp_path / "out" / "report.html"


def test_curves_are_averaged_by_hand():
    assert mean_curve([[(0.0, 1.0), (1.0, 0.5)], [(0.0, 0.8), (2.0, 0.5)], [(0.0, 0.1)]]) == [
        (0.0, pytest.approx(0.9)),
        (1.5, pytest.approx(0.5)),
    ]
    assert mean_curve([[], []]) == []


def test_the_page_holds_everything_but_clips_and_escapes_texts(report):
    text = report.read_text()
    assert "<script>window.broken" not in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on PATH")
def test_the_page_in_a_browser(report):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=SWITCHES)
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(report.as_uri())
        names = "nodes => nodes.map(node => node.textContent)"

        def column() -> list[str]:
            return page.eval_on_selector_all("#table tbody td:first-child", names)

        assert column() == ["slow", "<i>fast</i>", "(still reference)", "(another person)"]
        page.click("#table button:text-is('motion')")
        assert column()[0] == "<i>fast</i>" or column()[0] == "(another person)"
        assert column()[-1] == "(still reference)"
        page.click("#table th[aria-sort=descending] button")
        assert column()[0] == "(still reference)"
        assert page.locator("#comparisons tbody tr").count() > 0
        assert page.locator("#drift polyline").count() == 4
        page.select_option("#metric", "motion")
        assert page.locator("#distribution circle").count() == 4 * 3
        page.select_option("#item", "i2")
        assert page.locator("#prompt").text_content() == EVIL
        assert page.locator("#players video").count() == 2
        page.wait_for_function(
            "[...document.querySelectorAll('#players video')].every(video => video.readyState >= 1)", timeout=20_000
        )
        widths = page.eval_on_selector_all("#players video", "nodes => nodes.map(node => node.videoWidth)")
        assert widths == [48, 48]
        page.wait_for_function("document.querySelector('#players img').naturalWidth === 48")
        assert page.evaluate("window.broken") is None
        assert errors == []
        browser.close()


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on PATH")
def test_many_systems_have_whole_names_and_lines_of_their_own_and_animations_are_shown(tmp_path):
    from playwright.sync_api import sync_playwright

    names, item = [f"m{index}" for index in range(18)], Item("i", tmp_path / "a.png", "", "It walks.", 0, "a.gif")
    for file in ("a.png", "a.gif"):
        Image.new("RGB", (32, 32)).save(tmp_path / file)
    curves = {name: {"i": [(0.0, 0.5), (1.0, index / 18)]} for index, name in enumerate(names)}
    write_page(Results({}, curves, names, names, 1), [], {}, ([item], dict.fromkeys(names, tmp_path)), tmp_path)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=SWITCHES)
        page = browser.new_page()
        page.goto((tmp_path / "report.html").as_uri())
        bottom = "text.getBBox().y + text.getBBox().height <= text.ownerSVGElement.viewBox.baseVal.height"
        assert page.eval_on_selector_all("#drift text", f"texts => texts.every(text => {bottom})")
        looks = "lines => lines.map(line => line.getAttribute('stroke') + line.getAttribute('stroke-dasharray'))"
        assert len(set(page.eval_on_selector_all("#drift polyline", looks))) == 18
        pictures = "[...document.querySelectorAll('#players img')].filter(one => one.naturalWidth === 32).length === 19"
        page.wait_for_function(pictures, timeout=20_000)
        browser.close()
