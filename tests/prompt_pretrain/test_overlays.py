"""Pictures with findings: colours, places of labels, legends."""

import numpy as np

from prompt_pretrain.class_colors import class_color, text_color
from prompt_pretrain.label_placement import LabelPlacer
from prompt_pretrain.overlays import draw_detections, draw_label_map, enlarged

NAMES = ("sky", "sand", "background")


def grey(height: int = 120, width: int = 160, value: int = 128) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """WCAG 2.1."""

    def luminance(color: tuple[int, int, int]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in color)]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_a_class_has_one_colour_whatever_its_spelling_and_letters_are_read_on_it():
    assert class_color("traffic_light") == class_color(" Traffic light ") != class_color("traffic cone")
    colors = [class_color(f"class {number}") for number in range(300)]
    assert len(set(colors)) > 270
    assert min(contrast(color, text_color(color)) for color in colors) > 4.5
    assert all(0 <= channel <= 255 for color in colors for channel in color)
    # No colour hides on black or on white.
    assert min(contrast(color, (0, 0, 0)) for color in colors) > 3
    assert min(contrast(color, (255, 255, 255)) for color in colors) > 1.5


def test_labels_of_boxes_do_not_cover_each_other_where_there_is_room():
    placer = LabelPlacer(400, 300)
    for shift in range(8):
        corner = placer.beside_box((60, 12), (100 + shift, 100 + shift, 200, 200))
        assert 0 <= corner[0] <= 340 and 0 <= corner[1] <= 288
    placed = placer.placed
    for one in range(len(placed)):
        for other in range(one):
            width = min(placed[one, 2], placed[other, 2]) - max(placed[one, 0], placed[other, 0])
            height = min(placed[one, 3], placed[other, 3]) - max(placed[one, 1], placed[other, 1])
            assert width <= 0 or height <= 0


def test_without_room_a_box_gets_the_least_overlap_and_a_point_no_label():
    placer = LabelPlacer(60, 12)
    assert placer.beside_box((60, 12), (0, 0, 60, 12)) == (0, 0)
    assert placer.beside_box((60, 12), (0, 0, 60, 12)) == (0, 0)
    assert placer.at_point((60, 12), (30, 6)) is None
    assert LabelPlacer(60, 12).at_point((20, 10), (59, 1)) == (40, 0)  # moved into the picture


def test_boxes_masks_and_names_are_drawn_on_a_copy_at_its_size():
    image = grey()
    boxes = np.array([[10.0, 40, 60, 90], [-5, 100, 400, 130], [30, 30, 30, 30]])  # also partly outside, and empty
    masks = np.zeros((3, 120, 160), bool)
    masks[0, 50:80, 20:50] = True
    drawn = draw_detections(
        image, boxes, ["cat", "dog", "a very long name of a class that nobody reads"], [0.9, 0.8, 0.1], masks
    )
    assert drawn.shape == image.shape and drawn.dtype == np.uint8 and (image == 128).all()
    expected = (0.55 * 128 + 0.45 * np.array(class_color("cat"))).round()
    assert np.abs(drawn[65, 35] - expected).max() <= 1
    assert (drawn[40:90, 10] == class_color("cat")).all(axis=1).mean() > 0.5  # the frame
    nothing = draw_detections(image, np.zeros((0, 4)), [])
    assert (nothing == image).all()


def test_frames_and_labels_show_on_black_white_and_their_own_colour():
    for background in ((0, 0, 0), (255, 255, 255), class_color("cat")):
        image = np.broadcast_to(np.array(background, np.uint8), (200, 200, 3)).copy()
        drawn = draw_detections(image, np.array([[20.0, 60, 180, 180]]), ["cat"], [0.5])
        colors = {tuple(color) for color in drawn.reshape(-1, 3).tolist()}
        assert max(contrast(color, background) for color in colors) > 3


def test_label_maps_get_colours_borders_and_a_legend_of_constant_width():
    labels = np.zeros((120, 160), int)
    labels[60:] = 1
    labels[:20, :20] = 2
    labels[:20, 140:] = 255
    drawn = draw_label_map(grey(), labels, NAMES, uncovered=("background",))
    assert drawn.shape[0] == 120 and drawn.shape[1] > 160
    assert (drawn[10, 10] == 128).all() and (drawn[10, 150] == 128).all()  # background and ignored pixels
    expected = (0.45 * 128 + 0.55 * np.array(class_color("sand"))).round()
    assert np.abs(drawn[115, 5] - expected).max() <= 1
    assert (drawn[59, 40] == 255).all()
    legend = drawn[:, 160:].reshape(-1, 3)
    assert (legend == class_color("sky")).all(axis=1).any() and (legend == class_color("sand")).all(axis=1).any()
    assert draw_label_map(grey(), np.zeros((120, 160), int), NAMES).shape == drawn.shape
    assert draw_label_map(grey(), labels, NAMES, legend=False).shape == (120, 160, 3)


def test_a_legend_with_more_classes_than_lines_says_how_many_are_left_out():
    labels = np.arange(120)[:, None].repeat(160, axis=1)
    names = [f"class {number}" for number in range(120)]
    full, cut = draw_label_map(grey(), labels % 3, names), draw_label_map(grey(), labels, names)
    assert cut.shape == full.shape and (cut[:, 160:] != full[:, 160:]).any()


def test_small_pictures_are_enlarged_by_a_whole_factor():
    assert enlarged(grey(120, 160), 480)[0].shape == (480, 640, 3)
    assert enlarged(grey(120, 160), 480)[1] == 4
    assert enlarged(grey(600, 800), 480)[1] == 1
    assert enlarged(grey(2, 3), 480)[1] == 8
    assert max(enlarged(grey(100, 1000), 480)[0].shape) <= 4 * 480
