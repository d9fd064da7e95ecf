"""Makes this folder's stand-ins importable under their public names (``detectron2``, ``centernet``, ``mask_former``).

Importing this package appends its folder to the *end* of ``sys.path``, so that an installed package of the same name
wins. Never import a stand-in as ``third_party.NAME``: the same module under two names means two registries.
"""

import sys
from pathlib import Path

_FOLDER = str(Path(__file__).resolve().parent)

if _FOLDER not in sys.path:
    sys.path.append(_FOLDER)
