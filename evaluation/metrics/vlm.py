"""VLM-Appearance: a vision-language model compares a person's appearance in a clip with the reference, by aspects.

The paper names the metric and not its text: the wording is ours. Any server with OpenAI's chat interface is asked.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import re
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from contextanyone_core.atomic_file import write_text
from contextanyone_core.errors import InputError
from evaluation.metrics.catalogue import ASPECTS
from evaluation.metrics.frames import Source, chosen

FRAMES = 6
NOT_VISIBLE = "not visible"
_LONGEST = 512  # pixels of the longer side that the model is shown
_SECONDS = 300.0
_SAID = 300  # characters of a server's refusal that are shown

PROMPT = f"""The first picture is the reference of a person. The next {FRAMES} pictures are frames of a video, numbered.
Compare the appearance of the person in the frames with the reference. Ignore scene, light, camera, pose and motion.
Score each aspect from 0 (entirely different) to 10 (the same): {", ".join(ASPECTS)}.
Where an aspect cannot be seen in the reference or in any frame, write "{NOT_VISIBLE}" instead of a number.
Answer with one JSON object that has exactly these keys, and nothing else."""

Answer = dict[str, float | None]
"""A score for each aspect, None where it is not visible."""


class Judge:
    """Queries the model about a clip twice, with the frames in both orders, and keeps every raw answer in a folder.

    Args:
        url: of the server up to and with `/v1`.
        model: its name there; with a revision where the server has several.
        folder: for the raw answers; stored answers are not requested again.
        key: for the header Authorization, or empty.
    """

    def __init__(self, url: str, model: str, folder: Path, key: str = "") -> None:
        if not url.startswith(("http://", "https://")):
            raise InputError(f"--vlm is {url}; it must be an address such as http://localhost:8000/v1.")
        folder.mkdir(parents=True, exist_ok=True)
        self._url, self._folder, self._key = f"{url.rstrip('/')}/chat/completions", folder, key
        self.model = model
        self.prompt_hash = hashlib.sha256(PROMPT.encode()).hexdigest()

    def ask(self, source: Source, reference: Source) -> list[Answer | None]:
        """The answers for both orders; None for one of another form.

        Raises: InputError where the server cannot be reached or refuses; answers that came are kept.
        """
        return [parse(self._answer(source, reference, turned)) for turned in (False, True)]

    def _answer(self, source: Source, reference: Source, turned: bool) -> str:
        words = json.dumps([self.model, self.prompt_hash, FRAMES, source.digest, reference.digest, turned])
        path = self._folder / f"{hashlib.sha256(words.encode()).hexdigest()}.json"
        if path.is_file():
            return str(json.loads(path.read_text(encoding="utf-8"))["answer"])
        frames = chosen(source)
        places = np.floor((np.arange(FRAMES) + 0.5) * len(frames) / FRAMES).astype(int)
        shown = [frames[place] for place in (places[::-1] if turned else places)]
        answer = self._post(_request(self.model, reference.frames[0], shown))
        record = {"model": self.model, "prompt_sha256": self.prompt_hash, "turned": turned, "answer": answer}
        write_text(path, json.dumps({**record, "clip": source.path.name, "clip_hash": source.digest}, indent=1) + "\n")
        return answer

    def _post(self, body: Mapping[str, Any]) -> str:
        """The server's whole answer as text."""
        request = urllib.request.Request(self._url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        if self._key:  # for this server alone, also where it redirects to another
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as found:
                return bytes(found.read()).decode("utf-8", errors="replace")
        except urllib.error.HTTPError as error:
            said = f"--vlm {self._url} answered {error.code} {error.reason}: {_reason(error)}"
            raise InputError(f"{said} Answers that came are kept: run again to go on.") from None
        except (OSError, http.client.HTTPException) as error:
            raise InputError(f"--vlm {self._url} cannot be reached: {error}. Run again to go on.") from None


def parse(answer: str) -> Answer | None:
    """Scores from a server's answer; None unless it has exactly the requested form. Nothing is guessed or replaced."""
    try:
        content = json.loads(answer)["choices"][0]["message"]["content"]
        fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", content, re.DOTALL)
        found = json.loads(fenced[1] if fenced else content)
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    if not isinstance(found, dict) or found.keys() != set(ASPECTS):
        return None
    scores: Answer = {}
    for aspect, score in found.items():
        number = isinstance(score, int | float) and not isinstance(score, bool) and 0 <= score <= 10
        if not number and score != NOT_VISIBLE:
            return None
        scores[aspect] = float(score) if number else None
    return scores


def judged_numbers(answers: Sequence[Answer | None]) -> dict[str, float]:
    """A clip's numbers from the answers of both orders.

    Only a clip with two valid answers has scores, for one alone would keep the bias of its order. An aspect counts
    where both answers see it; the clip's score is the mean of those aspects.
    """
    valid = [answer for answer in answers if answer is not None]
    numbers = {"vlm_valid": len(valid) / len(answers)}
    if len(valid) < len(answers):
        return numbers
    means, gaps = [], []
    for aspect in ASPECTS:
        scores = [score for answer in valid if (score := answer[aspect]) is not None]
        if len(scores) == len(answers):
            means.append(sum(scores) / len(scores))
            gaps.append(max(scores) - min(scores))
            numbers[f"vlm_{aspect}"] = means[-1]
    if means:
        numbers |= {"vlm_appearance": sum(means) / len(means), "vlm_order_gap": sum(gaps) / len(gaps)}
    return numbers


def _reason(error: urllib.error.HTTPError) -> str:
    """The beginning of what a server says about its refusal: an unknown model, a wrong key, too many pictures."""
    try:
        said = " ".join(error.read().decode("utf-8", errors="replace").split())
    except (OSError, http.client.HTTPException):
        said = ""
    return said[:_SAID] or "nothing."


def _request(model: str, reference: NDArray[np.uint8], frames: Sequence[NDArray[np.uint8]]) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": PROMPT}, {"type": "text", "text": "Reference:"}]
    content.append(_picture(reference))
    for number, frame in enumerate(frames, 1):
        content += [{"type": "text", "text": f"Frame {number}:"}, _picture(frame)]
    return {"model": model, "temperature": 0, "max_tokens": 512, "messages": [{"role": "user", "content": content}]}


def _picture(frame: NDArray[np.uint8]) -> dict[str, Any]:
    image = Image.fromarray(frame)
    image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.BICUBIC)
    held = io.BytesIO()
    image.save(held, "PNG")
    encoded = base64.b64encode(held.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}
