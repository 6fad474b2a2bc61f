"""The nodes of ContextAnyone for ComfyUI (V3 schema)."""

from __future__ import annotations

import sys

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

MINIMUM = (0, 24, 0)
"""The oldest ComfyUI that has what the nodes use."""
MINIMUM_PYTHON = (3, 11)


class ContextAnyoneExtension(ComfyExtension):
    """What ComfyUI registers."""

    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The nodes, in the order of the menu."""
        from .apply import ApplyContextAnyone
        from .cache import ContextAnyoneCache
        from .guidance import ContextAnyoneGuider, ContextAnyoneSampler
        from .loaders import ContextAnyoneExamplePicture, LoadContextAnyone, LoadContextAnyoneMiniature
        from .personal import LoadPersonalModel
        from .pose import ContextAnyoneExamplePose, ContextAnyonePose
        from .prompt import ContextAnyonePrompt
        from .reference import ContextAnyoneReference

        return [
            LoadContextAnyone,
            LoadContextAnyoneMiniature,
            LoadPersonalModel,
            ContextAnyoneExamplePicture,
            ContextAnyoneExamplePose,
            ContextAnyoneReference,
            ContextAnyonePose,
            ContextAnyonePrompt,
            ContextAnyoneCache,
            ApplyContextAnyone,
            ContextAnyoneGuider,
            ContextAnyoneSampler,
        ]


async def comfy_entrypoint() -> ContextAnyoneExtension:
    """ComfyUI's way in.

    Raises:
        RuntimeError: this ComfyUI or its Python is too old; its loader shows the line and goes on without the pack.
    """
    _require_python()
    _require_version()
    return ContextAnyoneExtension()


def _require_python() -> None:
    if sys.version_info[:2] < MINIMUM_PYTHON:
        needed, found = (".".join(map(str, numbers)) for numbers in (MINIMUM_PYTHON, sys.version_info[:2]))
        raise RuntimeError(f"ContextAnyone needs at least Python {needed}; this ComfyUI runs on {found}.")


def _require_version() -> None:
    from comfyui_version import __version__

    numbers = tuple(int(part) for part in __version__.split("+")[0].split(".")[:3] if part.isdigit())
    if numbers < MINIMUM:
        needed = ".".join(map(str, MINIMUM))
        raise RuntimeError(f"ContextAnyone needs at least ComfyUI {needed}; this is {__version__}. Update ComfyUI.")
