"""Data sets and a sampler of CenterNet2; importing this registers the data sets."""

from centernet.data import datasets  # registers
from centernet.data.samplers import ClassAwareSampler

__all__ = ["ClassAwareSampler", "datasets"]
