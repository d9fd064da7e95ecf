"""Running the commands of ``datasets/`` in this process, on files in a temporary folder."""

import importlib
import io
import json
import tarfile
from pathlib import Path

from PIL import Image

from prompt_pretrain.command_line import run_command

FOLDER = Path(__file__).parents[2] / "datasets"


class Command:
    """A command of ``datasets/`` and its data root."""

    def __init__(self, name, root, monkeypatch, capsys):
        monkeypatch.syspath_prepend(str(FOLDER))
        self.module = importlib.import_module(name)
        self.root = root
        self._capsys = capsys

    def __call__(self, *argv):
        """Run it, which must succeed; returns what it printed."""
        assert run_command(self.module.main, [*map(str, argv), "--root", str(self.root)]) == 0
        return self._capsys.readouterr().out

    def error(self, *argv):
        """Run it, which must fail with status 2; returns its one line."""
        assert run_command(self.module.main, [*map(str, argv), "--root", str(self.root)]) == 2
        lines = self._capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    def write(self, path, content):
        """Write a json below the data root; returns its path."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
        return file

    def read(self, path):
        return json.loads((self.root / path).read_text())


def jpeg(width, height, orientation=1):
    """Bytes of a small image."""
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height), (200, 30, 30)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def write_tar(path, members, **options):
    """A tar archive of (name, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
