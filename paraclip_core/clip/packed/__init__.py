"""A text tower that computes the prefixes that texts share once: token lists, prefix trie, kernels.

The rest of the project imports from here, never from a submodule.
"""

from paraclip_core.clip.packed.ragged import Ragged
from paraclip_core.clip.packed.tower import PackedTower, packed_tower
from paraclip_core.clip.packed.transformer import weight_gradient
from paraclip_core.clip.packed.trie import alphabetical, prefix_trie

__all__ = ["PackedTower", "Ragged", "alphabetical", "packed_tower", "prefix_trie", "weight_gradient"]
