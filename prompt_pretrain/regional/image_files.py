"""JPEG files that are whole or absent, without the cost of flushing each one of many to the disk."""

import os
import threading
from pathlib import Path

from PIL import Image

_QUALITY = 95


def save_jpeg(image: Image.Image, path: Path) -> None:
    """Write an RGB image under ``path``, whose folder exists, through a temporary name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        image.save(temporary, "JPEG", quality=_QUALITY)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
