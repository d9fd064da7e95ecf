"""Lets ``detection.py`` and ``segmentation.py`` of this folder import the packages of these names: import this first.

Python searches a script's own folder before all others. From here on the repository comes first and that folder last.
"""

import sys
from pathlib import Path

sys.path.append(sys.path.pop(0))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import third_party  # noqa: F401  makes detectron2, centernet and mask_former importable
