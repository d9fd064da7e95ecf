"""ImageNet-21K's archives, read where they lie; damaged and malicious ones."""

import gzip
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detection.data.tar_dataset import DiskTarDataset
from prompt_pretrain.classification.decoding import ImageError
from prompt_pretrain.errors import InputError

BLOCK = 512


def jpeg(seed: int, side: int = 20, **options: int) -> bytes:
    pixels = np.random.RandomState(seed).randint(0, 256, (side, side + seed, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def write_archive(
    path: Path, members: list[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT, end: bool = True
) -> list[int]:
    """Write an archive; the block of each member's first header, then the first one behind the last member."""
    data, offsets = b"", []
    for name, content in members:
        offsets.append(len(data) // BLOCK)
        info = tarfile.TarInfo(name)
        info.size = len(content)
        data += info.tobuf(tar_format) + content + b"\0" * (-len(content) % BLOCK)
    path.write_bytes(data + (b"\0" * 1024 if end else b""))
    return [*offsets, len(data) // BLOCK]


def write_index(folder: Path, archives: list[tuple[str, list[int]]]) -> DiskTarDataset:
    index = folder / "index"
    index.mkdir(exist_ok=True)
    np.save(folder / "tar_files.npy", np.array([str(folder / name) for name, _ in archives]))
    for name, offsets in archives:
        np.save(index / f"{Path(name).stem}_offsets.npy", np.array(offsets, dtype=np.int64))
    return DiskTarDataset(folder / "tar_files.npy", index)


@pytest.fixture
def data_set(tmp_path: Path) -> DiskTarDataset:
    """Three archives, the second of them empty; a gzip-compressed member and one of garbage."""
    first = [("a_0.JPEG", jpeg(0)), ("a_1.JPEG", jpeg(1)), ("a_2.JPEG", gzip.compress(jpeg(2)))]
    last = [("c_0.JPEG", b"garbage" * 100), ("c_1.JPEG", jpeg(4))]
    offsets = {
        name: write_archive(tmp_path / name, m) for name, m in (("a.tar", first), ("b.tar", []), ("c.tar", last))
    }
    return write_index(tmp_path, list(offsets.items()))


def test_images_and_labels_run_over_the_archives_in_order(data_set: DiskTarDataset) -> None:
    assert len(data_set) == 5
    assert data_set.dataset_lens == [3, 0, 2]
    assert [data_set[index][1] for index in range(5)] == [0, 0, 0, -1, 2]
    for index in (0, 1, 2, 4):
        np.testing.assert_array_equal(np.asarray(data_set[index][0]), pixels_of(jpeg(index)))


def test_undecodable_images_are_grey_or_an_error(data_set: DiskTarDataset) -> None:
    image, label = data_set[3]
    assert (label, image.size, set(np.unique(np.asarray(image)))) == (-1, (224, 224), {128})
    with pytest.raises(ImageError, match=r"c.tar \(image 3, block 0\): damaged or not an image"):
        data_set.read_image(3)


def test_positions_beyond_the_end_are_refused(data_set: DiskTarDataset) -> None:
    for index in (-1, 5, 2**40, "1", None, 1.0):
        with pytest.raises(IndexError, match=f"image {index!r} of the tar data set, which has the images 0 to 4"):
            data_set[index]  # type: ignore[index]
    assert data_set[np.int64(1)][1] == 0


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("length", [120, 600])
def test_long_names_and_their_headers_are_skipped(tmp_path: Path, tar_format: int, length: int) -> None:
    members = [("a" * length + ".JPEG", jpeg(1)), ("b.JPEG", jpeg(2))]
    offsets = write_archive(tmp_path / "a.tar", members, tar_format)
    assert offsets[1] > 3
    data_set = write_index(tmp_path, [("a.tar", offsets)])
    for index in range(2):
        np.testing.assert_array_equal(np.asarray(data_set.read_image(index)), pixels_of(jpeg(index + 1)))


def test_members_that_the_index_leaves_out_do_not_disturb(tmp_path: Path) -> None:
    members = [("a.JPEG", gzip.compress(jpeg(1))), ("notes.txt", b"x" * 700), ("b.JPEG", jpeg(2))]
    first, _, second, end = write_archive(tmp_path / "a.tar", members)
    data_set = write_index(tmp_path, [("a.tar", [first, second, end])])
    np.testing.assert_array_equal(np.asarray(data_set.read_image(0)), pixels_of(jpeg(1)))


def test_images_are_turned_upright(tmp_path: Path) -> None:
    image = Image.open(io.BytesIO(jpeg(9)))
    exif = image.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    data_set = write_index(tmp_path, [("a.tar", write_archive(tmp_path / "a.tar", [("a.JPEG", buffer.getvalue())]))])
    assert data_set.read_image(0).size == (20, 29)


def test_names_in_the_archive_are_never_paths(tmp_path: Path) -> None:
    """The name of a member is not used for anything, so it cannot lead anywhere."""
    members = [("../../outside.JPEG", jpeg(1)), ("/etc/passwd.JPEG", jpeg(2)), ("a\nb.JPEG", jpeg(3))]
    data_set = write_index(tmp_path, [("a.tar", write_archive(tmp_path / "a.tar", members))])
    before = sorted(tmp_path.rglob("*"))
    assert [data_set[index][1] for index in range(3)] == [0, 0, 0]
    assert sorted(tmp_path.rglob("*")) == before


def test_truncated_archives_fail_image_by_image(tmp_path: Path) -> None:
    members = [("a.JPEG", jpeg(1)), ("b.JPEG", jpeg(2, side=60)), ("c.JPEG", jpeg(3))]
    offsets = write_archive(tmp_path / "a.tar", members)
    data_set = write_index(tmp_path, [("a.tar", offsets)])
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: offsets[1] * BLOCK + BLOCK + 100])
    data_set.read_image(0)
    with pytest.raises(ImageError, match=r"100 of the member's [\d,]+ bytes are there"):
        data_set.read_image(1)
    with pytest.raises(ImageError, match="no file where its index says"):
        data_set.read_image(2)


def test_a_compressed_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import prompt_pretrain.classification.tar_archives as tar_archives

    monkeypatch.setattr(tar_archives, "MAX_MEMBER_BYTES", 1 << 16)
    bomb = gzip.compress(b"\0" * (1 << 20))
    data_set = write_index(tmp_path, [("a.tar", write_archive(tmp_path / "a.tar", [("a.JPEG", bomb)]))])
    with pytest.raises(ImageError, match="unpacks to more than the 65,536 bytes allowed"):
        data_set.read_image(0)


def test_a_missing_archive_is_no_unreadable_image(data_set: DiskTarDataset, tmp_path: Path) -> None:
    (tmp_path / "c.tar").unlink()
    with pytest.raises(InputError, match=r"c.tar does not exist; check the paths in DATALOADER.TARFILE_PATH") as error:
        data_set[4]
    assert not isinstance(error.value, ImageError)


def test_data_sets_travel_to_workers(data_set: DiskTarDataset) -> None:
    copied = pickle.loads(pickle.dumps(data_set))
    np.testing.assert_array_equal(np.asarray(copied[4][0]), np.asarray(data_set[4][0]))


class _Opened:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (self.path, "w")


def test_indexes_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "tar_files.npy", np.array([_Opened(str(tmp_path / "hacked"))], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"tar_files.npy is no readable .npy array of numbers"):
        DiskTarDataset(tmp_path / "tar_files.npy", tmp_path)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "tar_files.npy does not exist; make the index.*or set DATALOADER.TARFILE_PATH"),
        (b"text", "tar_files.npy is no readable .npy array"),
        (b"", "tar_files.npy is no readable .npy array"),
        (b"PK\x03\x04", "tar_files.npy is no readable .npy array"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': '<U4'\n(", "tar_files.npy is no readable .npy array"),
        (np.array(3), r"an array of shape \(\) and type int64, expected a list of archive paths"),
        (np.array([], dtype="U4"), r"an array of shape \(0,\)"),
        (np.array([["a.tar"]]), r"an array of shape \(1, 1\)"),
    ],
)
def test_a_wrong_list_of_archives_is_named(tmp_path: Path, content: bytes | np.ndarray | None, message: str) -> None:
    file = tmp_path / "tar_files.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        np.save(file, content)
    with pytest.raises(InputError, match=message):
        DiskTarDataset(file, tmp_path)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (np.array([]), "expected n \\+ 1 whole numbers for the n images of .*a.tar; make the index again"),
        (np.array([0.0, 3.0]), "type float64, expected n \\+ 1 whole numbers"),
        (np.array([[0, 3]]), r"shape \(1, 2\)"),
        (np.array([0, 3, 3]), "block numbers in .*a_offsets.npy do not ascend from 0 or more"),
        (np.array([5, 3]), "do not ascend"),
        (np.array([-1, 3]), "do not ascend"),
        (np.array([0, 2**60]), "do not ascend"),
        (np.array([0, 2**64 - 1], dtype=np.uint64), "do not ascend"),
    ],
)
def test_a_wrong_index_is_named(tmp_path: Path, offsets: np.ndarray, message: str) -> None:
    np.save(tmp_path / "tar_files.npy", np.array([str(tmp_path / "a.tar")]))
    np.save(tmp_path / "a_offsets.npy", offsets)
    with pytest.raises(InputError, match=message):
        DiskTarDataset(tmp_path / "tar_files.npy", tmp_path)


def test_a_missing_index_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "tar_files.npy", np.array(["data/n01.tar"]))
    with pytest.raises(InputError, match=r"n01_offsets.npy does not exist; .*or set DATALOADER.TAR_INDEX_DIR"):
        DiskTarDataset(tmp_path / "tar_files.npy", tmp_path)


def test_lists_of_byte_strings_are_paths_too(tmp_path: Path) -> None:
    offsets = write_archive(tmp_path / "a.tar", [("a.JPEG", jpeg(1))])
    write_index(tmp_path, [("a.tar", offsets)])
    np.save(tmp_path / "tar_files.npy", np.array([str(tmp_path / "a.tar").encode()]))
    assert len(DiskTarDataset(tmp_path / "tar_files.npy", tmp_path / "index")) == 1


@pytest.mark.parametrize("seed", range(60))
def test_damaged_archives_give_an_image_or_an_image_error(tmp_path: Path, seed: int) -> None:
    generator = np.random.RandomState(seed)
    members = [(f"{n}.JPEG", gzip.compress(jpeg(n)) if n % 2 else jpeg(n)) for n in range(3)]
    offsets = write_archive(tmp_path / "a.tar", members, [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT][seed % 2])
    data = bytearray((tmp_path / "a.tar").read_bytes())
    for _ in range(generator.randint(1, 30)):
        where = generator.randint(len(data)) if seed % 3 else int(generator.choice(offsets[:3])) * BLOCK
        where += 0 if seed % 3 else generator.randint(BLOCK)  # in a header
        data[where] = generator.randint(256)
    (tmp_path / "a.tar").write_bytes(bytes(data[: generator.randint(1, len(data) + 1)] if seed % 5 == 0 else data))
    shifted = sorted({max(0, offset + int(generator.randint(-1, 2)) * (seed % 4 == 0)) for offset in offsets})
    data_set = write_index(tmp_path, [("a.tar", shifted)])
    for index in range(len(data_set)):
        try:
            data_set.read_image(index).load()
        except ImageError as error:
            assert "\n" not in str(error)
