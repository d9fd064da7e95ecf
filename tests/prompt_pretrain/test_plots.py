import functools
import io

import numpy as np
import pytest
from PIL import Image

from prompt_pretrain.analysis import Projection
from prompt_pretrain.plots import (
    Curve,
    SamplePrediction,
    plot_curves,
    plot_grouped_bars,
    plot_projection,
    plot_samples,
    png_bytes,
    save_png,
)


@functools.cache
def figures():
    pca = Projection("pca", np.random.RandomState(0).randn(6, 2), (0.4, 0.2))
    tsne = Projection("tsne", np.random.RandomState(0).randn(6, 2))
    samples = [
        SamplePrediction(Image.new("RGB", (64, 64), "red"), "plain red star", {"POMP": [("plain red star", 0.9)]}),
        SamplePrediction(Image.new("RGB", (32, 64)), "wavy blue fish", {"POMP": [("wavy blue ring", 0.5)]}),
        SamplePrediction(Image.new("L", (64, 32)), "dotted pink leaf"),
    ]
    groups = ["red", "red", "blue", "blue", "green", "green"]
    return {
        "curves": plot_curves(
            [Curve("K = 8", [1, 2, 3], [3.0, 2.0, 1.5]), Curve("K = all", [1, 2], [2.0, 1.0])],
            title="Loss", xlabel="epoch", ylabel="loss",
        ),
        "bars": plot_grouped_bars(
            {"hard prompt": {"base": 20.0, "novel": 30.0}, "POMP": {"base": 40.0}},
            title="Accuracy", errors={"POMP": {"base": 1.5}},
        ),
        "pca": plot_projection(pca, groups, tsne, groups, title="Classes and images"),
        "tsne": plot_projection(tsne, groups, None, [], title="Classes"),
        "samples": plot_samples(samples, title="Predictions"),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["curves", "bars", "pca", "tsne", "samples"])
def test_every_figure_becomes_a_png_that_is_narrow_enough_for_a_phone(name):
    image = Image.open(io.BytesIO(png_bytes(figures()[name], dpi=100)))
    assert image.format == "PNG"
    assert 500 <= image.width <= 620
    assert np.asarray(image.convert("L")).std() > 5  # something is drawn


def test_bars_write_their_values_out_and_name_the_series():
    figure = figures()["bars"]
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["20.0", "40.0", "30.0"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["hard prompt", "POMP"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["base", "novel"]


def test_predictions_say_right_or_wrong_without_colour():
    texts = [text.get_text() for axes in figures()["samples"].axes for text in axes.texts]
    assert texts == ["✓ POMP: 90%\nplain red star", "✗ POMP: 50%\nwavy blue ring"]


def test_equal_figures_give_equal_files(tmp_path):
    save_png(tmp_path / "new" / "a.png", figures()["curves"])
    assert (tmp_path / "new" / "a.png").read_bytes() == png_bytes(figures()["curves"])
