"""The page: everything inside one file, nothing from the network, all text escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from contextanyone_core.errors import ContextAnyoneError
from contextanyone_core.media.video_io import read_metadata
from training.reporting.charts import line_chart
from training.reporting.history import History, read_history

_TYPES = {".png": "image/png", ".gif": "image/gif", ".webp": "image/webp", ".mp4": "video/mp4"}
_LARGEST = 8 << 20  # bytes of a sample that is put into the page
_SAMPLE_STEPS = 6
_LATELY = 100  # steps whose mean time gives the time left
_SPEED = ("samples_per_second", "tokens_per_second", "tflops", "mfu", "data_wait", "seconds", "peak_memory_gib")
_APART = ("step", "lr", "grad_norm", "unreadable", *_SPEED)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1360px; padding: 0 1rem; color: #282828 }
h1, h2 { font-weight: 600 } h2 { margin-top: 2.5rem }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1.5rem }
figure { margin: 0 } figcaption { font-weight: 600 } .legend { margin: 0; font-size: 13px }
svg { width: 100%; height: auto } svg text { font-size: 11px; fill: #606060 }
.rule { stroke: #e2e2e2 } .redone { stroke: #a0a0a0; stroke-dasharray: 4 3 }
polyline { fill: none; stroke-width: 1.5 }
.raw { opacity: 0.3; stroke-width: 1 }
img { max-width: 100% } video { width: 100%; max-width: 960px }
pre { background: #f5f5f5; padding: 1rem; overflow: auto }
"""


def report_page(run: Path) -> str:
    """The HTML of a run's folder.

    Raises:
        InputError: the folder has no log.jsonl, or no step in it.
    """
    history = read_history(run / "log.jsonl")
    found = run / "validation.jsonl"
    validated = read_history(found) if found.is_file() and found.stat().st_size else None
    title = escape(run.resolve().name)
    sections = [
        f"<h1>{title}</h1>",
        _summary(history, _steps_in_all(run / "config.yaml")),
        f'<h2>Curves</h2><div class="grid">{"".join(_charts(history, validated))}</div>',
        _samples(run / "samples"),
        _text("Record", run / "export" / "record.json"),
        _text("Configuration", run / "config.yaml"),
    ]
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    body = "\n".join(section for section in sections if section)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _steps_in_all(config: Path) -> int | None:
    """`run.steps` of a configuration; None where it cannot be read."""
    try:
        steps = yaml.safe_load(config.read_text(encoding="utf-8"))["run"]["steps"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, LookupError, TypeError):
        return None
    return steps if isinstance(steps, int) else None


def _summary(history: History, total: int | None) -> str:
    last = history.lines[-1]
    done = last["step"] + 1
    skipped = [line for line in history.lines if line.get("skipped")]
    seconds = [line.get("seconds") or 0.0 for line in history.lines]
    facts = [f"{done} steps" if total is None else f"{done} of {total} steps", f"{_time(sum(seconds))} in them"]
    if total is not None and total > done:
        lately = seconds[-_LATELY:]
        facts.append(f"about {_time((total - done) * sum(lately) / len(lately))} left")
    facts.append(f"loss {_short(last.get('loss'))} at the last")
    if skipped:
        names = [str(name) for line in skipped for name in line.get("ids", [])]
        facts.append(f"{len(skipped)} steps were not finite" + (f" ({', '.join(names)})" if names else ""))
    if history.redone:
        facts.append(f"steps repeated after a kill, from {', '.join(map(str, history.redone))} (dashed)")
    if history.damaged:
        facts.append(f"{history.damaged} lines of the log cannot be read")
    return f"<p>{escape('; '.join(facts))}.</p>"


def _charts(history: History, validated: History | None) -> Iterator[str]:
    names = history.names()
    by_sigma = sorted(name for name in names if name.startswith("sigma_"))
    terms = [name for name in names if name not in (*_APART, *by_sigma)]
    yield _chart("Loss by term", history, terms, smooth=True)
    yield _chart("Loss by quarter of sigma, sigma_0 the cleanest", history, by_sigma, smooth=True)
    if validated is not None:
        yield _chart("Validation", validated, [name for name in validated.names() if name != "step"])
    groups: list[tuple[str, Sequence[str]]] = [
        ("Learning rate", ["lr"]),
        ("Norm of the gradients", ["grad_norm"]),
        ("Samples a second", ["samples_per_second"]),
        ("Tokens a second", ["tokens_per_second"]),
        ("TFLOP/s", ["tflops"]),
        ("Model FLOPs utilisation", ["mfu"]),
        ("Seconds: a step, and its wait for data", ["seconds", "data_wait"]),
        ("Peak memory, GiB", ["peak_memory_gib"]),
    ]
    for title, group in groups:
        yield _chart(title, history, group)


def _chart(title: str, history: History, names: Sequence[str], *, smooth: bool = False) -> str:
    return line_chart(title, {name: history.series(name) for name in names}, history.redone, smooth=smooth)


def _samples(folder: Path) -> str:
    """Samples of the first and the last step that has any, and of some in between."""
    steps = sorted(path for path in folder.glob("step-*") if path.is_dir()) if folder.is_dir() else []
    if not steps:
        return ""
    places = {round(index * (len(steps) - 1) / (_SAMPLE_STEPS - 1)) for index in range(_SAMPLE_STEPS)}
    parts = ["<h2>Samples</h2>"]
    for step in (steps[place] for place in sorted(places)):
        shown = [_sample(path) for path in sorted(step.iterdir()) if path.suffix in _TYPES]
        parts.append(f'<h3>{escape(step.name)}</h3><div class="grid">{"".join(shown)}</div>')
    return "\n".join(parts)


def _sample(path: Path) -> str:
    caption = escape(_caption(path))
    if path.stat().st_size > _LARGEST:
        return f"<figure><figcaption>{caption}: too large for this page</figcaption></figure>"
    source = f"data:{_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
    if path.suffix == ".mp4":
        shown = f'<video controls autoplay loop muted playsinline src="{source}"></video>'
    else:
        shown = f'<img alt="{caption}" src="{source}">'
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def _caption(path: Path) -> str:
    """The file's name, and a clip's own record."""
    try:
        metadata: dict[str, Any] = read_metadata(path)
    except (ContextAnyoneError, OSError):
        return path.name
    return ", ".join([path.name, *(f"{name} {value}" for name, value in metadata.items())])


def _text(title: str, path: Path) -> str:
    if not path.is_file():
        return ""
    return f"<h2>{escape(title)}</h2><pre>{escape(path.read_text(encoding='utf-8', errors='replace'))}</pre>"


def _time(seconds: float) -> str:
    return tqdm.format_interval(round(seconds))


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "not finite"
