"""Argument parsing: every mistake is a one-line error with a suggestion, before heavy libraries are loaded."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn

from ..errors import InputError, did_you_mean
from ..shapes import frames_mistake, side_mistake

MAX_SEED = 2**64 - 1  # torch's, and so ComfyUI's
_LARGEST_SIDE = 4096
_SEPARATORS = tuple(filter(None, (os.sep, os.altsep)))
COMPONENTS = ("transformer", "vae", "text_encoder", "image_encoder")
"""Weight files of a model's folder, without the extension .safetensors."""
EXAMPLES = {
    "generate": '--reference P.png --first "..." --later "..." --out out.mp4',
    "pose": "dance.json --out dance.mp4",
    "inspect": "FILE",
    "init": "--backbone FILE --out FILE",
    "convert": "FILE --naming diffusers --out FILE",
    "doctor": "--memory-gb 8",
}
"""What follows the name of each command, for help and for messages."""


class Parser(argparse.ArgumentParser):
    """argparse that raises InputError instead of printing its usage, and suggests the nearest option."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog, description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse all of `argv`.

        Raises: InputError for an option that is unknown, missing or has a bad value.
        """
        for word in argv:  # before argparse reports the misspelled option as missing
            if word == "--":
                break  # only positional arguments follow
            if word.startswith("--") and word.partition("=")[0] not in self._option_string_actions:
                self.refuse(word)
        arguments, unknown = self.parse_known_args(list(argv))
        if unknown:
            self.refuse("--" if "--" in unknown else unknown[0])
        return arguments

    def refuse(self, word: str) -> NoReturn:
        """Raise InputError for an unknown word of the command, naming the nearest option."""
        if not word.startswith("-") or word == "--":
            raise InputError(
                f"{_short(word)} is left over; put quotes around a text of several words, and name the option again "
                "before each of several files."
            )
        option = word.partition("=")[0]
        raise InputError(f"{self.prog} has no option {option}.{did_you_mean(option, self._option_string_actions)}")

    def error(self, message: str) -> NoReturn:
        """Raise argparse's error as InputError."""
        message = message.removeprefix("argument ")
        if message.endswith("expected one argument"):
            message += f"; write {message.partition(':')[0]}=TEXT for a text that begins with a dash"
        if "arguments are required" in message and (example := EXAMPLES.get(self.prog.rpartition(" ")[2])):
            message += f"; an example: {self.prog} {example}"
        raise InputError(message + ("" if message.endswith((".", "?")) else "."))


def package_version(package: str = "contextanyone") -> str:
    """The installed version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def one_of(what: str, *names: str) -> Callable[[str], str]:
    """A type for `add_argument`: one of these names."""

    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(
                f"there is no {what} {_short(text)}; known are {', '.join(names)}.{did_you_mean(text, names)}"
            )
        return text

    return parse


def whole(low: int, high: int) -> Callable[[str], int]:
    """A type for `add_argument`: a whole number from `low` to `high`."""

    def parse(text: str) -> int:
        try:
            number = int(text) if len(text) < 30 else None
        except ValueError:
            number = None
        if number is None or not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{_short(text)} is given; a whole number from {low} to {high} is needed")
        return number

    return parse


def real(low: float, high: float, *, above: bool = False) -> Callable[[str], float]:
    """A type for `add_argument`: a finite number from `low` to `high`; with `above`, `low` itself is refused."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not low <= number <= high or (above and number == low):
            wanted = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
            raise argparse.ArgumentTypeError(f"{_short(text)} is given; a number {wanted} is needed")
        return number

    return parse


def file_path(text: str) -> Path:
    """The path of a file or folder; an empty one, which would be the current folder, is refused."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty; give the path of a file or folder")
    return Path(text)


def output_path(text: str) -> Path:
    """The path of a file or folder to write; a file's name that ends as a folder's does is refused."""
    path = file_path(text)
    if text.endswith(_SEPARATORS) and path.suffix and not path.is_dir():
        raise argparse.ArgumentTypeError(
            f"{text} ends in a slash as a folder's name does, and in {path.suffix} as a file's; leave out one of them"
        )
    return path


def frame_count(text: str) -> int:
    """A number of frames: 4k + 1, as the video VAE needs."""
    number = whole(1, 2001)(text)
    if mistake := frames_mistake(number):
        raise argparse.ArgumentTypeError(f"{number} is given; {mistake}")
    return number


def frame_size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT in pixels, as (height, width), multiples of 16."""
    match = re.fullmatch(r"([0-9]{1,5})[xX×]([0-9]{1,5})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{_short(text)} is given; WIDTHxHEIGHT in pixels is needed, such as 128x128")
    width, height = (int(side) for side in match.groups())
    for side in (width, height):
        mistake = f"at most {_LARGEST_SIDE} is possible" if side > _LARGEST_SIDE else side_mistake(side)
        if mistake is not None:
            raise argparse.ArgumentTypeError(f"{text} has a side of {side}; {mistake}")
    return height, width


def device_name(text: str) -> str:
    """A torch device name; whether the device exists is checked later."""
    if not re.fullmatch(r"cpu|mps|(cuda|xpu)(:[0-9]{1,3})?", text):
        known = ("cpu", "cuda", "cuda:0", "mps", "xpu")
        raise argparse.ArgumentTypeError(
            f"there is no device {_short(text)}; known are cpu, cuda, cuda:N, mps and xpu.{did_you_mean(text, known)}"
        )
    return text


def regular_path(text: str) -> Path:
    """A path that can be read twice: a file, a folder, or one that does not exist, but no pipe or device."""
    path = file_path(text)
    try:
        special = path.exists() and not path.is_file() and not path.is_dir()
    except (OSError, ValueError):  # an invalid name; opening it reports why
        special = False
    if special:
        raise argparse.ArgumentTypeError(
            f"{text} is not a regular file but a pipe or a device; give a file or a folder"
        )
    return path


def prompt_text(text: str) -> str:
    """A prompt: valid text, not empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the prompt is empty; describe the picture or what happens")
    return any_text(text)


def any_text(text: str) -> str:
    """Valid text, which may be empty."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError("the prompt is not valid UTF-8 text") from error
    return text


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
