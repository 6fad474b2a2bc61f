"""VACE (Wan 2.1) through diffusers' `WanVACEPipeline`, with our encoders, sigmas and noise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch

from ..config import ContextAnyoneConfig
from ..encoders.loading import fill, on_meta
from ..encoders.reference import pad_picture
from ..encoders.text import TextEncoder, load_text_encoder
from ..encoders.vae import VideoVAE, load_vae
from ..errors import CheckpointError, InputError
from ..late_import import host_class
from ..media.image_io import images_to_frames
from ..model.condition import VideoCondition
from ..model_specs import MODELS
from ..prompts import TwoStagePrompt, check_prompts
from ..runtime.conv3d import OneDnnConv3d
from ..runtime.devices import check_device
from ..runtime.options import PLAIN
from ..sampling.flow import sigma_schedule
from ..sampling.guidance import EVERYWHERE, CfgGuidance, make_guidance
from ..sampling.schedulers import Sampler, make_sampler
from ..weights.checkpoint import load_tensors, require_finite
from ..weights.locate import need_component
from .pipeline import GenerationResult, GenerationSettings, Progress

_SHIFT = 16.0  # VACE's published inference
_CLASS = "WanVACETransformer3DModel"
_WAN = "diffusers.models.transformers.transformer_wan"


class VacePipeline:
    """Reference to video with VACE: what `ContextAnyonePipeline` is for ours, with the same `generate`.

    References precede the video in time, in the order given, and are removed from the output. Both passes of a step
    are conditioned on them; only the prompt is guided.

    Args:
        transformer: diffusers' `WanVACETransformer3DModel`, in the dtype in which it shall run.
        vae, text_encoder: the encoders.
    """

    spec = MODELS["vace"]
    execution = PLAIN

    def __init__(self, transformer: Any, vae: VideoVAE, text_encoder: TextEncoder) -> None:
        self.config = _config(transformer.config, vae, text_encoder)
        self.vae, self.text_encoder = vae, text_encoder
        host = host_class("diffusers.pipelines.wan.pipeline_wan_vace", "WanVACEPipeline")
        self._host = host(
            tokenizer=None, text_encoder=None, vae=vae.vae, scheduler=None, transformer=transformer.eval()
        )
        self._host.set_progress_bar_config(disable=True)

    @classmethod
    def from_folder(cls, folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Self:
        """Load a folder like the public Wan2.1-VACE-1.3B-diffusers: `transformer/` in diffusers' form, VAE and umT5.

        Raises:
            CheckpointError: a part is missing, damaged or of another model.
            InputError: the device does not exist.
            MissingDependencyError: diffusers, transformers, sentencepiece or ftfy is not installed.
        """
        device, folder = check_device(device), Path(folder)
        transformer = _load_transformer(folder / "transformer", dtype).to(device)
        vae = VideoVAE(load_vae(need_component(folder, "vae"), dtype, device))
        return cls(transformer, vae, load_text_encoder(need_component(folder, "text_encoder"), dtype, device))

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        found: torch.device = self._host.transformer.device
        return found

    @property
    def own_negative(self) -> str:
        """The negative prompt of a run that names none."""
        return self.spec.own_negative(self.config.text_len)

    def check_prompt(self, prompt: TwoStagePrompt, negative: str) -> None:
        """Check the length of the prompts.

        Raises:
            InputError: a prompt is too long; the message states by how many tokens.
        """
        check_prompts(prompt, negative, self.text_encoder.count_tokens, self.config.text_len)

    def encode_ahead(self, prompts: Sequence[TwoStagePrompt], negative: str, *, pictures: bool) -> None:
        """Does nothing: the text encoder is always loaded."""

    def encode_references(self, images: Sequence[torch.Tensor], size: tuple[int, int]) -> list[torch.Tensor]:
        """Pictures brought to the size of the video; diffusers' pipeline encodes them for each.

        Raises:
            ShapeError: a picture is not (1, 3, H, W).
        """
        return [pad_picture(image, size) for image in images]

    @torch.no_grad()
    def generate(
        self,
        references: Sequence[torch.Tensor],
        prompt: TwoStagePrompt,
        settings: GenerationSettings,
        *,
        condition: VideoCondition | None = None,
        negative: str | None = None,
        progress: Progress | None = None,
    ) -> GenerationResult:
        """One video; arguments as `ContextAnyonePipeline.generate`. `emphasis` and `gap` are unused.

        Raises:
            InputError: a pose or start frame is given, a prompt is too long, or a guidance that is not `cfg` with a
                scale of at least 1.
            ShapeError: a reference is not (1, 3, H, W).
        """
        if condition is not None:
            raise InputError(f"{self.spec.title} takes no pose and no start frame; leave them out.")
        negative = self.own_negative if negative is None else negative
        self.check_prompt(prompt, negative)
        embeds = self.text_encoder.encode([prompt.video_text, negative]).to(self.device)
        shift = self.config.shift if settings.shift is None else settings.shift
        sampler = make_sampler(settings.sampler, sigma_schedule(settings.steps, shift))
        self._host.scheduler = _OurSigmas(sampler, progress)
        frames = [images_to_frames(pad_picture(image, settings.size)[:, :, None])[0] for image in references]
        with OneDnnConv3d():  # the host encodes the references itself
            found = self._host(
                reference_images=_reversed(frames),
                prompt_embeds=embeds[:1],
                negative_prompt_embeds=embeds[1:],
                height=settings.height,
                width=settings.width,
                num_frames=settings.num_frames,
                num_inference_steps=settings.steps,
                guidance_scale=_scale(settings, self.config),
                latents=self._noise(settings, len(frames)),
                output_type="latent",
            )
        latents = found.frames[:, :, len(frames) :]
        return GenerationResult(self.vae.decode(latents).cpu(), latents.float().cpu())

    def _noise(self, settings: GenerationSettings, references: int) -> torch.Tensor:
        """Noise of the references' places, then that of the video, which is the other models' for the same seed."""
        generator = torch.Generator().manual_seed(settings.seed)
        batch, channels, frames, *sides = settings.shape.latents_shape(self.config)
        parts = [torch.randn((batch, channels, length, *sides), generator=generator) for length in (frames, references)]
        return torch.cat(parts[::-1], dim=2).to(self.device)


class _OurSigmas:
    """A `Sampler` with the interface of diffusers' schedulers."""

    order = 1

    def __init__(self, sampler: Sampler, progress: Progress | None) -> None:
        self._sampler, self._progress, self._done = sampler, progress, 0
        self.timesteps = 1000.0 * sampler.sigmas[:-1]

    def set_timesteps(self, _: int, device: torch.device) -> None:
        self.timesteps = self.timesteps.to(device)

    def step(self, velocity: torch.Tensor, _: torch.Tensor, x: torch.Tensor, **__: Any) -> tuple[torch.Tensor]:
        moved = self._sampler.step(velocity.float(), self._done, x)
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, len(self.timesteps))
        return (moved,)


def _reversed(frames: list[Any]) -> list[Any] | None:
    """Pictures for diffusers' pipeline, which puts each before those already there."""
    from PIL import Image

    return [Image.fromarray(frame) for frame in reversed(frames)] or None


def _scale(settings: GenerationSettings, config: ContextAnyoneConfig) -> float:
    guidance = settings.guidance or make_guidance("cfg", config)
    if not isinstance(guidance, CfgGuidance) or guidance.guidance_scale < 1 or guidance.interval != EVERYWHERE:
        raise InputError(f"guidance is {guidance}; VACE needs cfg with a scale of at least 1 and no interval.")
    return guidance.guidance_scale


def _config(theirs: Any, vae: VideoVAE, text: TextEncoder) -> ContextAnyoneConfig:
    """The config of diffusers' transformer as ours, as far as other modules read it."""
    if theirs.text_dim != text.text_dim:
        raise CheckpointError(
            f"text_dim of the encoder is {text.text_dim}, the transformer needs {theirs.text_dim}: the files do not "
            "belong together."
        )
    return ContextAnyoneConfig(
        dim=theirs.num_attention_heads * theirs.attention_head_dim,
        ffn_dim=theirs.ffn_dim,
        num_heads=theirs.num_attention_heads,
        num_layers=theirs.num_layers,
        text_dim=text.text_dim,
        text_len=text.text_len,
        image_dim=None,
        emphasize=False,
        shift=_SHIFT,
        latents_mean=tuple(vae.vae.config.latents_mean),
        latents_std=tuple(vae.vae.config.latents_std),
    )


def _load_transformer(folder: Path, dtype: torch.dtype) -> Any:
    """The transformer of a diffusers folder, strictly; what diffusers keeps in float32 stays there."""
    values, host = _read_config(folder), host_class(f"{_WAN}_vace", _CLASS)
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_tensors(path)
    require_finite(folder, tensors)
    full = set(host._keep_in_fp32_modules)
    stored = {
        name: tensor.to(torch.float32 if full & set(name.split(".")) else dtype) for name, tensor in tensors.items()
    }
    model = fill(on_meta(lambda: host.from_config(values)), stored, folder)
    made = model.config  # the rotary tables are in no file
    rope = host_class(_WAN, "WanRotaryPosEmbed")
    model.rope = rope(made.attention_head_dim, made.patch_size, made.rope_max_seq_len)
    return model


def _read_config(folder: Path) -> dict[str, Any]:
    wanted = "VACE needs a folder in diffusers' form, such as Wan2.1-VACE-1.3B-diffusers, with transformer/config.json"
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder / 'config.json'} is not there. {wanted}.")
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found = values.get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read ({error}). {wanted}.") from error
    if found != _CLASS:
        raise CheckpointError(f"{folder} holds a {found}; --model vace needs a {_CLASS}.")
    return {name: value for name, value in values.items() if not name.startswith("_")}
