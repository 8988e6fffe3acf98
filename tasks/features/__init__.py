"""The bodies of the stage `features`, apart from its rows so that planning a run does not import torch."""
