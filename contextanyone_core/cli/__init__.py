"""The command line, `contextanyone`."""

from .main import main

__all__ = ["main"]
