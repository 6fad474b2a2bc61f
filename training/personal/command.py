"""What `personalize.py` does, step by step: check, prepare, encode, train both stages, write the file and its sheet."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from contextanyone_core.atomic_file import whole_file
from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.encoders.text import read_tokenizer
from contextanyone_core.errors import InputError
from contextanyone_core.prompts import check_text_length
from contextanyone_core.weights.checkpoint import transformer_config
from contextanyone_core.weights.source import open_source
from training.cache import build_cache
from training.config import TrainConfig, load_config
from training.data.cache import read_index
from training.loop import train
from training.parts.manifest import Settings
from training.personal.names import check_caption, check_class, check_name, trigger_caption, without_name
from training.personal.prepare import Clip, Prepared, prepare
from training.personal.presets import PLACES, PRESETS, Preset
from training.personal.sheet import SheetRequest, write_sheet
from training.personal.shot import LEAST
from training.settings import MINIATURE

_LOG = logging.getLogger(__name__)
_SAVED = "Saved in %s; the same command goes on from there."


@dataclass(frozen=True)
class Request:
    """The command's options, as `personalize.py --help` describes them."""

    clip: Path
    class_name: str
    out: Path
    preset: str
    name: str
    caption: str | None
    mask: Path | None
    pose: Path | None
    models: Path | None
    base: Path | None
    encoders: Path | None
    consent: str
    license: str
    overrides: tuple[str, ...]

    @property
    def captions(self) -> tuple[str, ...]:
        """The captions of the rows: the trigger alone, and what the user says of the clip.

        One sentence alone would be learnt as a whole: the place, and not the name, would call the person.
        """
        stated = [trigger_caption(self.name, self.class_name), *([self.caption] if self.caption else [])]
        return tuple(dict.fromkeys(text if text.endswith(".") else f"{text}." for text in stated))

    @property
    def folder(self) -> Path:
        """The folder of the work, beside the file: it resumes the run and may be deleted afterwards."""
        return self.out.with_suffix(".work")

    @property
    def sheet(self) -> Path:
        """The sheet, beside the file."""
        return self.out.with_suffix(".sheet.png")


def personalize(request: Request) -> int | None:
    """Train a personal model, or go on training it, and make its sheet. Returns the signal that ended it, else None.

    Raises:
        InputError: something given cannot be used; nothing of it is left on the disk.
        CheckpointError: a weight file is damaged or of another kind.
    """
    try:
        config, ended_by = train_person(request)
        if ended_by is None:
            write_sheet(_sheet_request(request, config), request.sheet)
    except KeyboardInterrupt:  # while preparing or drawing the sheet: a training saves, and returns its signal
        if request.folder.exists():
            _LOG.info(_SAVED, request.folder)
        else:
            _LOG.info("Nothing is written yet; the same command begins again.")
        raise
    return ended_by


def train_person(request: Request) -> tuple[TrainConfig, int | None]:
    """Everything but the sheet: the personal file is written unless a signal ended the training.

    Returns: the run's configuration, and the signal.

    Raises:
        InputError, CheckpointError: as `personalize`.
    """
    preset = PRESETS[request.preset]
    config, base = _checked(request, preset)
    settings = _settings(config)
    clip = Clip(
        request.clip,
        request.mask,
        request.pose,
        request.models,
        preset.shipped,
        request.captions,
        request.license,
        settings.anchor == "reference",
    )
    if request.mask is None and request.models is None and not preset.shipped:
        _LOG.warning("Neither --mask nor --models: the hull of the skeleton is the mask.")
    prepared = prepare(clip, request.folder / "data", settings.data.buckets)
    config = _config(request, preset, base, prepared)
    settings = _settings(config)
    ended_by = build_cache(settings.data)
    if ended_by is None:
        _require_both_stages(settings, prepared)
        ended_by = train(config)
    if ended_by is not None:
        _LOG.info(_SAVED, request.folder)
        return config, ended_by
    _publish(config.run.folder / "export" / "lora.safetensors", request.out)
    return config, None


def _checked(request: Request, preset: Preset) -> tuple[TrainConfig, ContextAnyoneConfig]:
    """Check what needs no clip: names, folders, and that base and encoders belong together."""
    if request.out.suffix != ".safetensors":
        raise InputError(f"--out is {request.out}; give the name of a .safetensors file, such as me.safetensors.")
    if not request.clip.exists():
        raise InputError(f"--clip {request.clip}: there is no such file.")
    if not request.license.strip():
        raise InputError("--license is empty; say what allows the file's use, or leave it out for 'unknown'.")
    base, encoders = _networks(request, preset)
    tokenizer, width = read_tokenizer(encoders / "text_encoder.safetensors")
    check_class(request.class_name)
    pieces = check_name(request.name, tokenizer)
    _LOG.info("The name %s is read as %s.", request.name, " ".join(pieces))
    if request.caption is not None:
        check_caption(request.caption, request.name, request.class_name)
        check_text_length("--caption", request.captions[-1], tokenizer.count_tokens, tokenizer.text_len)
    found = transformer_config(open_source(base), plain=True)
    if found.text_dim != width:
        raise InputError(
            f"--base {base} reads texts {found.text_dim} wide, the text encoder in {encoders} writes {width}: a base "
            "of another size; give the two that belong together (--base, --encoders)."
        )
    return _config(request, preset, found, None), found


def _networks(request: Request, preset: Preset) -> tuple[Path, Path]:
    """The files of the base and the folder of its encoders."""
    base = request.base or (MINIATURE / "transformer.safetensors" if preset.shipped else None)
    encoders = request.encoders or (MINIATURE if preset.shipped else None)
    if base is None or encoders is None:
        raise InputError(
            f"--preset {request.preset} needs --base FILE, such as Wan2.1-Fun-1.3B-Control.safetensors, and --encoders "
            "FOLDER with its vae.safetensors and text_encoder.safetensors."
        )
    if not base.is_file():
        what = "is a folder" if base.is_dir() else "is not there"
        raise InputError(f"--base {base} {what}; give the one file with the base's weights.")
    for name in ("vae", "text_encoder"):
        if not (encoders / f"{name}.safetensors").is_file():
            raise InputError(f"--encoders {encoders} holds no {name}.safetensors.")
    return base, encoders


def _config(request: Request, preset: Preset, base: ContextAnyoneConfig, prepared: Prepared | None) -> TrainConfig:
    """The preset's configuration with the user's files and words in it; --set comes last."""
    path, encoders = _networks(request, preset)
    folder, stated = request.folder, _settings(load_config(preset.config, preset.changes))
    person = {
        "name": request.name,
        "class": request.class_name,
        "caption": trigger_caption(request.name, request.class_name),
        "bones": None if prepared is None else prepared.bones,
        "preset": request.preset,
        "strength": 1.0 if stated.personal is None else stated.personal.strength,
        "license": request.license,
        "consent": request.consent,
    }
    posed = base.condition_dim > 0
    values = {
        "run.name": f"personal-{request.name}",
        "run.out": str(folder / "run"),
        "init.from": str(path),
        "part.condition": posed,
        "part.emphasize": None,
        "part.personal": person,
        "part.data.manifest": str(folder / "data" / "manifest.jsonl"),
        "part.data.cache": str(folder / "cache"),
        "part.data.encoders": str(encoders),
        "part.data.poses": base.pose_style if posed else None,
        "part.data.prior_class": request.class_name,
        "part.data.elsewhere": trigger_caption(request.name, request.class_name),
        "part.data.prior_captions": [
            *stated.data.prior_captions,
            *(without_name(caption, request.name, request.class_name) for caption in request.captions),
        ],
    }
    own = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return load_config(preset.config, [*preset.changes, *own, *request.overrides])


def _settings(config: TrainConfig) -> Settings:
    if not isinstance(config.part, Settings):
        raise InputError(f"part.name is {config.part.name}; a personal model is trained by the part manifest.")
    return config.part


def _require_both_stages(settings: Settings, prepared: Prepared) -> None:
    """Refuse a clip whose rows are too small, or too short, for a stage."""
    rows = read_index(settings.data)
    lengths = {row.bucket.num_frames for row in rows.rows}
    if not lengths or (settings.stills_steps is not None and (1 not in lengths or lengths == {1})):
        first = rows.dropped[0].detail if rows.dropped else f"no stretch has {LEAST} frames at 16 a second"
        raise InputError(f"{prepared.manifest}: the clip gives no rows for both stages ({first}).")


def _publish(exported: Path, out: Path) -> None:
    with whole_file(out) as beside:
        beside.write_bytes(exported.read_bytes())


def _sheet_request(request: Request, config: TrainConfig) -> SheetRequest:
    settings = _settings(config)
    rows = read_index(settings.data).rows
    bucket = max(row.bucket for row in rows)
    assert config.init.from_ is not None
    who = trigger_caption(request.name, request.class_name)
    return SheetRequest(
        settings.data.manifest,
        config.init.from_,
        request.out,
        settings.data.encoders,
        [f"{who} {place}." for place in PLACES],
        (bucket.height, bucket.width),
        bucket.num_frames,
        settings.sample_steps,
        regions=settings.regions != "none",
    )
