"""The user study's page in a browser, with simulated raters."""

import json
import shutil

import pytest

from evaluation.study import analyse as analyse_script
from evaluation.study import build

SWITCHES = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on PATH")
@pytest.mark.parametrize("planted", ["preference", "tie"])
def test_raters_in_a_browser_lead_to_the_planted_preference_and_to_none_of_a_tie(clips, tmp_path, planted):
    """In the tie each presses the left clip's key whatever it shows: what decides are the sides that the page draws."""
    from playwright.sync_api import sync_playwright

    assert build.main([*clips, "--out", str(tmp_path / "study")]) == 0
    study = tmp_path / "study"
    key = {trial["id"]: trial for trial in json.loads((study / "key.json").read_text())["trials"]}
    data = study / "page" / "study-data.js"
    data.write_text(data.read_text().replace('"min_seconds": 3.0', '"min_seconds": 0.2'))
    answers = tmp_path / "answers"
    answers.mkdir()
    sides: dict[str, list[str]] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=SWITCHES)
        for rater in ("one", "two", "three", "four", "five"):
            context = browser.new_context(accept_downloads=True)
            page = context.new_page()
            address = f"{(study / 'page' / 'index.html').as_uri()}?rater={rater}"
            page.goto(address)
            assert page.locator("#begin").is_disabled()
            page.check("#consent")
            page.click("#begin")
            count = len(key)
            for index in range(count):
                page.wait_for_selector("#choices button:not([disabled])")
                left = page.locator("#left").get_attribute("src")
                trial = _trial_of(page, left)
                first_left = page.evaluate("id => window.STUDY.trials.find(t => t.id === id).first", trial) == left
                tied = planted == "tie" and not key[trial]["check"]
                page.keyboard.press("1" if tied or first_left else "5")  # the first is `good`, or the right person's
                if index == 2:  # closed in the middle: the next visit goes on
                    page.wait_for_function("n => JSON.parse(localStorage.getItem(key)).answers.length === n", arg=3)
                    page.close()
                    page = context.new_page()
                    page.goto(address)
            with page.expect_download() as download:
                page.click("#save")
            download.value.save_as(answers / f"{rater}.json")
            saved = json.loads((answers / f"{rater}.json").read_text())
            assert len(saved["answers"]) == count
            sides[rater] = [row["left"] for row in sorted(saved["answers"], key=lambda row: row["trial"])]
            context.close()
        browser.close()
    assert len({tuple(side) for side in sides.values()}) > 1  # sides are drawn for each rater
    rules = json.loads((study / "key.json").read_text())
    rules["rules"]["min_seconds"] = 0.1
    (study / "key.json").write_text(json.dumps(rules))
    words = ["--key", str(study / "key.json"), "--answers", str(answers), "--out", str(tmp_path / "out")]
    assert analyse_script.main(words) == 0
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert found["excluded"] == {}
    row = found["pairs"][0]
    assert (row["first"], row["answers"], row["raters"]) == ("good", 15, 5)
    if planted == "tie":
        assert row["preferred"] is None
        assert abs(row["signed_mean"]["mean"]) < 1
    else:
        assert (row["preferred"], row["signed_mean"]["mean"]) == ("good", 2.0)


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on PATH")
def test_raters_of_one_browser_keep_their_own_answers(clips, tmp_path):
    from playwright.sync_api import sync_playwright

    assert build.main([*clips, "--out", str(tmp_path / "study")]) == 0
    data = tmp_path / "study" / "page" / "study-data.js"
    data.write_text(data.read_text().replace('"min_seconds": 3.0', '"min_seconds": 0.2'))
    address = (tmp_path / "study" / "page" / "index.html").as_uri()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=SWITCHES)
        context = browser.new_context()
        for rater, answered in (("?rater=one", 2), ("?rater=two", 1), ("", 1)):
            page = context.new_page()
            page.goto(address + rater)
            named = f"the name {rater[7:]}, which is in the link to this page" if rater else "a random number, no name"
            assert f"The file holds {named}, your answers" in page.locator("#start").inner_text()
            page.check("#consent")
            page.click("#begin")
            for _ in range(answered):
                page.wait_for_selector("#choices button:not([disabled])")
                page.keyboard.press("3")
            page.wait_for_function("n => JSON.parse(localStorage.getItem(key)).answers.length === n", arg=answered)
            page.close()
        page = context.new_page()
        page.goto(f"{address}?rater=one")
        page.wait_for_selector("#trial:not([hidden])")
        assert page.locator("#progress").inner_text().startswith("3 of ")
        browser.close()


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on PATH")
@pytest.mark.parametrize("blocked", ["setItem", "getItem"])
def test_a_browser_that_keeps_nothing_says_so_and_every_answer_is_of_the_trial_shown(clips, tmp_path, blocked):
    """As in a frame of another site whose cookies are blocked."""
    from playwright.sync_api import sync_playwright

    assert build.main([*clips, "--out", str(tmp_path / "study")]) == 0
    data = tmp_path / "study" / "page" / "study-data.js"
    data.write_text(data.read_text().replace('"min_seconds": 3.0', '"min_seconds": 0.2'))
    throws = "() => { throw new DOMException('denied', 'SecurityError'); }"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=SWITCHES)
        page = browser.new_context(accept_downloads=True).new_page()
        names = {"setItem"} | {blocked}
        page.add_init_script("".join(f"Storage.prototype.{name} = {throws};" for name in sorted(names)))
        page.goto((tmp_path / "study" / "page" / "index.html").as_uri())
        page.check("#consent")
        page.click("#begin")
        assert "do not close or reload it" in page.locator("#unsaved").inner_text()
        shown = []
        for _ in range(page.evaluate("trials.length")):
            page.wait_for_selector("#choices button:not([disabled])")
            shown.append(_trial_of(page, page.locator("#left").get_attribute("src")))
            page.keyboard.press("3")
        with page.expect_download() as download:
            page.click("#save")
        saved = json.loads(download.value.path().read_text())
        assert [row["trial"] for row in saved["answers"]] == shown
        browser.close()


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on PATH")
def test_a_pair_that_cannot_be_shown_is_tried_again_or_left_out(clips, tmp_path):
    from playwright.sync_api import sync_playwright

    assert build.main([*clips, "--out", str(tmp_path / "study")]) == 0
    folder = tmp_path / "study" / "page"
    data = folder / "study-data.js"
    data.write_text(data.read_text().replace('"min_seconds": 3.0', '"min_seconds": 0.2'))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=SWITCHES)
        page = browser.new_context(accept_downloads=True).new_page()
        page.goto((folder / "index.html").as_uri())
        first, second = (folder / page.evaluate(f"trials[{index}].trial.second") for index in range(2))
        whole = second.read_bytes()
        for broken in (first, second):
            broken.write_bytes(b"no video")
        page.evaluate("trials[2].trial.picture = 'media/none.png'")
        page.check("#consent")
        page.click("#begin")
        page.wait_for_selector("#problem:not([hidden])")
        assert f"{first.name} cannot be played" in page.locator("#reason").inner_text()
        page.keyboard.press("1")
        assert page.evaluate("state.answers.length") == 0
        page.click("#skip")
        page.wait_for_function("state.answers.length === 1 && problem")
        second.write_bytes(whole)
        page.click("#again")
        page.wait_for_selector("#choices button:not([disabled])")
        assert page.locator("#problem").is_hidden()
        page.keyboard.press("3")
        page.wait_for_selector("#problem:not([hidden])")
        assert "The picture" in page.locator("#reason").inner_text()
        saved = page.evaluate("JSON.parse(localStorage.getItem(key)).answers")
        assert [row["score"] for row in saved] == [None, 0]
        assert first.name in saved[0]["problem"]
        browser.close()


def _trial_of(page, left: str) -> str:
    return page.evaluate("source => window.STUDY.trials.find(t => t.first === source || t.second === source).id", left)
