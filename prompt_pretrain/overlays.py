"""Pictures with what was found drawn over them: boxes, masks and names, or label maps with a legend."""

from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from prompt_pretrain.class_colors import class_color, text_color
from prompt_pretrain.label_placement import LabelPlacer

__all__ = ["draw_detections", "draw_label_map", "enlarged"]

_MASK_OPACITY = 0.45
_MAP_OPACITY = 0.55
_SMALLEST_NAMED = 0.006  # part of the image that an area must cover to get its name written into it
_LONGEST_NAME = 28  # letters of a label; longer names end in "…"
_LEGEND_BACKGROUND, _LEGEND_TEXT = (250, 250, 250), (25, 30, 38)


def enlarged(image: np.ndarray, side: int) -> tuple[np.ndarray, int]:
    """The image (H, W, 3), and how many times it was enlarged so that its shorter side has about ``side`` pixels.

    Small pictures need it for letters to be readable; others stay as they are. The factor is whole, at most 8.
    """
    height, width = image.shape[:2]
    factor = int(np.clip(round(side / max(min(height, width), 1)), 1, 8))
    while factor > 1 and max(height, width) * factor > 4 * side:
        factor -= 1
    if factor == 1:
        return image, 1
    return cv2.resize(image, (width * factor, height * factor), interpolation=cv2.INTER_CUBIC), factor


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    class_names: Sequence[str],
    scores: Sequence[float] | None = None,
    masks: np.ndarray | None = None,
) -> np.ndarray:
    """A copy of the image with boxes, masks and names, each class in its own colour.

    Args:
        image: (H, W, 3) RGB uint8.
        boxes: (n, 4) x0, y0, x1, y1 in pixels, the most important first: their labels get the best places.
        class_names: n names.
        scores: n numbers in [0, 1], written behind the names.
        masks: (n, H, W) bool.
    """
    height, width = image.shape[:2]
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    colors = [class_color(name) for name in class_names]
    pixels = image.copy()
    order = np.argsort(-(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), kind="stable").tolist()
    if masks is not None:
        for index in order:  # large ones first, so that small ones stay visible
            _tint(pixels, masks[index], colors[index], _MASK_OPACITY)
    picture = Image.fromarray(pixels)
    canvas = ImageDraw.Draw(picture)
    font = _font(_letter_height(height, width))
    line = max(round(font.size / 6), 1)
    for index in order:
        _outline_box(canvas, boxes[index], colors[index], line, (width, height))
    placer = LabelPlacer(width, height)
    for index, name in enumerate(class_names):
        text = _shortened(name) if scores is None else f"{_shortened(name)} {100 * scores[index]:.0f}%"
        _write_label(canvas, placer, text, font, colors[index], tuple(boxes[index]))
    return np.asarray(picture)


def draw_label_map(
    image: np.ndarray,
    label_map: np.ndarray,
    class_names: Sequence[str],
    *,
    legend: bool = True,
    uncovered: Collection[str] = (),
) -> np.ndarray:
    """A copy of the image with every class in its own colour, its name in its largest area, and a legend beside it.

    Args:
        image: (H, W, 3) RGB uint8.
        label_map: (H, W) integers, positions in ``class_names``; others, such as 255 for "ignore", stay uncovered.
        class_names: of the whole vocabulary. The legend has the same width for all pictures of a vocabulary, so frames
            of a video keep their size.
        legend: add a column at the right with the classes found, the largest first, and their shares of the image.
        uncovered: classes that are not coloured, such as "background".
    """
    height, width = label_map.shape
    labels, counts = np.unique(label_map, return_counts=True)
    found = [
        (int(label), count / label_map.size)
        for label, count in zip(labels[np.argsort(-counts, kind="stable")], -np.sort(-counts), strict=True)
        if 0 <= label < len(class_names)
    ]
    pixels = image.copy()
    covered = [(label, share) for label, share in found if class_names[label] not in uncovered]
    for label, _ in covered:
        mask = label_map == label
        _tint(pixels, mask, class_color(class_names[label]), _MAP_OPACITY)
    pixels[_borders(label_map)] = 255
    picture = Image.fromarray(pixels)
    canvas = ImageDraw.Draw(picture)
    font = _font(_letter_height(height, width))
    placer = LabelPlacer(width, height)
    for label, share in covered:
        point = _middle(label_map == label) if share >= _SMALLEST_NAMED else None
        if point is not None:
            name = class_names[label]
            _write_name(canvas, placer, _shortened(name), font, class_color(name), point)
    if legend:
        picture = _with_legend(picture, [(class_names[label], share) for label, share in found], class_names, uncovered)
    return np.asarray(picture)


def _tint(pixels: np.ndarray, mask: np.ndarray, color: Sequence[int], opacity: float) -> None:
    """Colour the pixels of a mask in place."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return
    part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    inside = mask[part]
    mixed = (1 - opacity) * pixels[part][inside] + opacity * np.asarray(color, dtype=np.float32)
    pixels[part][inside] = mixed.round().astype(np.uint8)


def _borders(label_map: np.ndarray) -> np.ndarray:
    """(H, W) bool, pixels whose right or lower neighbour has another label."""
    border = np.zeros(label_map.shape, dtype=bool)
    border[:, :-1] |= label_map[:, :-1] != label_map[:, 1:]
    border[:-1] |= label_map[:-1] != label_map[1:]
    return border


def _middle(mask: np.ndarray) -> tuple[int, int]:
    """x, y of the point of a mask that is farthest from its border."""
    distance = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return int(x), int(y)


def _outline_box(
    canvas: ImageDraw.ImageDraw, box: np.ndarray, color: Sequence[int], line: int, size: tuple[int, int]
) -> None:
    """A coloured frame between thin dark ones, which shows on any background."""
    x0, y0, x1, y1 = (round(float(value)) for value in box)
    x0, x1 = (int(np.clip(x, 0, size[0] - 1)) for x in (x0, x1))
    y0, y1 = (int(np.clip(y, 0, size[1] - 1)) for y in (y0, y1))
    x1, y1 = max(x0, x1), max(y0, y1)
    if min(x1 - x0, y1 - y0) > 4 * line:
        canvas.rectangle((x0, y0, x1, y1), outline=(20, 20, 20), width=line + 1)
    canvas.rectangle((x0, y0, x1, y1), outline=tuple(color), width=line)


def _write_label(
    canvas: ImageDraw.ImageDraw,
    placer: LabelPlacer,
    text: str,
    font: ImageFont.FreeTypeFont,
    color: tuple[int, int, int],
    box: tuple[float, ...],
) -> None:
    size, baseline = _text_size(text, font)
    x, y = placer.beside_box(size, (box[0], box[1], box[2], box[3]))
    _fill_label(canvas, (x, y), size, baseline, text, font, color)


def _write_name(
    canvas: ImageDraw.ImageDraw,
    placer: LabelPlacer,
    text: str,
    font: ImageFont.FreeTypeFont,
    color: tuple[int, int, int],
    point: tuple[int, int],
) -> None:
    """A name around a point, unless another one is there."""
    size, baseline = _text_size(text, font)
    corner = placer.at_point(size, point)
    if corner is not None:
        _fill_label(canvas, corner, size, baseline, text, font, color)


def _fill_label(
    canvas: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    size: tuple[int, int],
    baseline: int,
    text: str,
    font: ImageFont.FreeTypeFont,
    color: tuple[int, int, int],
) -> None:
    """Black or white letters on the colour of the class."""
    (x, y), (width, height) = corner, size
    canvas.rectangle((x, y, x + width - 1, y + height - 1), fill=color, outline=(20, 20, 20))
    canvas.text((x + width / 2, y + baseline), text, font=font, fill=text_color(color), anchor="ms")


def _text_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[tuple[int, int], int]:
    """Width and height of a label, and where its base line lies."""
    ascent, descent = font.getmetrics()
    pad = max(round(font.size / 6), 1)
    return (round(font.getlength(text)) + 4 * pad, ascent + descent + pad), ascent + pad // 2


def _with_legend(
    picture: Image.Image, found: Sequence[tuple[str, float]], class_names: Sequence[str], uncovered: Collection[str]
) -> Image.Image:
    """The picture and, at its right, one line per class."""
    font = _font(_letter_height(picture.height, picture.width))
    row = round(1.6 * font.size)
    swatch = round(font.size)
    names = max(font.getlength(_shortened(name)) for name in class_names)
    share_width = font.getlength("100%")
    column = round(names + share_width + swatch + 3.5 * font.size)
    lines = max((picture.height - row // 2) // row, 1)
    shown = found if len(found) <= lines else found[: lines - 1]
    whole = Image.new("RGB", (picture.width + column, picture.height), _LEGEND_BACKGROUND)
    whole.paste(picture, (0, 0))
    canvas = ImageDraw.Draw(whole)
    left, right = picture.width + swatch, picture.width + column - swatch
    for number, (name, share) in enumerate(shown):
        middle = row // 4 + number * row + row // 2
        top = middle - swatch // 2
        fill = None if name in uncovered else class_color(name)
        canvas.rectangle((left, top, left + swatch, top + swatch), fill=fill, outline=(90, 90, 90))
        canvas.text((left + 1.6 * swatch, middle), _shortened(name), font=font, fill=_LEGEND_TEXT, anchor="lm")
        text = f"{100 * share:.0f}%" if share >= 0.01 else "<1%"
        canvas.text((right, middle), text, font=font, fill=_LEGEND_TEXT, anchor="rm")
    if len(shown) < len(found):
        middle = row // 4 + len(shown) * row + row // 2
        canvas.text((left, middle), f"+ {len(found) - len(shown)} more", font=font, fill=_LEGEND_TEXT, anchor="lm")
    return whole


def _shortened(name: str) -> str:
    name = name.replace("_", " ").strip()
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1].rstrip() + "…"


def _letter_height(height: int, width: int) -> int:
    """Size of letters in pixels: legible, and small enough to leave the picture visible."""
    return int(np.clip(round(0.024 * float(np.sqrt(height * width))), 11, 40))


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has letters of most languages."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
