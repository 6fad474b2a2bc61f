"""Execution options: LoRAs, attention kernel, compilation, memory mode, step cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..model_specs import ModelSpec
from ..shapes import VideoShape

ATTENTIONS = ("sdpa", "flash", "sage", "auto")
DTYPES = ("float32", "bfloat16", "float16")
MEMORIES = ("auto", "low", "balanced", "high")


@dataclass(frozen=True)
class LoraFile:
    """A LoRA and its strength.

    Attributes:
        path: the file.
        strength: factor of its update: 1 as trained, negative to invert it.
    """

    path: Path
    strength: float = 1.0


class Video(NamedTuple):
    """The video that the memory mode `auto` plans for: its size, the number of references, whether it has a pose."""

    shape: VideoShape
    references: int = 1
    pose: bool = False


FULL_SIZE = Video(VideoShape(81, 480, 832))


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a model is run, independent of what it generates.

    Attributes:
        loras: merged into the transformer's weights, in this order.
        attention: one of `ATTENTIONS`.
        compile: whether the blocks are compiled.
        memory: one of `MEMORIES`. `high`: all components stay on the device. `balanced`: each is there only while it
            computes, encoders are loaded on demand, the video is decoded in tiles. `low`: as balanced, and the
            transformer's blocks are streamed, with matrices in fp8. `auto`: the first of these that fits.
        video: the size and references that `auto` plans for.
        step_cache: relative change of the first block below which the other blocks of a pass are skipped; None is off.
    """

    loras: tuple[LoraFile, ...] = ()
    attention: str = "sdpa"
    compile: bool = False
    memory: str = "high"
    video: Video = FULL_SIZE
    step_cache: float | None = None

    def check(self, spec: ModelSpec) -> None:
        """Check that the model supports the options, and that they can be combined.

        Raises:
            InputError: naming the option and the remedy.
        """
        asked = {
            "--lora": bool(self.loras),
            "--attention": self.attention not in ("sdpa", "auto"),
            "--compile": self.compile,
            "--step-cache": self.step_cache is not None,
            f"--memory {self.memory}": self.memory in ("low", "balanced"),
        }
        for option, given in asked.items():
            if given and spec.hosted:
                raise InputError(
                    f"{option} is for the models on our transformer; with --model {spec.name} leave it out."
                )
        if self.compile and self.memory == "low":
            raise InputError(
                "--compile and --memory low exclude each other: low casts every matrix from fp8 as it comes; leave "
                "--compile out, or use --memory balanced."
            )
        if self.step_cache is not None and self.memory == "low":
            raise InputError(
                "--step-cache and --memory low exclude each other: blocks are fetched ahead, even those that are then "
                "skipped; leave --step-cache out, or use --memory balanced."
            )


PLAIN = Execution()
"""The weights as they are, torch's own kernels."""
