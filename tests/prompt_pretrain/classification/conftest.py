"""Small image folders, drawn afresh for every test, and a cache folder that no other test sees."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder during a test."""
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home / "prompt_pretrain"


def random_image(seed: int, width: int = 40, height: int = 32) -> Image.Image:
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def make_class() -> Callable[..., Path]:
    """``make_class(folder, count, first_seed)`` writes ``count`` lossless images ``0.png``, ``1.png``, ..."""

    def make(folder: Path, count: int, first_seed: int = 0) -> Path:
        folder.mkdir(parents=True)
        for i in range(count):
            random_image(first_seed + i).save(folder / f"{i}.png")
        return folder

    return make


@pytest.fixture
def make_tar() -> Callable[..., Path]:
    """``make_tar(path, {member name: bytes})`` writes a ustar archive."""

    def make(path: Path, members: dict[str, bytes], **options: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", format=options.get("format", tarfile.USTAR_FORMAT)) as archive:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return path

    return make


@pytest.fixture
def png() -> Callable[[int], bytes]:
    """``png(seed)`` gives the bytes of a small image."""

    def encode(seed: int) -> bytes:
        file = io.BytesIO()
        random_image(seed).save(file, "PNG")
        return file.getvalue()

    return encode
