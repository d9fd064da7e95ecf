import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from prompt_pretrain.atomic_files import atomic_writer, write_json, write_npy, write_safetensors


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_writer(path, "w") as file:
        file.write("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_nothing_stands_under_the_final_name_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.bin"
    with atomic_writer(path) as file:
        file.write(b"1")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"1"


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"kept": True})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"kept": False})
    assert json.loads(path.read_text()) == {"kept": True}
    assert os.listdir(tmp_path) == ["a.json"]


def test_files_get_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_json(tmp_path / "ours", 1)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_arrays_and_tensors_read_back(tmp_path: Path) -> None:
    write_npy(tmp_path / "a.npy", np.arange(6, dtype=np.float16).reshape(2, 3))
    assert np.array_equal(np.load(tmp_path / "a.npy", allow_pickle=False), np.arange(6).reshape(2, 3))
    write_safetensors(tmp_path / "a.safetensors", {"x": torch.ones(3, 2).T}, {"names": "ä"})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"names": "ä"}
        assert torch.equal(file.get_tensor("x"), torch.ones(2, 3))
