"""ContextAnyone for ComfyUI: one picture of a character and two prompts become a video of that same character."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"
__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
