"""Lets the tests of this folder import their own helper modules (linear_part)."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
