"""The parts that can be trained, by name. A part's module is imported only when it is the one chosen."""

import importlib
from dataclasses import dataclass
from typing import cast

from training.parts.base import Part, PartContext, PartSettings


@dataclass(frozen=True)
class PartEntry:
    """Where a part lives: its module (which defines Settings) and the name of its class there."""

    module: str
    part_class: str

    def settings_class(self) -> type[PartSettings]:
        """Import the module and return its Settings."""
        return cast(type[PartSettings], importlib.import_module(self.module).Settings)

    def build(self, settings: PartSettings, context: PartContext) -> Part:
        """Build the part."""
        return cast(Part, getattr(importlib.import_module(self.module), self.part_class)(settings, context))


PARTS: dict[str, PartEntry] = {
    "encoders": PartEntry("training.parts.encoders", "EncodersPart"),
    "vae": PartEntry("training.parts.vae", "VaePart"),
    "transformer": PartEntry("training.parts.transformer", "TransformerPart"),
    "manifest": PartEntry("training.parts.manifest", "ManifestPart"),
    "probe": PartEntry("training.parts.probe", "ProbePart"),
    "pose_reader": PartEntry("training.parts.pose_reader", "PoseReaderPart"),
}
