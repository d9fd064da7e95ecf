import io
import pickle

import numpy as np
import pytest
from PIL import Image

from prompt_pretrain.classification.decoding import ImageError, open_image
from tests.prompt_pretrain.classification.conftest import random_image


def write(path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def claim(width: int, height: int) -> bytes:
    """An image file that claims a size and holds nothing."""
    return b"P6 %d %d 255\n" % (width, height)


def test_exif_orientation_is_applied(tmp_path):
    image = random_image(0, 40, 24)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    path = write(tmp_path / "a.png", encoded(image, "PNG", exif=exif))
    upright = open_image(path)
    assert upright.size == (24, 40)
    assert np.array_equal(np.asarray(upright), np.rot90(np.asarray(image), -1))


def test_a_broken_exif_block_is_ignored(tmp_path):
    path = write(tmp_path / "a.jpg", encoded(random_image(0), "JPEG", exif=b"Exif\0\0MM\0*garbage"))
    assert open_image(path).size == (40, 32)


def test_transparency_is_dropped(tmp_path):
    rgb = np.asarray(random_image(0))
    alpha = np.random.RandomState(1).randint(0, 256, rgb.shape[:2] + (1,), dtype=np.uint8)
    path = write(tmp_path / "a.png", encoded(Image.fromarray(np.concatenate([rgb, alpha], 2)), "PNG"))
    assert np.array_equal(np.asarray(open_image(path)), rgb)


def test_a_palette_with_transparency_gives_its_colours_without_a_warning(tmp_path, recwarn):
    image = random_image(0, 8, 8).quantize(16)
    path = write(tmp_path / "a.png", encoded(image, "PNG", transparency=bytes(range(16))))
    assert np.array_equal(np.asarray(open_image(path)), np.asarray(image.convert("RGB")))
    assert not recwarn.list


@pytest.mark.parametrize("mode", ["L", "LA", "1", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(tmp_path, mode):
    kind = {"CMYK": "JPEG", "YCbCr": "JPEG"}.get(mode, "PNG")
    image = random_image(0).convert(mode)
    path = write(tmp_path / "a", encoded(image, kind))
    opened = open_image(path)
    assert opened.mode == "RGB"
    assert np.array_equal(np.asarray(opened), np.asarray(Image.open(path).convert("RGB")))


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    path = write(tmp_path / "a.png", encoded(Image.fromarray(values), "PNG"))
    assert np.asarray(open_image(path))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_float_images_are_clipped_to_8_bits(tmp_path):
    values = np.array([[-5, 0.5, 17, 300, np.nan]], dtype=np.float32)
    path = write(tmp_path / "a.tif", encoded(Image.fromarray(values), "TIFF"))
    assert np.asarray(open_image(path))[0, :, 1].tolist() == [0, 0, 17, 255, 0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "damaged or not an image \\(not an image\\)"),
        (b"garbage bytes", "damaged or not an image \\(not an image\\)"),
        (encoded(random_image(0), "JPEG")[:-400], "damaged or not an image \\(.*truncated"),
        (encoded(random_image(0), "PNG")[:400], "damaged or not an image"),
        (claim(64, 64), "damaged or not an image"),
        (claim(20000, 20000), "too large, 400,000,000 pixels where 89,478,485 are allowed; shrink"),
        (claim(12000, 9000), "too large, 12000 x 9000 pixels where 89,478,485 are allowed; shrink"),
        (claim(20000, 3), "20000 x 3 pixels are too elongated"),
    ],
)
def test_unusable_images_are_named(tmp_path, data, reason):
    path = write(tmp_path / "bad.jpg", data)
    with pytest.raises(ImageError, match=f"^{path}: {reason}") as caught:
        open_image(path)
    assert caught.value.path == path
    assert "\n" not in str(caught.value)


def test_missing_and_unreadable_files_are_named(tmp_path):
    with pytest.raises(ImageError, match="nowhere.jpg: No such file or directory"):
        open_image(str(tmp_path / "nowhere.jpg"))
    with pytest.raises(ImageError, match="Is a directory"):
        open_image(str(tmp_path))
    loop = tmp_path / "loop.jpg"
    loop.symlink_to(loop)
    with pytest.raises(ImageError, match="symbolic links"):
        open_image(str(loop))


def test_archive_members_open_and_damaged_archives_are_named(tmp_path, make_tar, png):
    archive = make_tar(tmp_path / "n1.tar", {"a.png": png(3)})
    assert np.array_equal(np.asarray(open_image(f"{archive}::a.png")), np.asarray(random_image(3)))
    with pytest.raises(ImageError, match="n1.tar has no such member"):
        open_image(f"{archive}::b.png")
    archive.write_bytes(b"garbage" * 200)
    with pytest.raises(ImageError, match="n1.tar::a.png: .*is not a tar archive"):
        open_image(f"{archive}::a.png")


def test_errors_survive_the_way_from_a_worker_process():
    error = pickle.loads(pickle.dumps(ImageError("/a/b.jpg", "torn")))
    assert (error.path, error.reason, str(error)) == ("/a/b.jpg", "torn", "/a/b.jpg: torn")
