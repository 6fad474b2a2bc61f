"""Lets the tests of this folder import their own helper modules (tiny_backbones)."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
