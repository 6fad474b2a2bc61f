from collections.abc import Sequence
from typing import Any

def cond_has_hooks(cond: Sequence[Sequence[Any]]) -> bool: ...
