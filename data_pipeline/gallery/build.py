"""The gallery: a page of the kept rows, and one for each reason, the rows nearest to the threshold first."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np

from contextanyone_core.atomic_file import write_text
from data_pipeline.decisions.outputs import Account
from data_pipeline.decisions.review import stored_review
from data_pipeline.decisions.rules import DEDUP, REVIEW, Decision, Rule
from data_pipeline.gallery.sheets import write_sheet
from data_pipeline.rows import Row, digest
from training.data.video import MediaError

_PAGE_ROWS = 50
_ASSETS = Path(__file__).parent / "page"
KEPT = "kept"


@dataclass(frozen=True)
class _Page:
    """A file of the gallery: its title, its rows, and which of how many pages of the title it is."""

    title: str
    rows: list[Decision]
    number: int
    pages: int

    @property
    def name(self) -> str:
        """Of the file; another title never gives the same one."""
        return f"{page_name(self.title)}{'' if self.number == 0 else f'-{self.number + 1}'}.html"


def page_name(title: str) -> str:
    """The first part of the names of a title's pages."""
    return title.replace(".", "_")


def build_gallery(root: Path, account: Account, most: int) -> Path:
    """Write the pages into `gallery/` below the output folder; earlier ones are replaced.

    Args:
        most: rows of each title at most, the nearest to the threshold; all others are counted.

    Returns: the first page.
    """
    folder = root / "gallery"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("gallery.js", "gallery.css"):
        shutil.copyfile(_ASSETS / name, folder / name)
    titles, counts, run = _nearest(account, most)
    pages = []
    for title, nearest in titles.items():
        groups = [nearest[at : at + _PAGE_ROWS] for at in range(0, len(nearest), _PAGE_ROWS)] or [[]]
        pages += [_Page(title, group, number, len(groups)) for number, group in enumerate(groups)]
    sheets = set()
    for found in (one for page in pages for one in page.rows):
        with suppress(MediaError, FileNotFoundError):  # a row without pictures has none in the gallery either
            write_sheet(folder / _sheet(found.row), root, found.row)
            sheets.add(_sheet(found.row))
    review = stored_review(root)
    for page in pages:
        write_text(folder / page.name, _html(page, pages, counts, account.rules, review, sheets, run))
    return folder / pages[0].name


def _nearest(account: Account, most: int) -> tuple[dict[str, list[Decision]], Counter[str], str]:
    """For each title the rows nearest to the threshold, and how many there are; a hash of all rows."""
    spreads, counts, run = _spreads(account), Counter[str](), ""
    titles: dict[str, list[tuple[float, str, Decision]]] = {KEPT: []}

    def add(title: str, found: Decision) -> None:
        counts[title] += 1
        rows = titles.setdefault(title, [])
        rows.append((_distance(found, title, account.rules, spreads), found.row.id, found))
        if len(rows) > 2 * most:
            rows.sort(key=lambda entry: entry[:2])
            del rows[most:]

    for found in account.decisions:
        add(found.reason or KEPT, found)
        run = digest(run, found.row.key)
    for lost in account.dropped:
        reason = f"{lost.stage}.{lost.drop.reason}"
        add(reason, Decision(lost.row.model_copy(update={"scores": lost.drop.scores}), reason, (), why=lost.drop.why))
    ordered = {title: sorted(rows, key=lambda entry: entry[:2])[:most] for title, rows in titles.items()}
    return {title: [found for _, _, found in rows] for title, rows in ordered.items()}, counts, run


def _sheet(row: Row) -> str:
    return f"sheets/{digest(row.id)}.jpg"


def _spreads(account: Account) -> dict[str, float]:
    """For each rule the range of the middle 80 % of its scores, by which distances of rules can be compared."""
    spreads = {}
    for number, rule in enumerate(account.rules):
        if rule.name != DEDUP and len(account.decisions):
            scores = account.decisions.scores[:, number]
            spreads[rule.name] = float(np.ptp(np.quantile(scores, [0.1, 0.9]))) or 1.0
    return spreads


def _distance(found: Decision, title: str, rules: Sequence[Rule], spreads: dict[str, float]) -> float:
    """How far a row is from the threshold of its reason; a kept row, or one of a review, from the nearest one."""
    if title == DEDUP:
        return -found.nearest
    mine = [rule for rule in rules if rule.name in spreads and title in (rule.name, KEPT, REVIEW)]
    return min((abs(found.row.scores[x.score] - x.value) / spreads[x.name] for x in mine), default=0.0)


def _html(
    page: _Page,
    pages: Sequence[_Page],
    counts: dict[str, int],
    rules: Sequence[Rule],
    review: dict[str, bool],
    sheets: set[str],
    run: str,
) -> str:
    links = "".join(
        f'<a href="{escape(other.name)}"{" aria-current=page" if other.title == page.title else ""}>'
        f"{escape(other.title)} <b>{counts[other.title]}</b></a>"
        for other in pages
        if other.number == 0
    )
    turns = "".join(
        f'<a href="{escape(other.name)}"{" aria-current=page" if other is page else ""}>{other.number + 1}</a>'
        for other in pages
        if other.title == page.title and page.pages > 1
    )
    rows = "".join(_row_html(found, rules, review, sheets) for found in page.rows) or "<p>No row.</p>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(page.title)}</title>"
        '<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="gallery.css"></head>'
        f'<body data-run="{escape(run)}"><header><nav aria-label="reasons">{links}</nav>'
        '<p><button id="save">Save review.jsonl</button> <span id="count" role="status"></span></p></header>'
        f"<main><h1>{escape(page.title)}</h1>{rows}</main><nav aria-label=pages>{turns}</nav>"
        '<script src="gallery.js"></script></body></html>\n'
    )


def _row_html(found: Decision, rules: Sequence[Rule], review: dict[str, bool], sheets: set[str]) -> str:
    row = found.row
    scores = "".join(_score_html(row, rule, found) for rule in rules if rule.name == DEDUP or rule.score in row.scores)
    decided = found.reason in ("", REVIEW, *(rule.name for rule in rules))
    buttons = (
        '<p><button class="keep" aria-pressed="false">keep</button> '
        '<button class="drop" aria-pressed="false">drop</button></p>'
    )
    pictures = "".join(
        f'<figure><img loading="lazy" src="../{escape(quote(row.paths[name]))}" alt="">'
        f"<figcaption>{words}</figcaption></figure>"
        for name, words in (("target", "ground-truth frame"), ("reference", "reference"))
        if name in row.paths
    )
    prompts = "".join(
        f"<p><i>{name}</i> {escape(row.labels[f'captions.{name}'])}</p>"
        for name in ("first", "later")
        if f"captions.{name}" in row.labels
    )
    frames = f'<img class="sheet" loading="lazy" src="{_sheet(row)}" alt="frames">'
    sheet = frames if _sheet(row) in sheets else ""
    keep = review.get(row.id)
    state = "" if keep is None else ("keep" if keep else "drop")
    return (
        f'<article data-id="{escape(row.id)}" data-stored="{state}"><h2>{escape(row.id)}</h2>'
        f"{sheet}{f'<p>{escape(found.why)}</p>' if found.why else ''}"
        f'<div class="pair">{pictures}<div>{prompts}<table>{scores}</table></div></div>'
        f"{buttons if decided else ''}</article>"
    )


def _score_html(row: Row, rule: Rule, found: Decision) -> str:
    score = found.nearest if rule.name == DEDUP else row.scores[rule.score]
    sign = "&ge;" if rule.bound.startswith("min_") else "&le;"
    broken = ' class="broken"' if rule.name in found.broken else ""
    return f"<tr{broken}><td>{escape(rule.name)}</td><td>{score:.4g}</td><td>{sign} {rule.value:g}</td></tr>"
