"""An image with a matplotlib figure over it, without any window."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["VisImage"]


class VisImage:
    """An image to draw on.

    Attributes:
        fig, ax: the figure, and axes that cover it in pixels of the image.
        width, height: of the image, before scaling.
    """

    def __init__(self, img: np.ndarray, scale: float = 1.0) -> None:
        """``img``: (H, W, 3) RGB in 0 … 255. ``scale``: size of the output relative to it."""
        self.img = img
        self.scale = scale
        self.height, self.width = img.shape[:2]
        self.fig = Figure(frameon=False)
        self.dpi = self.fig.get_dpi()
        # The canvas cuts fractions of a pixel off: the added hundredth keeps it from cutting a whole one.
        self.fig.set_size_inches((self.width * scale + 1e-2) / self.dpi, (self.height * scale + 1e-2) / self.dpi)
        self.canvas = FigureCanvasAgg(self.fig)
        self.ax: Axes = self.fig.add_axes((0.0, 0.0, 1.0, 1.0))
        self.reset_image(img)

    def reset_image(self, img: np.ndarray) -> None:
        """Replace the image, forgetting what was drawn."""
        self.ax.clear()
        self.ax.axis("off")
        self.ax.imshow(img.astype(np.uint8), extent=(0, self.width, self.height, 0), interpolation="nearest")
        self.ax.set_xlim(0.0, self.width)
        self.ax.set_ylim(self.height, 0.0)

    def save(self, filepath: str) -> None:
        """Write an image file; its ending says the format."""
        self.fig.savefig(filepath, dpi="figure", bbox_inches=None, pad_inches=0)

    def get_image(self) -> np.ndarray:
        """(H * scale, W * scale, 3) uint8 RGB."""
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[:, :, :3].copy()
