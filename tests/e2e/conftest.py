"""What the tests that drive a household share."""

from __future__ import annotations

import sys
from pathlib import Path

# `served` is importable by its neighbours.
sys.path.insert(0, str(Path(__file__).parent))
