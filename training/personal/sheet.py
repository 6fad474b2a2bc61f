"""The sheet of a personal model: frames of the clip, then the person in three other places, by the trained LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from contextanyone_core.atomic_file import whole_file
from contextanyone_core.encoders.condition import encode_condition
from contextanyone_core.encoders.on_demand import OnDemandTextEncoder
from contextanyone_core.encoders.text import Tokenizer
from contextanyone_core.encoders.vae import VideoVAE, load_vae
from contextanyone_core.generation.personal import named_rows, person_regions
from contextanyone_core.generation.pipeline import Conditions, GenerationSettings, LatentSampler
from contextanyone_core.media.contact_sheet import contact_sheet
from contextanyone_core.media.image_io import frames_to_images, images_to_frames
from contextanyone_core.model.condition import VideoCondition
from contextanyone_core.model.regions import Tokens
from contextanyone_core.model_specs import MODELS
from contextanyone_core.pose.drawing import STYLES, draw_poses
from contextanyone_core.pose.hull import person_hull
from contextanyone_core.pose.pose_file import read_pose_file
from contextanyone_core.pose.resample import prepare
from contextanyone_core.pose.sequence import Pixels, PoseSequence
from contextanyone_core.runtime.processor import card_dtype
from contextanyone_core.weights.checkpoint import load_transformer
from contextanyone_core.weights.lora import load_lora, merge_loras
from contextanyone_core.weights.personal_file import read_personal_file
from training.data.frames import Placement
from training.data.manifest import ManifestRow, read_manifest
from training.data.media import read_frames

_COLUMNS = 5
_TITLE = 22  # pixels of a row's title


@dataclass(frozen=True)
class SheetRequest:
    """What the sheet is made of.

    Attributes:
        manifest: of the clip. base, lora, encoders: the network's file, the personal file, the folder of the encoders.
        prompts: one for each place.
        size: (height, width); num_frames: 4k + 1; steps: of the sampler.
        regions: whether the background reads the prompts without the person's name, as in the training; it is where
            the pose's hull is not, so that a base without poses has none.
    """

    manifest: Path
    base: Path
    lora: Path
    encoders: Path
    prompts: Sequence[str]
    size: tuple[int, int]
    num_frames: int
    steps: int
    regions: bool


def write_sheet(request: SheetRequest, out: Path) -> None:
    """Generate the clips and write the sheet as a PNG, whole or not at all.

    Raises:
        CheckpointError: a weight file does not fit.
        OSError: the disk is full.
    """
    shown = [("the clip", _clip_frames(request)), *zip(request.prompts, generate(request), strict=True)]
    rows = []
    for title, frames in shown:
        chosen = frames[np.linspace(0, len(frames) - 1, min(_COLUMNS, len(frames))).round().astype(int)]
        rows.append(_titled(title, contact_sheet([], chosen)))
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    with whole_file(out) as beside:
        sheet.save(beside, format="PNG")


def generate(request: SheetRequest) -> list[Pixels]:
    """A clip (T, H, W, 3) for each prompt, driven by the poses of the person's own clip.

    The text encoder, the largest network, is gone before the others come: a card that trains may have no room for both.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = card_dtype(device)
    text = OnDemandTextEncoder(request.encoders / "text_encoder.safetensors", dtype, device)
    embeds = text.encode([*request.prompts, MODELS["wan"].own_negative(text.text_len)])
    transformer = load_transformer(request.base, dtype=dtype, device=device, plain=True)
    merge_loras(transformer, [(load_lora(request.lora, transformer), 1.0)])
    config = transformer.config
    sampler = LatentSampler(transformer)
    vae = VideoVAE(load_vae(request.encoders / "vae.safetensors", dtype, device), config)
    height, width = request.size
    settings = GenerationSettings(num_frames=request.num_frames, width=width, height=height, steps=request.steps)
    embeds = F.pad(embeds, (0, 0, 0, config.text_len - text.text_len)).to(device, dtype)
    named = _named(request, text)
    shown = _posed(request, vae, config.pose_style, named) if config.condition_dim else [None] * len(named)
    clips = []
    for index, condition in enumerate(tqdm(shown, desc="sheet", unit="clip", disable=None)):
        conditions = Conditions(embeds[index : index + 1], embeds[-1:], None, condition)
        latents = sampler.sample_latents(conditions, settings, sampler.noise([index], settings))
        clips.append(images_to_frames(vae.decode(latents).cpu()))
    return clips


def _named(request: SheetRequest, text: Tokenizer) -> list[Tokens]:
    """The tokens of each prompt that name the person; none where no regions are asked for."""
    if not request.regions:
        return [()] * len(request.prompts)
    person = read_personal_file(request.lora)
    return [named_rows(text.split(prompt), person)[0] for prompt in request.prompts]


def _posed(request: SheetRequest, vae: VideoVAE, style: str, named: Sequence[Tokens]) -> list[VideoCondition | None]:
    """The condition of each prompt's clip: latents of the person's own poses and, where it is named, its regions."""
    poses = _own_poses(request)
    images = frames_to_images(draw_poses(poses, STYLES[style]))
    condition = encode_condition(vae, images.to(vae.device), None, request.size)
    hull = person_hull(poses, STYLES[style])
    return [replace(condition, regions=person_regions(hull, rows)) if rows else condition for rows in named]


def _clip_row(request: SheetRequest) -> ManifestRow:
    """The manifest's first row that is a clip, not a picture."""
    return next(line.row for line in read_manifest(request.manifest).lines if line.row.num_frames != 1)


def _own_poses(request: SheetRequest) -> PoseSequence:
    """The clip's poses at the video's size; the last one stays where the clip is shorter."""
    row = _clip_row(request)
    poses = read_pose_file(request.manifest.parent / str(row.pose))
    first, count = row.start_frame, row.num_frames or poses.num_frames
    whole = prepare(poses.at(range(first, first + count)))
    picked = whole.at([min(index, whole.num_frames - 1) for index in range(request.num_frames)])
    points = picked.whole
    placement = Placement((0, 0, picked.width, picked.height), request.size)
    points[..., :2] = placement.move(points[..., :2].astype(np.float32))
    height, width = request.size
    return picked.with_points(points).moved(1.0, (0.0, 0.0), (height, width))


def _clip_frames(request: SheetRequest) -> Pixels:
    """Five frames of the clip as the training crops them."""
    row = _clip_row(request)
    count = row.num_frames or 1
    indexes = [row.start_frame + round(share * (count - 1)) for share in np.linspace(0, 1, min(_COLUMNS, count))]
    frames = read_frames(request.manifest.parent / row.video, indexes)
    placed = Placement((0, 0, frames.shape[3], frames.shape[2]), request.size).apply(frames)
    shown: NDArray[np.uint8] = placed.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return shown


def _titled(title: str, row: Image.Image) -> Image.Image:
    whole = Image.new("RGB", (row.width, row.height + _TITLE), "white")
    whole.paste(row, (0, _TITLE))
    ImageDraw.Draw(whole).text((6, 4), title, fill=(20, 20, 20), font=ImageFont.load_default(14))
    return whole
