from typing import Any

QUANT_ALGOS: dict[str, dict[str, Any]]
