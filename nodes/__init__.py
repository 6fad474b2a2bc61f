"""The nodes of ContextAnyone for ComfyUI (V3 schema)."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override


class ContextAnyoneExtension(ComfyExtension):
    """What ComfyUI registers."""

    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The nodes, in the order of the menu."""
        from .apply import ApplyContextAnyone
        from .guidance import ContextAnyoneGuider, ContextAnyoneSampler
        from .loaders import ContextAnyoneExamplePicture, LoadContextAnyone, LoadContextAnyoneMiniature
        from .prompt import ContextAnyonePrompt
        from .reference import ContextAnyoneReference

        return [
            LoadContextAnyone,
            LoadContextAnyoneMiniature,
            ContextAnyoneExamplePicture,
            ContextAnyoneReference,
            ContextAnyonePrompt,
            ApplyContextAnyone,
            ContextAnyoneGuider,
            ContextAnyoneSampler,
        ]


async def comfy_entrypoint() -> ContextAnyoneExtension:
    """ComfyUI's way in."""
    return ContextAnyoneExtension()
