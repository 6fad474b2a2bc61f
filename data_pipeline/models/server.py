"""Captions and verdicts by a vision-language model behind an OpenAI-compatible server, such as vLLM's."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from contextanyone_core.errors import ContextAnyoneError
from data_pipeline.models.pictures import Picture
from data_pipeline.models.protocols import Verdict
from data_pipeline.stage import UnavailableError

_LONGEST = 768  # pixels of the longer side that the model is shown
_BUSY = (408, 425, 429, 502, 503, 504)  # answers of a server that is starting, or has too much to do
_BROKEN = 500  # asked again too, but it may be the request that the server cannot take
_REFUSED = (401, 403, 404)  # the key, or the model's name
_MOST_CHARACTERS = 1200  # of a caption; longer is a model that repeats itself

VERDICT_KEYS = ("same_person", "same_hair", "same_outfit")

_FIRST = """Describe how the person in this picture looks, for someone who shall draw them: hair, face, build, clothes,
what they wear or carry. One or two sentences. Say nothing of the background, the light, the pose or what they do.
Answer with one JSON object {"caption": "..."} and nothing else."""
_LATER = """These pictures are frames of a video, in order. Say in one or two sentences what the person does and where,
the light and the camera. Begin with "The person". Say nothing of their hair, face, build or clothes.
Answer with one JSON object {"caption": "..."} and nothing else."""
_VERDICT = """Each of the two pictures shows a person. Ignore pose, background and light.
Is it the same person? Is the hair the same in colour, length and style? Are the clothes the same?
Answer with one JSON object {"same_person": true, "same_hair": true, "same_outfit": true} with your answers, and
nothing else."""


class ServerError(ContextAnyoneError):
    """The server refuses this request: the source fails, and is tried again by the next run."""


@dataclass(frozen=True)
class VisionServer:
    """Queries one model; temperature 0. An answer of another form is None or empty, and never guessed.

    Attributes:
        url: up to and with /v1. model: its name there.
        key_variable: the environment variable with the key, or "".
        attempts: requests before a busy or unreachable server is an error. backoff: seconds before the second.
        seconds: that an answer may take.
    """

    url: str
    model: str
    key_variable: str = ""
    attempts: int = 4
    backoff: float = 2.0
    seconds: float = 300.0

    def captions(self, frames: Sequence[Picture]) -> tuple[str, str]:
        """As `Captioner.captions`: two requests. Raises: ServerError, UnavailableError."""
        first = self._object(_FIRST, frames[:1], ("caption",))
        later = self._object(_LATER, frames, ("caption",))
        return _caption(first), _caption(later)

    def verdict(self, first: Picture, second: Picture) -> Verdict | None:
        """As `Judge.verdict`. Raises: ServerError, UnavailableError."""
        found = self._object(_VERDICT, (first, second), VERDICT_KEYS)
        if found is None or not all(isinstance(found[key], bool) for key in VERDICT_KEYS):
            return None
        return Verdict(*(found[key] for key in VERDICT_KEYS))

    def _object(self, words: str, pictures: Sequence[Picture], keys: Sequence[str]) -> dict[str, Any] | None:
        """The JSON object of an answer, if it has exactly these keys."""
        content: list[dict[str, Any]] = [{"type": "text", "text": words}, *(_shown(picture) for picture in pictures)]
        body = {
            "model": self.model,
            "temperature": 0,
            "max_tokens": 512,
            "messages": [{"role": "user", "content": content}],
        }
        return parse(self._post(json.dumps(body).encode()), keys)

    def _post(self, body: bytes) -> str:
        url = f"{self.url.rstrip('/')}/chat/completions"
        for attempt in range(1, self.attempts + 1):
            kind: type[ContextAnyoneError] = UnavailableError
            try:
                with urllib.request.urlopen(self._request(url, body), timeout=self.seconds) as found:
                    return bytes(found.read()).decode("utf-8", errors="replace")
            except urllib.error.HTTPError as error:
                problem = f"{url} answered {error.code} {error.reason}"
                if error.code not in (*_BUSY, *_REFUSED):
                    kind = ServerError
                if error.code not in (*_BUSY, _BROKEN):
                    raise kind(f"{problem}; check gpu.server, gpu.vlm and the key.") from None
            except (OSError, http.client.HTTPException) as error:
                problem = f"{url} cannot be reached: {error}"
            if attempt < self.attempts:
                time.sleep(self.backoff * 2 ** (attempt - 1))
        raise kind(f"{problem}, {self.attempts} times. Start the server, then run the same command again.")

    def _request(self, url: str, body: bytes) -> urllib.request.Request:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        if self.key_variable:  # for this server alone, also where it redirects to another
            key = os.environ.get(self.key_variable, "")
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        return request


def parse(answer: str, keys: Sequence[str]) -> dict[str, Any] | None:
    """The JSON object in a server's answer, a code fence taken off; None unless it has exactly these keys."""
    try:
        content = json.loads(answer)["choices"][0]["message"]["content"]
        fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", content, re.DOTALL)
        found = json.loads(fenced[1] if fenced else content)
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.keys() == set(keys) else None


def _caption(found: dict[str, Any] | None) -> str:
    text = found["caption"] if found is not None else ""
    if not isinstance(text, str) or len(text) > _MOST_CHARACTERS:
        return ""
    return " ".join(text.encode("utf-8", "ignore").decode().split())


def _shown(picture: Picture) -> dict[str, Any]:
    height, width = picture.shape[:2]
    share = min(1.0, _LONGEST / max(height, width))
    size = (max(1, round(width * share)), max(1, round(height * share)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA) if share < 1 else picture
    done, encoded = cv2.imencode(".png", np.ascontiguousarray(small[..., ::-1]))
    if not done:
        raise OSError("a picture could not be encoded as PNG.")
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(encoded.tobytes()).decode()}"},
    }
