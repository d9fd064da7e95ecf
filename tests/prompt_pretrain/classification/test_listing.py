import logging
import os

import pytest

from prompt_pretrain.classification import listing
from prompt_pretrain.classification.listing import as_items, list_class_folders
from prompt_pretrain.errors import InputError

EXPECTED = "expected class folders"
LONG_AGO = 1_000_000_000_000_000_000


def touch(folder, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")


def settle(root) -> None:
    for folder in root.iterdir():
        os.utime(folder, ns=(LONG_AGO, LONG_AGO))


def listed(root) -> dict[str, list[bytes]]:
    return {entry.name: entry.names.tolist() for entry in list_class_folders(root, EXPECTED)}


def test_folders_and_images_are_sorted_and_other_files_left_out(tmp_path):
    root = tmp_path / "train"
    touch(root / "n2", "b.JPEG", "a.png", ".DS_Store", "._b.JPEG", "Thumbs.db", "labels.txt", "no_extension")
    touch(root / "n10", "1.jpg")
    touch(root, "README.txt", ".hidden")
    touch(root / ".git", "x.jpg")
    touch(root / "split_fewshot", "x.jpg")
    (root / "n2" / "folder.jpg").mkdir()
    assert listed(root) == {"n10": [b"1.jpg"], "n2": [b"a.png", b"b.JPEG", b"no_extension"]}


def test_archives_are_classes_too(tmp_path, make_tar):
    root = tmp_path / "train"
    touch(root / "n1", "a.jpg")
    make_tar(root / "n0.tar", {"n0/z.jpg": b"z", "n0/y.jpg": b"y"})
    items = as_items(list_class_folders(root, EXPECTED), {"n0": 4, "n1": 7})
    assert [(item.path, item.label) for item in items] == [
        (f"{root}/n0.tar::n0/y.jpg", 4),
        (f"{root}/n0.tar::n0/z.jpg", 4),
        (f"{root}/n1/a.jpg", 7),
    ]


def test_only_changed_folders_are_listed_again(tmp_path, monkeypatch):
    root = tmp_path / "train"
    for name in ("n0", "n1", "n2"):
        touch(root / name, "a.jpg")
    settle(root)
    listed(root)
    calls: list[str] = []
    names = listing._image_names
    monkeypatch.setattr(listing, "_image_names", lambda folder: calls.append(os.path.basename(folder)) or names(folder))
    assert len(listed(root)) == 3
    assert calls == []
    touch(root / "n1", "b.jpg")
    touch(root / "n3", "c.jpg")
    (root / "n0" / "a.jpg").unlink()
    (root / "n0").rmdir()
    assert listed(root) == {"n1": [b"a.jpg", b"b.jpg"], "n2": [b"a.jpg"], "n3": [b"c.jpg"]}
    assert calls == ["n1", "n3"]


def test_a_folder_that_changed_just_now_is_not_trusted(tmp_path):
    root = tmp_path / "train"
    touch(root / "n0", "a.jpg")
    listed(root)
    stamp = (root / "n0").stat()
    touch(root / "n0", "b.jpg")
    os.utime(root / "n0", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # a clock too coarse to see the change
    assert listed(root) == {"n0": [b"a.jpg", b"b.jpg"]}


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_cache_is_made_again(tmp_path, cache_home, damage):
    root = tmp_path / "train"
    touch(root / "n0", "a.jpg")
    settle(root)
    listed(root)
    (cache,) = (cache_home / "listings").iterdir()
    cache.write_bytes(cache.read_bytes()[:-30] if damage is None else damage)
    assert listed(root) == {"n0": [b"a.jpg"]}


def test_a_cache_folder_that_cannot_be_written_costs_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    root = tmp_path / "train"
    touch(root / "n0", "a.jpg")
    with caplog.at_level(logging.WARNING):
        assert listed(root) == {"n0": [b"a.jpg"]}
    assert "could not save the cache file" in caplog.text


def test_links_are_followed_unless_they_lead_nowhere(tmp_path, caplog):
    root = tmp_path / "train"
    touch(tmp_path / "elsewhere", "z.jpg")
    touch(root / "n0", "a.jpg")
    (root / "n0" / "good.jpg").symlink_to(tmp_path / "elsewhere" / "z.jpg")
    (root / "n0" / "loop.jpg").symlink_to(root / "n0" / "loop.jpg")
    (root / "n0" / "gone.jpg").symlink_to(root / "nothing")
    (root / "n0" / "up").symlink_to(root)
    (root / "n1").symlink_to(tmp_path / "elsewhere")
    with caplog.at_level(logging.WARNING):
        assert listed(root) == {"n0": [b"a.jpg", b"good.jpg"], "n1": [b"z.jpg"]}
    assert "ignored 2 links" in caplog.text


def test_a_class_folder_that_is_a_loop_is_an_error(tmp_path):
    root = tmp_path / "train"
    touch(root / "n0", "a.jpg")
    (root / "n1").symlink_to(root / "n1")
    with pytest.raises(InputError, match="n1: .*symbolic links; mend or remove it"):
        listed(root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_class_folder_is_an_error(tmp_path):
    root = tmp_path / "train"
    touch(root / "n0", "a.jpg")
    (root / "n0").chmod(0)
    with pytest.raises(InputError, match="n0: Permission denied; mend or remove this class folder"):
        listed(root)


def test_missing_and_empty_folders_are_errors(tmp_path, make_tar):
    with pytest.raises(InputError, match="nowhere: No such file or directory; expected class folders"):
        listed(tmp_path / "nowhere")
    touch(tmp_path / "train", "image.jpg")
    with pytest.raises(InputError, match="holds no class folders; expected class folders"):
        listed(tmp_path / "train")
    touch(tmp_path / "train" / "n0", ".DS_Store")
    with pytest.raises(InputError, match="no images for class .*n0; add some or remove the empty class"):
        listed(tmp_path / "train")
    make_tar(tmp_path / "train" / "n1.tar", {})
    with pytest.raises(InputError, match=r"no images for class .*n0 \(and 1 more\)"):
        listed(tmp_path / "train")
    touch(tmp_path / "train" / "n1", "a.jpg")
    with pytest.raises(InputError, match="class n1 in .* is both a folder and an archive; remove one"):
        listed(tmp_path / "train")
