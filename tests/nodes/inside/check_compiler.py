"""torch.compile as core's node puts it around a MODEL: it reaches our network and gives the same numbers.

The node's compiler needs a C++ compiler; here its graphs are run as they are.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from check_patches import MODELS, plain, run
from graph import call, needed
from stack import largest
from torch._dynamo.testing import CompileCounter

_compile = torch.compile


def compiled(counter: Any) -> Any:
    """A patch: the node, with a backend that counts the graphs."""

    def counted(*, backend: str, **given: Any) -> Any:
        return _compile(backend=counter, **given)

    def patch(model: Any) -> Any:
        with mock.patch.object(torch, "compile", counted):
            return call("TorchCompileModel", model=model, backend="inductor")[0]

    return patch


def check_the_compiler_node_gives_the_same_numbers():
    needed("TorchCompileModel")
    for name in MODELS:
        counter = CompileCounter()
        found = run(name, compiled(counter))
        assert counter.frame_count > 0, (name, "nothing was compiled")
        assert largest(found - plain(name)) < 1e-5 * largest(plain(name)), (name, largest(found - plain(name)))
