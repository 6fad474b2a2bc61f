"""The repeated block compiled once, as one graph that every block of a transformer runs."""

from __future__ import annotations

import importlib.util
from types import MethodType
from typing import Any

import torch

from ..errors import MissingDependencyError
from ..model.blocks import TransformerBlock
from ..model.transformer import ContextAnyoneTransformer


def compile_blocks(transformer: ContextAnyoneTransformer, **options: Any) -> None:
    """Let the blocks run compiled, from the first call on.

    Both streams are compiled whole: the video's, with and without a cache, and the reference's. A run in which all of
    them occur compiles three graphs, however many blocks, steps and passes there are; another size of video compiles
    its own. Put hooks of a host on the blocks after this, never before.

    Args:
        transformer: stays as it is but for its blocks' `forward`.
        options: for `torch.compile`, such as `backend`.
    """
    compiled = torch.compile(TransformerBlock.forward, fullgraph=True, dynamic=False, **options)
    for block in transformer.blocks:
        block.forward = MethodType(compiled, block)


def check_compiler(device: torch.device) -> None:
    """See that what inductor needs is there.

    Raises:
        MissingDependencyError: on a card, triton is not installed; on a CPU, there is no C++ compiler.
    """
    if device.type == "cpu" and not _has_cpp_compiler():
        raise MissingDependencyError(
            "Compiling for a CPU needs a C++ compiler, and none is found. Install one (Debian and Ubuntu: apt install "
            "g++; macOS: xcode-select --install; Windows: Visual Studio's C++ build tools), or leave --compile out."
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise MissingDependencyError(
            "Compiling for a card needs the package triton, which is not installed. Run: pip install triton "
            "(on Windows: pip install triton-windows)"
        )


def _has_cpp_compiler() -> bool:
    """Whether inductor finds the compiler that it will ask for; yes where this torch cannot be asked."""
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler
    except ImportError:
        return True
    try:
        get_cpp_compiler()
    except (RuntimeError, OSError):
        return False
    return True
