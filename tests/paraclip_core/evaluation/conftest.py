"""Makes the deterministic encoder importable by its neighbours."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
