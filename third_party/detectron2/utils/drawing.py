"""Drawing single shapes over an image: the lower half of ``Visualizer``."""

import colorsys
from typing import Any

import cv2
import matplotlib.colors as mplc
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, PathPatch, Rectangle
from matplotlib.path import Path

from detectron2.data.catalog import Metadata
from detectron2.utils.generic_mask import GenericMask
from detectron2.utils.vis_image import VisImage

__all__ = ["Color", "Drawing"]

_LARGE_MASK_AREA = 120_000  # pixels; every part of a mask that is larger gets a text of its own
_OFF_WHITE = (1.0, 1.0, 240.0 / 255)
_RED = (1.0, 0.0, 0.0)
_KEYPOINT_SCORE = 0.05  # less certain keypoints are not drawn

Color = Any  # what matplotlib takes: a name, or three or four numbers in [0, 1]


class Drawing:
    """Shapes on a ``VisImage``; coordinates are pixels of the image. All methods return the ``VisImage``."""

    img: np.ndarray
    metadata: Metadata
    output: VisImage
    _default_font_size: float
    _random: np.random.Generator

    def draw_text(
        self,
        text: str,
        position: tuple[float, float],
        *,
        font_size: float | None = None,
        color: Color = "g",
        horizontal_alignment: str = "center",
        rotation: float = 0,
    ) -> VisImage:
        """Write light text on a dark background, its top at ``position`` (x, y)."""
        # Dark text would not be read on black.
        color = np.maximum(mplc.to_rgb(color), 0.2)
        color[np.argmax(color)] = max(0.8, np.max(color))
        x, y = position
        self.output.ax.text(
            x,
            y,
            text,
            size=(font_size or self._default_font_size) * self.output.scale,
            family="sans-serif",
            bbox={"facecolor": "black", "alpha": 0.8, "pad": 0.7, "edgecolor": "none"},
            verticalalignment="top",
            horizontalalignment=horizontal_alignment,
            color=color,
            zorder=10,
            rotation=rotation,
        )
        return self.output

    def draw_box(self, box_coord: Any, alpha: float = 0.5, edge_color: Color = "g", line_style: str = "-") -> VisImage:
        """Draw the outline of a box x0, y0, x1, y1."""
        x0, y0, x1, y1 = (float(value) for value in box_coord)
        self.output.ax.add_patch(
            Rectangle(
                (x0, y0),
                x1 - x0,
                y1 - y0,
                fill=False,
                edgecolor=edge_color,
                linewidth=max(self._default_font_size / 4, 1) * self.output.scale,
                alpha=alpha,
                linestyle=line_style,
            )
        )
        return self.output

    def draw_circle(self, circle_coord: tuple[float, float], color: Color, radius: float = 3) -> VisImage:
        """Draw a filled circle around x, y."""
        self.output.ax.add_patch(Circle(circle_coord, radius=radius, fill=True, color=color))
        return self.output

    def draw_line(
        self, x_data: Any, y_data: Any, color: Color, linestyle: str = "-", linewidth: float | None = None
    ) -> VisImage:
        """Connect points, given as all x and all y."""
        width = max(self._default_font_size / 3 if linewidth is None else linewidth, 1) * self.output.scale
        self.output.ax.add_line(Line2D(x_data, y_data, linewidth=width, color=color, linestyle=linestyle))
        return self.output

    def draw_polygon(
        self, segment: np.ndarray, color: Color, edge_color: Color | None = None, alpha: float = 0.5
    ) -> VisImage:
        """Fill a polygon (n, 2) and draw its edge, by default in a similar colour."""
        self._fill([np.asarray(segment)], color, edge_color, alpha)
        return self.output

    def _draw_mask(self, mask: GenericMask, color: Color, edge_color: Color | None, alpha: float) -> None:
        lines = [line.reshape(-1, 2) for line in mask.polygons + mask.holes]
        if lines:
            self._fill(lines, color, edge_color, alpha)

    def _fill(self, lines: list[np.ndarray], color: Color, edge_color: Color | None, alpha: float) -> None:
        """Fill what closed lines (n, 2) enclose; a line in the opposite direction within another leaves a hole."""
        if edge_color is None:
            # On opaque masks a darker edge is needed to tell neighbours apart.
            edge_color = self._change_color_brightness(color, brightness_factor=-0.7) if alpha > 0.8 else color
        self.output.ax.add_patch(
            PathPatch(
                Path.make_compound_path(*[Path(np.concatenate([line, line[:1]]), closed=True) for line in lines]),
                fill=True,
                facecolor=(*mplc.to_rgb(color), alpha),
                edgecolor=(*mplc.to_rgb(edge_color), 1),
                linewidth=max(self._default_font_size // 15 * self.output.scale, 1),
            )
        )

    def draw_binary_mask(
        self,
        binary_mask: np.ndarray,
        color: Color | None = None,
        *,
        edge_color: Color | None = None,
        text: str | None = None,
        alpha: float = 0.5,
        area_threshold: int = 10,
    ) -> VisImage:
        """Cover a mask (H, W) of 0 and 1 with a colour, by default a random one, and write ``text`` into it.

        Args:
            area_threshold: a mask with fewer pixels is not drawn.
        """
        mask = GenericMask(np.asarray(binary_mask), self.output.height, self.output.width)
        if not mask.area() or mask.area() < area_threshold:
            return self.output
        color = mplc.to_rgb(self._random.random(3) if color is None else color)
        self._draw_mask(mask, color, edge_color, alpha)
        if text is not None:
            self._draw_text_in_mask(mask.mask, text, self._change_color_brightness(color, brightness_factor=0.7))
        return self.output

    def draw_soft_mask(
        self, soft_mask: np.ndarray, color: Color | None = None, *, text: str | None = None, alpha: float = 0.5
    ) -> VisImage:
        """Cover the image with a colour, as opaque as a mask (H, W) in [0, 1] times ``alpha`` says."""
        color = mplc.to_rgb(self._random.random(3) if color is None else color)
        self._overlay(np.asarray(soft_mask) * alpha, color)
        if text is not None:
            covered = (np.asarray(soft_mask) > 0.5).astype(np.uint8)
            self._draw_text_in_mask(covered, text, self._change_color_brightness(color, brightness_factor=0.7))
        return self.output

    def _overlay(self, opacity: np.ndarray, color: tuple[float, float, float]) -> None:
        rgba = np.concatenate([np.broadcast_to(color, (*opacity.shape, 3)), opacity[..., None]], axis=2)
        self.output.ax.imshow(rgba, extent=(0, self.output.width, self.output.height, 0))

    def _draw_text_in_mask(self, binary_mask: np.ndarray, text: str, color: Color) -> None:
        """Into the largest part of a mask and every other large one, where it is furthest from the edge."""
        _, parts, stats, _ = cv2.connectedComponentsWithStats(binary_mask, connectivity=8)
        areas = stats[1:, cv2.CC_STAT_AREA]
        for index, area in enumerate(areas):
            if index == areas.argmax() or area > _LARGE_MASK_AREA:
                self.draw_text(text, inner_point((parts == index + 1).astype(np.uint8)), color=color)

    def draw_and_connect_keypoints(self, keypoints: np.ndarray) -> VisImage:
        """Draw the keypoints (K, 3) x, y, score of an instance, connected as the metadata say.

        ``keypoint_names`` and ``keypoint_connection_rules``, (name, name, colour in 0 … 255) each, are used if there.
        """
        names = self.metadata.get("keypoint_names") or [None] * len(keypoints)
        points = {}
        for name, (x, y, score) in zip(names, np.asarray(keypoints, dtype=np.float64), strict=False):
            if score > _KEYPOINT_SCORE:
                self.draw_circle((x, y), color=_RED)
                points[name] = (x, y)
        for first, second, color in self.metadata.get("keypoint_connection_rules") or ():
            if first in points and second in points:
                (x0, y0), (x1, y1) = points[first], points[second]
                self.draw_line([x0, x1], [y0, y1], color=tuple(channel / 255 for channel in color))
        return self.output

    def _change_color_brightness(self, color: Color, brightness_factor: float) -> tuple[float, float, float]:
        """A colour made lighter (factor up to 1) or darker (down to -1)."""
        assert -1 <= brightness_factor <= 1
        hue, lightness, saturation = colorsys.rgb_to_hls(*mplc.to_rgb(color))
        lightness = min(max(lightness * (1 + brightness_factor), 0.0), 1.0)
        return tuple(min(max(value, 0.0), 1.0) for value in colorsys.hls_to_rgb(hue, lightness, saturation))

    def _jitter(self, color: Color) -> tuple[float, float, float]:
        """A random colour near ``color``."""
        step = self._random.normal(size=3)
        moved = np.array(mplc.to_rgb(color)) + step / np.linalg.norm(step) * 0.15
        return tuple(moved.clip(0, 1))

    def _create_grayscale_image(self, mask: np.ndarray | None = None) -> np.ndarray:
        """The image in grey, in colour where ``mask`` (H, W) is set."""
        gray = np.repeat(self.img.mean(axis=2, keepdims=True), 3, axis=2)
        if mask is not None:
            gray[mask] = self.img[mask]
        return gray


def inner_point(mask: np.ndarray) -> tuple[float, float]:
    """x, y of the pixel of a mask (H, W) uint8 that is furthest from its edge."""
    distance = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(distance.argmax(), mask.shape)
    return float(x), float(y)
