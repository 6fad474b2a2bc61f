"""Regional compilation: the repeated block is compiled once, and all blocks of a transformer share the code."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch

from ..errors import MissingDependencyError
from ..model.blocks import TransformerBlock
from ..model.transformer import ContextAnyoneTransformer


def compile_blocks(
    transformer: ContextAnyoneTransformer, forward: Callable[..., Any] = TransformerBlock.forward, **options: Any
) -> None:
    """Compile the blocks' `forward`; compilation happens at the first call.

    Each path through the block is one full graph: the video stream with and without a cache, and the reference stream;
    in training both streams in one. So a run compiles at most three graphs, for any number of blocks, steps and passes;
    each video size compiles its own. Attach other libraries' hooks to the blocks after this call, never before.

    Args:
        transformer: only the `forward` of its blocks is replaced.
        forward: what is compiled, a function of the block and its inputs; the trainer wraps the block's own.
        options: passed to `torch.compile`, such as `backend`.
    """
    compiled = torch.compile(forward, fullgraph=True, dynamic=False, **options)
    for block in transformer.blocks:
        block.forward = MethodType(compiled, block)


def check_compiler(device: torch.device) -> None:
    """Check that inductor can compile for a device.

    Raises:
        MissingDependencyError: triton is not installed (GPU), or there is no C++ compiler (CPU).
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
    """Whether inductor finds its C++ compiler; True if this version of torch offers no way to ask."""
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler
    except ImportError:
        return True
    try:
        get_cpp_compiler()
    except (RuntimeError, OSError):
        return False
    return True
