"""Everything a model can look at, as one stream of images."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from prompt_pretrain.classification.decoding import ImageError
from prompt_pretrain.errors import InputError
from prompt_pretrain.image_inputs import open_inputs

BLUE = np.zeros((6, 8, 3), np.uint8)
BLUE[..., 0] = 255  # BGR


def save(path: Path, pixels: np.ndarray = BLUE) -> Path:
    cv2.imwrite(str(path), pixels)
    return path


def test_arrays_pictures_and_files_agree(tmp_path: Path) -> None:
    picture = Image.fromarray(BLUE[..., ::-1].copy())
    for given in (BLUE, picture, save(tmp_path / "a.png"), str(tmp_path / "a.png")):
        stream = open_inputs(given)
        (image,) = stream.images
        assert stream.single
        np.testing.assert_array_equal(image.pixels, BLUE)


def test_grey_arrays_become_three_channels() -> None:
    (image,) = open_inputs(np.arange(12, dtype=np.uint8).reshape(3, 4)).images
    assert image.pixels.shape == (3, 4, 3) and (image.pixels[..., 0] == image.pixels[..., 2]).all()


def test_a_folder_gives_its_images_by_name(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.png", "C.JPG", "notes.txt"):
        save(tmp_path / name) if name != "notes.txt" else (tmp_path / name).write_text("x")
    stream = open_inputs(tmp_path)
    assert not stream.single
    assert [Path(image.source).name for image in stream.images] == ["C.JPG", "a.png", "b.jpg"]


def test_lists_mix_kinds_and_are_read_lazily(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    images = open_inputs([BLUE, str(tmp_path), tmp_path / "a.png", 3]).images
    assert [next(images).source for _ in range(3)] == ["0", str(tmp_path / "a.png"), str(tmp_path / "a.png")]
    with pytest.raises(InputError, match="input 3 is a int"):
        next(images)


def test_a_video_gives_its_frames(tmp_path: Path) -> None:
    path = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (32, 24))
    for level in (0, 100, 200):
        writer.write(np.full((24, 32, 3), level, np.uint8))
    writer.release()
    frames = list(open_inputs(path).images)
    assert [frame.source for frame in frames] == [f"{path}#{number}" for number in range(3)]
    assert [round(float(frame.pixels.mean()), -1) for frame in frames] == [0, 100, 200]
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match="no frame of the video"):
        list(open_inputs(tmp_path / "bad.mp4").images)


def test_bad_images_are_reported_in_their_place(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    save(tmp_path / "b.png")
    first, second = open_inputs(tmp_path).images
    assert isinstance(first, ImageError) and "damaged or not an image" in str(first)
    assert second.source.endswith("b.png")


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "expected uint8"),
        (np.zeros((4, 4, 4), np.uint8), "expected uint8"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((1, 2000, 3), np.uint8), "too elongated"),
        (np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (20000, 20000, 3)), "20000 x 20000 pixels are too many"),
    ],
)
def test_unusable_arrays(pixels: np.ndarray, message: str) -> None:
    (found,) = open_inputs(pixels).images
    assert isinstance(found, ImageError) and message in str(found)


def test_unusable_inputs(tmp_path: Path) -> None:
    for given, message in (
        (tmp_path / "none.jpg", "no image, folder or video"),
        (tmp_path, "no images in the folder"),
        (7, "cannot look at a int"),
        ({"a": 1}, "cannot look at a dict"),
    ):
        with pytest.raises(InputError, match=message):
            open_inputs(given)
