from collections.abc import Sequence
from typing import Any

from torch import Tensor

def conditioning_set_values(
    conditioning: Sequence[Sequence[Any]], values: dict[str, Any]
) -> list[tuple[Tensor, dict[str, Any]]]: ...
