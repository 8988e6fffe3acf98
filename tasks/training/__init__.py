"""The bodies of the training stages, apart from the stages themselves so that planning a run does not import torch."""
