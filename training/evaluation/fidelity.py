"""PSNR of the VAE and of the reference stream."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from contextanyone_core.encoders.vae import VideoVAE
from contextanyone_core.media.image_io import frames_to_images, images_to_frames
from training.evaluation.characters import Subject
from training.evaluation.clips import Clips


def psnr(one: NDArray[np.uint8], two: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB of uint8 pictures or clips of one shape; at most 99."""
    error = float(np.square(one.astype(np.float64) - two.astype(np.float64)).mean())
    return min(99.0, float(10 * np.log10(255.0**2 / error))) if error else 99.0


def vae_round_trip(vae: VideoVAE, subject: Subject) -> Clips:
    """The subject's rendered clip, encoded and decoded: (T, H, W, 3) uint8."""
    return images_to_frames(vae.decode(vae.encode(frames_to_images(subject.drawn.video))).cpu())


def reconstruction_psnr(pictures: Sequence[torch.Tensor], chosen: Sequence[Subject]) -> dict[str, float]:
    """Mean PSNR of the reference stream's pictures (3, H, W) against the clip's first frame and against its input.

    The stream is trained to reconstruct the clip's first frame, so the former must be the higher one.
    """
    frames = [images_to_frames(picture[:, None])[0] for picture in pictures]
    pairs = list(zip(frames, chosen, strict=True))
    return {
        "ground_truth_frame": float(np.mean([psnr(frame, subject.drawn.video[0]) for frame, subject in pairs])),
        "own_input": float(np.mean([psnr(frame, subject.drawn.reference) for frame, subject in pairs])),
        "n": len(pairs),
    }
