import errno
import hashlib
import io
import logging
import os

import pytest
import torch
from torch.testing import assert_close

from prompt_pretrain import atomic_files
from prompt_pretrain.checkpoints import CheckpointFolder, check_settings, remove_temporary_files
from prompt_pretrain.errors import InputError


def state(value):
    return {"ctx": torch.full((2, 3), float(value)), "note": {"best": value}}


def test_no_state_in_an_empty_or_missing_folder(tmp_path):
    assert CheckpointFolder(tmp_path / "none").load() is None


def test_the_newest_state_comes_back_and_only_two_are_kept(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for step in (9, 10, 100):
        folder.save(state(step), step)
    loaded = folder.load()
    assert loaded["step"] == 100 and loaded["note"] == {"best": 100}
    assert_close(loaded["ctx"], torch.full((2, 3), 100.0))
    assert sorted(os.listdir(tmp_path)) == ["state-00000010.pth", "state-00000100.pth"]


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:200] + b"?" + b[201:], lambda b: b""])
def test_a_damaged_state_is_reported_and_the_one_before_is_used(tmp_path, caplog, damage):
    folder = CheckpointFolder(tmp_path)
    folder.save(state(1), 1)
    newest = folder.save(state(2), 2)
    newest.write_bytes(damage(newest.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert folder.load()["step"] == 1
    assert "state-00000002.pth is damaged (its checksum is wrong)" in caplog.text


def test_a_full_disk_leaves_the_states_as_they_were(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path)
    folder.save(state(1), 1)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic_files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        folder.save(state(2), 2)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_a_state_of_another_version_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("prompt_pretrain.checkpoints._FORMAT", 0)
    CheckpointFolder(tmp_path).save(state(1), 1)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"another version \(format 0, expected 2\)"):
        CheckpointFolder(tmp_path).load()


def test_clearing_leaves_nothing_to_continue_from(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(state(1), 1)
    folder.clear()
    assert folder.load() is None


def test_settings_that_differ_are_named_with_both_values(tmp_path):
    check_settings({"SEED": 1, "K": 5}, {"K": 5, "SEED": 1}, tmp_path)
    with pytest.raises(InputError, match=r"has SEED 1 but now it is 2; set it back .* --no-resume"):
        check_settings({"SEED": 1}, {"SEED": 2}, tmp_path)
    with pytest.raises(InputError, match="has K 'not set' but now it is 5"):
        check_settings({}, {"K": 5}, tmp_path)


def test_left_over_temporary_files_go_and_others_stay(tmp_path):
    for name in (".state-00000001.pth.abc.tmp", "kept.tmp", ".kept"):
        (tmp_path / name).write_text("x")
    remove_temporary_files(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".kept", "kept.tmp"]


@pytest.mark.parametrize("content", [b"no archive", [1, 2]])
def test_a_file_that_is_no_state_in_spite_of_its_checksum_is_named(tmp_path, content):
    if isinstance(content, list):
        stream = io.BytesIO()
        torch.save(content, stream)
        content = stream.getvalue()
    (tmp_path / "state-00000001.pth").write_bytes(content + hashlib.sha256(content).digest())
    with pytest.raises(InputError, match="state-00000001.pth is no state of a pre-training"):
        CheckpointFolder(tmp_path).load()
