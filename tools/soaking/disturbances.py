"""What happens to a training in a soak, and its undoing."""

import random
import shutil
from contextlib import suppress
from pathlib import Path

KINDS = ("kill", "damaged_checkpoint", "data_gone", "disk_full")
_GONE = ".gone"


def damage_images(folder: Path, pattern: str, rng: random.Random, share: float = 0.1) -> int:
    """Cut off, overwrite or empty some images for good. Returns how many."""
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    chosen = rng.sample(files, max(1, int(len(files) * share)))
    for number, path in enumerate(chosen):
        data = path.read_bytes()
        path.write_bytes((data[: len(data) // 2], rng.randbytes(300), b"")[number % 3])
    return len(chosen)


def damage_file(path: Path, rng: random.Random) -> None:
    """Cut a checkpoint off somewhere, or change some bytes in its middle."""
    data = bytearray(path.read_bytes())
    if rng.random() < 0.5:
        del data[rng.randrange(len(data)) :]
    else:
        start = len(data) // 2
        data[start : start + 64] = rng.randbytes(64)
    path.write_bytes(data)


class DataFolder:
    """A folder that can vanish and return."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._away = path.with_name(path.name + _GONE)
        self.restore()

    def vanish(self) -> None:
        self.path.rename(self._away)

    def restore(self) -> None:
        """Bring the folder back, if it is away."""
        if self._away.exists():
            self._away.rename(self.path)


class FullDisk:
    """Fills the file system of ``folder``, which has to be a small one of its own."""

    def __init__(self, folder: Path) -> None:
        self._ballast = folder / "ballast"
        self.restore()

    def fill(self) -> None:
        with suppress(OSError), open(self._ballast, "wb", buffering=0) as file:  # until there is no space left
            block = bytes(1 << 20)
            while file.write(block) == len(block):
                pass
        with suppress(OSError), open(self._ballast, "ab", buffering=0) as file:  # the last bytes
            while file.write(bytes(512)):
                pass

    def restore(self) -> None:
        """Give the space back."""
        self._ballast.unlink(missing_ok=True)


def empty(folder: Path) -> Path:
    """The folder, made if needed and without content."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder
