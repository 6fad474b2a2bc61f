"""The command `contextanyone`."""

from .main import main

__all__ = ["main"]
