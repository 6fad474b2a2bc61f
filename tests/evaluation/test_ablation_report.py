"""The report of an ablation: means and differences of one seed or several, verdicts, the rows in the documents."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

from evaluation import ablate
from evaluation.ablation import runner, statistics
from evaluation.ablation.plan import Claim, load_plan
from evaluation.ablation.report import describe, table
from evaluation.ablation.statistics import judge, of_both, summary, values
from evaluation.significance import holm, paired_p
from training.world import ATTRIBUTES

ROOT = Path(__file__).resolve().parents[2]
PLAN, COMPARISON = (ROOT / "evaluation" / f"{name}.yaml" for name in ("ablations", "comparison"))


def result(mean: float, seed: int, count: int = 60) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    right = np.clip(rng.normal(mean, 0.05, count), 0, 1).tolist()
    by_attribute, scene = [mean] * len(ATTRIBUTES), {"action": 0.3, "place": 1.0, "light": 1.0}
    measured = {"attributes": right, "first": right, "last": right, "copied": right, "motion": right}
    return {**measured, "by_attribute": by_attribute, "scene": scene}


def even(*means: float) -> dict[int, dict[str, object]]:
    """Runs of the seeds 0, 1, ..., whose characters are all alike."""
    return {seed: {**result(0.5, 0), "attributes": [mean / 100] * 60} for seed, mean in enumerate(means)}


def claim(better: str, worse: str) -> Claim:
    return Claim(text=f"{better} > {worse}", better=better, worse=worse)


def test_a_planted_difference_is_confirmed_a_reversed_one_refuted_a_tie_left_open():
    cells = {
        "high": {seed: result(0.8, seed) for seed in range(3)},
        "low": {seed: result(0.5, seed) for seed in range(3)},
        "same": {seed: result(0.8, 10 + seed) for seed in range(3)},
        "once": {0: result(0.3, 1)},
    }
    claims = [claim("high", "low"), claim("low", "high"), claim("high", "same"), claim("high", "once")]
    assert [found.verdict for found in judge(claims, cells) if found] == ["confirmed", "refuted", "open", "open"]
    assert judge([claim("high", "absent")], {**cells, "absent": {}}) == [None]


def test_a_difference_is_of_the_seeds_that_both_cells_have():
    """Three runs less one would compare seeds with one another; a seed that only one cell has says nothing."""
    full, other = even(50, 60, 70), {0: even(45)[0], 7: even(90)[0]}
    seeds, *both = of_both(full, other, "attributes")
    assert seeds == (0,)
    assert summary(*both)["seeds"] == pytest.approx([5.0])
    found = judge([claim("full", "other")], {"full": full, "other": other})[0]
    assert (found.difference, found.seeds, found.p, found.verdict) == (pytest.approx(5), (0,), 1.0, "open")
    assert of_both(full, {7: other[7]}, "attributes") is None


def test_a_claim_that_cannot_be_tested_yet_counts_among_all():
    """Neither a missing cell nor one of a single seed makes the others easier to confirm."""
    cells = {"high": even(58, 60, 62), "low": even(54, 55.5, 57), "once": even(5)}
    alone = judge([claim("high", "low")], cells)[0]
    assert 0.05 / 5 < alone.p < 0.05
    assert alone.verdict == "confirmed"
    for other in ("absent", "once"):
        together = judge([*[claim("high", other)] * 4, claim("high", "low")], cells)
        assert {found.verdict for found in together if found} == {"open"}


@pytest.mark.parametrize(("seeds", "least"), [(2, 0.87), (3, 0.91)])
def test_intervals_of_few_seeds_hold_the_truth_about_as_often_as_they_say(seeds, least):
    """Seeds that differ by a standard deviation of 4 points; of two seeds the mean's holds it in 90 % of the cases."""
    rng, held = np.random.default_rng(0), np.zeros(2, int)

    def cell() -> np.ndarray:
        return 50 + rng.normal(0, 4, (seeds, 1)) + rng.normal(0, 12, (1, 60)) + rng.normal(0, 6, (seeds, 60))

    for _ in range(400):
        for place, (truth, found) in enumerate(((50, summary(cell())), (0, summary(cell(), cell())))):
            held[place] += found["ci95"][0] <= truth <= found["ci95"][1]
    assert (held >= least * 400).all()
    assert (held <= 0.985 * 400).all()


def test_characters_of_two_cells_are_paired():
    """What is hard for both is no spread of their difference."""
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 20, (1, 60))
    one, other = (level + hard + rng.normal(0, 2, (3, 60)) for level in (53, 50))
    low, high = summary(one, other)["ci95"]
    assert high - low < 2 < np.ptp(summary(one)["ci95"])


def test_what_would_settle_a_claim_follows_from_what_is_there():
    plan = load_plan(PLAN)
    place = {claim.text: index for index, claim in enumerate(plan.claims)}
    emphasis = place["Emphasize-Attention keeps more of the character"]
    phantom = place["The two streams keep more than Phantom's way"]

    def settled_by(index: int, full: int, other: int) -> str:
        found = {
            "full": [{"seed": seed, "measured": result(0.5, seed)} for seed in range(full)],
            "no_emphasis": [{"seed": seed, "measured": result(0.5, 10 + seed)} for seed in range(other)],
        }
        return describe(plan, found)["claims"][index]["settled_by"]

    assert settled_by(emphasis, 0, 0) == "full with seeds 0, 1, 2; no_emphasis with seeds 0, 1, 2"
    assert settled_by(emphasis, 3, 2) == "no_emphasis with seed 2"
    assert settled_by(emphasis, 3, 3) == "more seeds than the plan's: the spread between them is too large for 3"
    assert settled_by(phantom, 3, 0) == "phantom with seed 0; more seeds of phantom than the plan's one"


def test_a_report_of_one_seed_says_so_and_which_seeds_are_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(statistics, "_RESAMPLES", 100)
    plan, means = load_plan(COMPARISON), {"ours": 0.5, "phantom": 0.45, "vace": 0.6}
    every = {
        name: [{"seed": seed, "measured": result(mean, 10 * place + seed, 200)} for seed in range(3)]
        for place, (name, mean) in enumerate(means.items())
    }
    first = {name: runs[:1] for name, runs in every.items()}
    text = table(describe(plan, first))
    assert text.count("| 1 of 3 |") == 3
    assert "200 test characters" in text
    assert "three seeds" not in text
    assert "says nothing of other training runs" in text
    assert describe(plan, first)["cells"]["vace"]["missing"] == [1, 2]
    assert "missing" not in describe(plan, every)["cells"]["vace"]
    assert table(describe(plan, {})).count("| not run | | | | 0 of 3 |") == 3
    for found, code in (({}, 3), (first, 3), ({**every, "vace": every["vace"][:2]}, 3), (every, 0)):
        monkeypatch.setattr(runner.Runner, "results", lambda self, found=found: found)
        assert ablate.main([str(COMPARISON), "--out", str(tmp_path), "--report-only"]) == code
    assert table(describe(plan, every)) == capsys.readouterr().out[-len(table(describe(plan, every))) :]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_seeds_that_differ_much_confirm_nothing_even_if_they_do_not_overlap():
    apart = judge([claim("high", "low")], {"high": even(52, 60, 68), "low": even(51, 44, 45)})[0]
    assert apart.verdict == "open"
    assert apart.ci95[0] < 0 < apart.ci95[1]  # the interval says what the verdict says
    assert judge([claim("high", "low")], {"high": even(59, 60, 61), "low": even(44, 45, 46)})[0].verdict == "confirmed"


def test_seeds_that_differ_widen_the_interval():
    alike = summary(np.full((3, 40), 50.0))
    apart = summary(np.repeat([[40.0], [50.0], [60.0]], 40, axis=1))
    assert alike["ci95"] == [50.0, 50.0]
    assert apart["ci95"] == pytest.approx([50 - 4.303 * 10 / np.sqrt(3), 50 + 4.303 * 10 / np.sqrt(3)], abs=0.01)
    assert apart["seeds"] == [40.0, 50.0, 60.0]


def test_the_interval_of_a_share_ends_where_shares_do():
    few = np.asarray([[0.0, 0.0, 0.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    low, high = summary(few)["ci95"]
    assert low < 0
    assert summary(few, share=True)["ci95"] == [0.0, high]
    assert summary(100 - few, share=True)["ci95"] == pytest.approx([100.0 - high, 100.0])
    assert summary(few, 100 - few)["ci95"][0] < -100, "a difference is no share"


def test_an_interval_is_never_narrower_than_that_of_the_characters_alone():
    """Two seeds of one mean, whose characters vary by 18 (mean square), and seeds and characters together by 2."""
    low, high = summary(np.asarray([[0.0, 4.0, 8.0], [2.0, 4.0, 6.0]]))["ci95"]
    reach = student.ppf(0.975, 18**2 / (18**2 / 2 + 2**2 / 2)) * np.sqrt(18 / 6)
    assert (low, high) == pytest.approx((4 - reach, 4 + reach))


def test_drift_is_what_the_last_frame_has_less_and_less_of_it_is_better():
    runs = {seed: {**result(0.5, seed), "first": [0.5, 0.6], "last": [0.4, 0.6]} for seed in range(3)}
    steady = {seed: {**run, "last": [0.5, 0.6]} for seed, run in runs.items()}
    assert values([runs[0]], "drift").tolist() == [pytest.approx([10.0, 0.0])]
    less = Claim(text="drifts less", better="steady", worse="fades", measure="drift", direction="less")
    more = less.model_copy(update={"direction": "more"})
    for seed, run in runs.items():
        run |= {"first": [0.5 + seed / 100] * 60, "last": [0.2] * 60}
        steady[seed] |= {"first": [0.5 + seed / 100] * 60, "last": [0.5] * 60}
    verdicts = judge([less, more], {"steady": steady, "fades": runs})
    assert [found.verdict for found in verdicts] == ["confirmed", "refuted"]


def test_cells_of_three_seeds_and_of_one_stand_in_one_report():
    plan = load_plan(PLAN)
    counts = {"full": 3, "no_emphasis": 3, "gap_0": 2, "phantom": 1}
    found = {
        name: [
            {"seed": seed, "measured": result(0.5 - place / 10, seed), "flops": 1.8e14, "seconds": 600.0}
            for seed in range(count)
        ]
        for place, (name, count) in enumerate(counts.items())
    }
    report = describe(plan, found)
    cells = report["cells"]
    assert {name: cells[name]["less_first"]["compared"] for name in ("no_emphasis", "gap_0", "phantom")} == {
        "no_emphasis": [0, 1, 2],
        "gap_0": [0, 1],
        "phantom": [0],
    }
    assert "less_first" not in cells["full"]
    assert cells["phantom"]["less_first"]["mean"] == pytest.approx(-30, abs=1)
    assert cells["gap_0"]["missing"] == [2]
    assert cells["full"]["by_attribute"] == pytest.approx(dict.fromkeys(ATTRIBUTES, 50.0))
    assert cells["full"]["scene"]["action"] == pytest.approx(30)
    text = table(report)
    means = ", ".join(f"{mean:.1f}" for mean in cells["full"]["attributes"]["seeds"])
    assert f"| 3: {means} |" in text
    assert "| 2 of 3: " in text
    (row,) = [line for line in text.splitlines() if line.startswith("| `phantom` |")]
    assert " | -30." in row
    assert row.endswith(" | 1.8e14 | 10 |")
    verdicts = {one["worse"]: (one.get("seeds"), one["verdict"]) for one in report["claims"] if one["better"] == "full"}
    assert verdicts["no_emphasis"] == ((0, 1, 2), "confirmed")
    assert verdicts["phantom"] == ((0,), "open")
    assert verdicts["gap_30"] == (None, "open")


@pytest.mark.parametrize("name", ["ablations", "comparison"])
def test_the_documents_have_the_rows_of_the_committed_table(name):
    rows = (ROOT / "evaluation" / "results" / name / "table.md").read_text().splitlines()
    wanted = [row for row in rows if row.startswith("| `")]
    text = (ROOT / "docs" / "EVALUATION.md").read_text()
    assert len(wanted) > 2
    assert [row for row in wanted if row not in text.splitlines()] == []


def committed(name: str) -> dict[str, dict[str, object]]:
    """The cells of a plan's committed results."""
    return json.loads((ROOT / "evaluation" / "results" / name / "ablations.json").read_text())["cells"]


def test_the_readme_has_the_numbers_of_the_committed_comparison():
    lines = (ROOT / "README.md").read_text().splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("| | attributes kept, percent of frames"))
    numbers = [row.split("|", 2)[2] for row in lines[start + 2 : start + 5]]
    rows = [[int(number) for number in re.findall(r"\d+", row)] for row in numbers]
    wanted = []
    for cell in committed("comparison").values():
        kept, minutes = cell["attributes"], np.mean([run["seconds"] for run in cell["runs"]]) / 60
        wanted.append([round(number) for number in (kept["mean"], *kept["ci95"], minutes)])
    assert rows == wanted


@pytest.mark.parametrize(
    ("name", "results", "cells"),
    [
        ("PAPER_MAP", "ablations", "joint_attention no_clip clip_only gap_0 gap_1 gap_5 no_reconstruction"),
        ("PAPER_MAP", "ablations", "plain_captions no_emphasis reconstruct_reference one_prompt"),
        ("EVALUATION", "ablations", "text_only joint_attention no_clip gap_0 gap_1 gap_5 gap_30 no_reconstruction"),
        ("EVALUATION", "ablations", "plain_captions reconstruct_reference one_prompt phantom wrong_people aligned"),
        ("EVALUATION", "ablations", "no_emphasis"),
        ("PAPER_MAP", "comparison", "phantom vace"),
        ("EVALUATION", "comparison", "phantom vace"),
    ],
)
def test_sentences_of_the_documents_have_the_committed_differences(name, results, cells):
    """Their intervals, as of more or of fewer; the tables of docs/EVALUATION.md are held by another test."""
    lines = (ROOT / "docs" / f"{name}.md").read_text().splitlines()
    text = "\n".join(line for line in lines if name == "PAPER_MAP" or not line.startswith("|"))
    for cell in cells.split():
        less = committed(results)[cell]["less_first"]
        sides = [f"{number:.1f}".replace("-0.0", "0.0") for number in less["ci95"]]
        turned = [f"{-number:.1f}".replace("-0.0", "0.0") for number in less["ci95"]]
        forms = {" to ".join(pair) for pair in (sides, sides[::-1], turned, turned[::-1])}
        assert any(form in text for form in forms), (cell, forms)


def test_the_table_warns_where_runs_that_are_taken_together_were_not_trained_alike():
    """Results without a precision were all trained in bf16, and do not say on which processor."""
    plan = load_plan(PLAN)
    xeon, epyc = (
        {"precision": precision, "processor": name} for precision, name in (("bf16", "Xeon"), ("fp32", "EPYC"))
    )
    old = {"processor": "x86_64"}

    def warned(**trained: list[dict[str, str]]) -> list[str]:
        found = {
            name: [{"seed": seed, "measured": result(0.5, seed), **how} for seed, how in enumerate(runs)]
            for name, runs in trained.items()
        }
        report = describe(plan, found)
        assert table(report).count("**Warning.**") == len(report.get("warnings", []))
        return report.get("warnings", [])

    assert warned(full=[old, xeon, xeon], gap_0=[old, old, xeon], phantom=[old]) == []
    assert warned(full=[old, epyc], gap_0=[xeon, epyc]) == [
        "The seeds of `full` were not trained alike (bf16 on an unknown processor: 0; fp32 on EPYC: 1): "
        "their spread has that in it.",
        "The seeds of `gap_0` were not trained alike (bf16 on Xeon: 0; fp32 on EPYC: 1): their spread has that in it.",
    ]
    assert warned(full=[xeon], gap_0=[epyc], phantom=[xeon], aligned=[epyc]) == [
        "With seed 0 cells that are compared were not trained alike (fp32 on EPYC: `gap_0`, `aligned`; "
        "bf16 on Xeon: `full`): the difference between two of these has that in it."
    ]
    assert len(warned(full=[xeon], gap_0=[{**xeon, "processor": "EPYC"}])) == 1


def test_the_documents_name_the_differences_of_the_first_seed_that_a_correction_leaves():
    kept = {}
    for path in (ROOT / "evaluation" / "results" / "ablations").glob("*-0-*.json"):
        found = json.loads(path.read_text())
        kept[found["cell"]] = np.asarray(found["measured"]["attributes"])
    full = kept.pop("full")
    left = holm([paired_p(values - full) for values in kept.values()])
    wanted = {name for name, certain in zip(kept, left, strict=True) if certain}
    text = " ".join((ROOT / "docs" / "EVALUATION.md").read_text().split())
    named = re.search(r"correction of paired t tests over the characters (\w+) differences are left: (.*?)\.", text)
    assert named is not None
    assert set(re.findall(r"`(\w+)`", named[2])) == wanted
    assert (named[1], len(wanted), len(kept)) == ("six", 6, 17)
