"""What the tests that drive a local stack share."""

from __future__ import annotations

import sys
from pathlib import Path

# `served` is importable by its neighbours.
sys.path.insert(0, str(Path(__file__).parent))
