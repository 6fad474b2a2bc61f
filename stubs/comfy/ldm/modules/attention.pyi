from typing import Any

from torch import Tensor

def optimized_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, *, transformer_options: dict[str, Any] = ...
) -> Tensor: ...
