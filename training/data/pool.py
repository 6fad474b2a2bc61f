"""A pool of encoded training pairs of the character world, on disk in shards, made once and read at random.

The frozen VAE and image encoder turn each rendered pair into latents and CLIP tokens; captions are not stored: they
are drawn anew, in other words and naming other attributes, each time a pair is used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from contextanyone_core.encoders.image import ImageEncoder
from contextanyone_core.encoders.reference import clip_picture
from contextanyone_core.encoders.vae import VideoVAE
from contextanyone_core.media.image_io import frames_to_images
from training.data.frames import latent_masks, on_white
from training.data.shards import checksum
from training.data.world_poses import drawn_poses
from training.files import write_tensors
from training.randomness import numpy_generator, seed_for
from training.vae_forward import encode_whole
from training.world import (
    ATTRIBUTES,
    TEST_SEED_START,
    VERSION,
    Character,
    Scene,
    WorldSample,
    posed_sample,
    random_frame,
    sample,
)
from training.world.scene import ACTIONS, LIGHTS, PLACES

_LOG = logging.getLogger(__name__)
_SHARD = 64  # pairs in a file
_CHECKSUM = "sha256"  # name of a shard's metadata
_WHITE_SHARE = 0.1  # references with the person on white, as an artist's cut-out


@dataclass(frozen=True)
class PoolKey:
    """Which pairs a pool holds; ``encoders`` is a hash of what encoded them (`encoders_hash`).

    ``posed`` pairs come with their poses, and half of them move freely (`posed_sample`). ``cut_out`` references all
    show the person on white. ``apart_from`` is another pool, none of whose pairs this one has.
    """

    encoders: str
    seed: int
    num_frames: int
    size: int
    pairs: int
    posed: bool = False
    cut_out: bool = False
    apart_from: PoolKey | None = None

    def folder(self, root: Path) -> Path:
        """The pool's folder; its name does not depend on the number of pairs, so that a pool can grow."""
        other = self.apart_from
        apart = "" if other is None else f"-apart-from-seed{other.seed}x{other.pairs}"
        kind = ("-posed" if self.posed else "") + ("-cut-out" if self.cut_out else "")
        return root / f"{self.encoders}-world{VERSION}-seed{self.seed}-{self.num_frames}x{self.size}{kind}{apart}"

    def world_seed(self, index: int) -> int:
        """The seed that a pair is rendered from: of a training character, and of no pair of ``apart_from``."""
        seed = seed_for(self.seed, index, "pool") % TEST_SEED_START
        taken = frozenset[int]() if self.apart_from is None else _world_seeds(self.apart_from)
        while seed in taken:
            seed = (seed + 1) % TEST_SEED_START
        return seed


@dataclass(frozen=True)
class Pool:
    """Encoded pairs, all in memory; first dimension: pairs.

    ``latents`` (n, 16, t, h, w), ``masks`` (n, 1, t, h, w) the person's share of each latent in [0, 1],
    ``reference_latents`` (n, 16, 1, h, w), ``image_embeds`` (n, tokens, D), all float16; ``labels`` (n, 11) int64: the
    eight attributes, then action, place and light. Of a posed pool also ``poses`` (n, 16, t, h, w), the latents of the
    drawn poses, and ``free`` (n,) bool, whether the motion is one that no prompt describes.
    """

    latents: Tensor
    masks: Tensor
    reference_latents: Tensor
    image_embeds: Tensor
    labels: Tensor
    poses: Tensor | None = None
    free: Tensor | None = None

    def __len__(self) -> int:
        return len(self.latents)

    def character(self, index: int) -> Character:
        """The character of a pair."""
        values = self.labels[index].tolist()
        return Character(**{name: ATTRIBUTES[name][value] for name, value in zip(ATTRIBUTES, values, strict=False)})

    def scene(self, index: int) -> Scene:
        """The scene of a pair's clip."""
        action, place, light = self.labels[index].tolist()[-3:]
        return Scene(ACTIONS[action], PLACES[place], LIGHTS[light])

    def moves_freely(self, index: int) -> bool:
        """Whether the motion of a pair is one that no prompt describes."""
        return self.free is not None and bool(self.free[index])


def encoders_hash(vae: VideoVAE, image_encoder: ImageEncoder) -> str:
    """The first 12 hex digits of a SHA-256 over what encodes: the VAE without its decoder, and the CLIP tower.

    The VAE's weights count in bf16, whether they encode so or in float32: a pool serves machines of both kinds.
    """
    digest = hashlib.sha256()
    config = vae.vae.config
    digest.update(repr((list(config.latents_mean), list(config.latents_std))).encode())
    of_vae = [part.state_dict() for part in (vae.vae.encoder, vae.vae.quant_conv)]
    half = [{name: tensor.bfloat16() for name, tensor in tensors.items()} for tensors in of_vae]
    for tensors in (*half, image_encoder.model.state_dict()):
        for name, tensor in sorted(tensors.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def open_pool(root: Path, key: PoolKey, vae: VideoVAE, image_encoder: ImageEncoder) -> Pool:
    """Read a pool, first encoding the pairs that are not there yet. Interrupted work goes on where it stopped.

    Several processes may fill one pool at the same time: each takes the missing shards in an order of its own. A shard
    that cannot be read, as a power failure may leave it, or that does not have its checksum is reported and encoded
    anew.

    Raises:
        OSError: the disk is full or not writable; shards that are there stay whole.
    """
    folder = key.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    shards = [folder / f"{index:05d}.safetensors" for index in range(-(-key.pairs // _SHARD))]
    found = {path: _read(path) for path in shards}
    missing = [index for index, path in enumerate(shards) if found[path] is None]
    for path in (shards[index] for index in missing if shards[index].exists()):
        _LOG.warning("%s is damaged and encoded anew.", path)
    random.Random(os.getpid()).shuffle(missing)
    if missing:
        _LOG.info("Encoding %d of %d shards of %d pairs into %s", len(missing), len(shards), _SHARD, folder)
    for index in tqdm(missing, desc="encoding pairs", unit="shard", disable=None):
        if _read(shards[index]) is None:
            tensors = _encode_shard(key, index, vae, image_encoder)
            write_tensors(shards[index], tensors, {_CHECKSUM: checksum(tensors)})
    parts = [found.pop(path) or load_file(path) for path in shards]
    return Pool(**{name: torch.cat([part[name] for part in parts])[: key.pairs] for name in parts[0]})


def _read(shard: Path) -> dict[str, Tensor] | None:
    """The tensors of a shard; None where it is not there or damaged. Shards of older versions have no checksum."""
    try:
        with safe_open(shard, framework="pt") as file:
            expected = (file.metadata() or {}).get(_CHECKSUM)
        tensors: dict[str, Tensor] = load_file(shard)
    except (SafetensorError, OSError):
        return None
    return tensors if expected in (None, checksum(tensors)) else None


@lru_cache(maxsize=2)
def _world_seeds(key: PoolKey) -> frozenset[int]:
    return frozenset(key.world_seed(index) for index in range(key.pairs))


def _encode_shard(key: PoolKey, shard: int, vae: VideoVAE, image_encoder: ImageEncoder) -> dict[str, Tensor]:
    rows = [_encode_pair(key, shard * _SHARD + index, vae, image_encoder) for index in range(_SHARD)]
    return {name: torch.stack([row[name] for row in rows]).contiguous() for name in rows[0]}


def _encode_pair(key: PoolKey, index: int, vae: VideoVAE, image_encoder: ImageEncoder) -> dict[str, Tensor]:
    seed, size = key.world_seed(index), (key.size, key.size)
    pair = _pair(key, seed, size)
    reference = frames_to_images(_reference(key, pair, numpy_generator(key.seed, index, "white reference"))[None])
    tokens = image_encoder.encode(clip_picture(reference[:, :, 0], image_encoder.image_size))
    tensors = {
        "latents": _encode(frames_to_images(pair.video), vae),
        "masks": latent_masks(torch.from_numpy(pair.masks)).half(),
        "reference_latents": _encode(reference, vae),
        "image_embeds": tokens[0].half().cpu(),
        "labels": torch.tensor([*pair.character.labels(), *pair.scene.labels()]),
    }
    if key.posed:
        poses = drawn_poses(pair.keypoints, size, numpy_generator(key.seed, index, "stretched limb"))
        tensors |= {"poses": _encode(frames_to_images(poses), vae), "free": torch.tensor(pair.free)}
    return tensors


def _pair(key: PoolKey, seed: int, size: tuple[int, int]) -> WorldSample:
    if key.posed:
        return posed_sample(seed, key.num_frames, size)
    return sample(seed, key.num_frames, size) if key.num_frames > 1 else random_frame(seed, size)


def _encode(images: Tensor, vae: VideoVAE) -> Tensor:
    """Normalised latents (16, t, h, w) float16 of one clip (1, 3, T, H, W)."""
    config = vae.vae.config
    with torch.no_grad():
        mean = encode_whole(vae.vae, images.to(vae.device, vae.dtype))[0][0].float().cpu()
    shape = (-1, 1, 1, 1)
    return (
        (mean - torch.tensor(config.latents_mean).view(shape)) / torch.tensor(config.latents_std).view(shape)
    ).half()


def _reference(key: PoolKey, pair: WorldSample, rng: np.random.Generator) -> NDArray[np.uint8]:
    alone = key.cut_out or rng.random() < _WHITE_SHARE
    return on_white(pair.reference, pair.reference_mask) if alone else pair.reference
