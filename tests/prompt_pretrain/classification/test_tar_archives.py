import gzip
import io
import logging
import os
import tarfile

import numpy as np
import pytest

from prompt_pretrain.classification import tar_archives
from prompt_pretrain.classification.tar_archives import open_index, read_member
from prompt_pretrain.errors import InputError


@pytest.fixture(autouse=True)
def forget_indexes(monkeypatch):
    monkeypatch.setattr(tar_archives, "_indexes", type(tar_archives._indexes)())


def scan_count(monkeypatch) -> list[str]:
    scanned: list[str] = []
    scan = tar_archives.scan_archive
    monkeypatch.setattr(tar_archives, "scan_archive", lambda path, stamp: scanned.append(path) or scan(path, stamp))
    return scanned


def test_offsets_are_in_blocks(tmp_path, make_tar):
    sizes = (676, 1096, 513)
    archive = make_tar(tmp_path / "a.tar", {f"{i}.jpg": b"x" * size for i, size in enumerate(sizes)})
    index = open_index(str(archive))
    assert (index.offsets // 512 - 1).tolist() == [0, 3, 7]
    assert index.sizes.tolist() == list(sizes)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_equal_what_tarfile_reads(tmp_path, make_tar, form):
    rng = np.random.RandomState(0)
    long = "d" * 90 + "/" + "n" * 60 + ".jpg"
    names = ["b.jpg", "a.JPEG", "folder/c.png", "no_extension", "name with blanks.jpg", long]
    if form != tarfile.USTAR_FORMAT:
        names += ["é" * 120 + ".jpg", "x" * 300 + ".jpg"]
    members = {name: rng.bytes(rng.randint(0, 2000)) for name in names}
    archive = make_tar(tmp_path / "a.tar", members, format=form)
    index = open_index(str(archive))
    assert [os.fsdecode(bytes(name)) for name in index.names] == sorted(names, key=os.fsencode)
    for name, data in members.items():
        assert read_member(f"{archive}::{name}") == data


def test_gzip_members_are_unpacked(tmp_path, make_tar, monkeypatch):
    packed = gzip.compress(b"pixels" * 100)
    archive = make_tar(
        tmp_path / "a.tar", {"a.jpg": packed, "cut.jpg": packed[:-9], "bad.jpg": packed[:10] + b"\xff" * 30}
    )
    assert read_member(f"{archive}::a.jpg") == b"pixels" * 100
    with pytest.raises(OSError, match="compressed member is cut short"):
        read_member(f"{archive}::cut.jpg")
    with pytest.raises(OSError, match="compressed member is damaged"):
        read_member(f"{archive}::bad.jpg")
    monkeypatch.setattr(tar_archives, "MAX_MEMBER_BYTES", 500)
    with pytest.raises(OSError, match="unpacks to more than the 500 bytes allowed"):
        read_member(f"{archive}::a.jpg")


def test_only_images_inside_the_archive_are_members(tmp_path, caplog):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name in [
            "./ok.jpg",
            "../up.jpg",
            "/etc/abs.jpg",
            "a/../../b.jpg",
            ".",
            ".DS_Store",
            ".h/x.jpg",
            "._ok.jpg",
            "list.txt",
        ]:
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"other{int(kind)}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    with caplog.at_level(logging.WARNING):
        assert open_index(str(path)).names.tolist() == [b"ok.jpg"]
    assert "ignored 4 members" in caplog.text
    assert read_member(f"{path}::ok.jpg") == b"abc"


def test_of_equal_names_the_last_counts(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for data in (b"old", b"new"):
            info = tarfile.TarInfo("a.jpg")
            info.size = 3
            archive.addfile(info, io.BytesIO(data))
    assert read_member(f"{path}::a.jpg") == b"new"


def test_a_truncated_archive_keeps_its_whole_members(tmp_path, make_tar, caplog):
    archive = make_tar(tmp_path / "a.tar", {"a.jpg": b"a" * 700, "b.jpg": b"b" * 3000, "c.jpg": b"c"})
    with open(archive, "r+b") as file:
        file.truncate(512 + 1024 + 512 + 1000)
    with caplog.at_level(logging.WARNING):
        assert open_index(str(archive)).names.tolist() == [b"a.jpg", b"b.jpg"]
    assert "ends without an end mark" in caplog.text
    assert read_member(f"{archive}::a.jpg") == b"a" * 700
    with pytest.raises(OSError, match="archive is cut short: 1,000 of the member's 3,000 bytes are there"):
        read_member(f"{archive}::b.jpg")


def test_empty_archives_have_no_members(tmp_path, make_tar):
    assert len(open_index(str(make_tar(tmp_path / "a.tar", {}))).names) == 0
    (tmp_path / "b.tar").write_bytes(b"")
    assert len(open_index(str(tmp_path / "b.tar")).names) == 0


def test_what_is_no_plain_archive_is_an_error(tmp_path, make_tar):
    archive = make_tar(tmp_path / "a.tar", {"a.jpg": b"a" * 700, "b.jpg": b"b"})
    whole = archive.read_bytes()
    cases = {
        "is compressed; expected a plain tar archive": gzip.compress(whole).ljust(1024, b"\0"),
        "is not a tar archive": b"garbage!" * 200,
        "is damaged at byte 1,536": whole[:1536] + b"?" * 512 + whole[2048:],
    }
    for reason, data in cases.items():
        archive.write_bytes(data)
        with pytest.raises(InputError, match=reason):
            open_index(str(archive))


def test_lying_headers_end_the_scan(tmp_path):
    def header(size_field: bytes, kind: bytes = b"0") -> bytes:
        block = bytearray(512)
        block[:5], block[124:136], block[156:157] = b"a.jpg", size_field, kind
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        return bytes(block)

    path = tmp_path / "a.tar"
    path.write_bytes(header(b"\xff" * 12) * 2)  # a negative size
    with pytest.raises(InputError, match="not a tar archive"):
        open_index(str(path))
    path.write_bytes(header(b"77777777777\0") * 2)  # 8 GiB in a file of one kilobyte
    with pytest.raises(OSError, match="8,589,934,591 bytes, more than"):
        read_member(f"{path}::a.jpg")
    path.write_bytes(header(b"77777777777\0", b"L") * 2)
    with pytest.raises(InputError, match="is damaged: a name of 8,589,934,591 bytes"):
        open_index(str(path))


def test_an_archive_is_scanned_once_until_it_changes(tmp_path, make_tar, monkeypatch, cache_home):
    scanned = scan_count(monkeypatch)
    archive = str(make_tar(tmp_path / "a.tar", {"a.jpg": b"1"}))
    open_index(archive)
    tar_archives._indexes.clear()  # as in another process
    assert open_index(archive).names.tolist() == [b"a.jpg"]
    assert len(scanned) == 1
    make_tar(tmp_path / "a.tar", {"a.jpg": b"1", "b.jpg": b"22"})
    os.utime(archive, ns=(0, 12345))
    assert open_index(archive).names.tolist() == [b"a.jpg", b"b.jpg"]
    (cached,) = (cache_home / "tar_indexes").iterdir()
    cached.write_bytes(b"PK garbage")
    tar_archives._indexes.clear()
    assert len(open_index(archive).names) == 2
    assert len(scanned) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"names": np.array(b"a.jpg")},
        {"names": np.array([1])},
        {"offsets": np.array(512)},
        {"offsets": np.array([-1])},
        {"sizes": np.array([1.0])},
        {"sizes": np.array([1, 2])},
    ],
)
def test_a_cached_index_of_another_form_is_made_again(tmp_path, make_tar, wrong, cache_home):
    archive = str(make_tar(tmp_path / "a.tar", {"a.jpg": b"1"}))
    index = vars(open_index(archive))
    (cached,) = (cache_home / "tar_indexes").iterdir()
    np.savez(cached, **(index | wrong))
    tar_archives._indexes.clear()
    assert read_member(f"{archive}::a.jpg") == b"1"


def test_memory_holds_a_bounded_number_of_indexes(tmp_path, make_tar, monkeypatch):
    monkeypatch.setattr(tar_archives, "_MAX_INDEXES", 2)
    archives = [str(make_tar(tmp_path / f"{i}.tar", {"a.jpg": b"1"})) for i in range(3)]
    for archive in archives:
        open_index(archive)
    assert list(tar_archives._indexes) == archives[1:]
