"""CLIP models: load or build one, freeze its image tower, tell its identity, save it."""

from paraclip_core.clip.base import ClipModel, freeze_image_tower, pick_device
from paraclip_core.clip.embedded import embedded_clip
from paraclip_core.clip.identity import image_tower_hash, preprocess_hash, weights_hash
from paraclip_core.clip.load import load_clip
from paraclip_core.clip.reference import IMAGE_WEIGHTS, local_folder
from paraclip_core.clip.release import save_release

__all__ = [
    "IMAGE_WEIGHTS",
    "ClipModel",
    "embedded_clip",
    "freeze_image_tower",
    "image_tower_hash",
    "load_clip",
    "local_folder",
    "pick_device",
    "preprocess_hash",
    "save_release",
    "weights_hash",
]
