"""Drawing: sizes, which pixels change, which stay, labels, colours over the frames of a video."""

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.data import MetadataCatalog
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import ColorMode, GenericMask, Visualizer, _create_text_labels
from tests.third_party.detectron2.evaluation_data import new_name

HEIGHT, WIDTH = 120, 160


@pytest.fixture
def image():
    return np.full((HEIGHT, WIDTH, 3), 100, dtype=np.uint8)


@pytest.fixture
def metadata():
    return MetadataCatalog.get(new_name()).set(
        thing_classes=["cat", "dog"],
        thing_colors=[(255, 0, 0), (0, 0, 255)],
        stuff_classes=["sand", "sea"],
        stuff_colors=[(200, 180, 0), (0, 0, 250)],
    )


def _disc(x, y, radius):
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    return (xs - x) ** 2 + (ys - y) ** 2 <= radius**2


def _instances(masks, classes):
    masks = torch.from_numpy(np.stack(masks))
    return Instances(
        (HEIGHT, WIDTH),
        pred_boxes=BitMasks(masks).get_bounding_boxes(),
        scores=torch.full((len(masks),), 0.9),
        pred_classes=torch.tensor(classes),
        pred_masks=masks,
    )


def _changed(drawn, image):
    return (drawn.astype(int) != image).any(axis=2)


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
def test_output_has_the_scaled_size(image, metadata, scale, tmp_path):
    output = Visualizer(image, metadata, scale=scale).draw_instance_predictions(_instances([_disc(50, 50, 20)], [0]))
    size = (int(HEIGHT * scale), int(WIDTH * scale))
    assert output.get_image().shape == (*size, 3) and output.get_image().dtype == np.uint8
    output.save(str(tmp_path / "drawn.png"))
    assert Image.open(tmp_path / "drawn.png").size == size[::-1]


def test_an_untouched_image_is_reproduced():
    noise = np.random.default_rng(0).integers(0, 256, (33, 47, 3)).astype(np.uint8)
    assert (Visualizer(noise).get_output().get_image() == noise).all()


def test_masks_cover_their_pixels_alone(image):
    mask = _disc(80, 60, 30)
    drawn = Visualizer(image).overlay_instances(masks=mask[None]).get_image()
    changed = _changed(drawn, image)
    assert changed[_disc(80, 60, 28)].all()
    assert not changed[~_disc(80, 60, 33)].any()


def test_semantic_maps_take_the_colours_of_the_data_set(image, metadata):
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.int64)
    labels[:, 80:] = 1
    labels[50:70, 30:50] = 255  # ignored
    drawn = Visualizer(image, metadata).draw_sem_seg(torch.from_numpy(labels), alpha=1.0).get_image()
    assert tuple(drawn[100, 10]) == (200, 180, 0)
    assert tuple(drawn[110, 150]) == (0, 0, 250)
    assert (drawn[55:65, 35:45] == 100).all()


def test_small_areas_are_left_out(image, metadata):
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.int64)
    labels[:5, :5] = 1
    drawn = Visualizer(image, metadata).draw_sem_seg(labels, area_threshold=26, alpha=1.0).get_image()
    assert tuple(drawn[1, 1]) == (100, 100, 100)


def test_colours_by_class(image, metadata):
    predictions = _instances([_disc(40, 60, 25), _disc(120, 60, 25)], [0, 1])
    visualizer = Visualizer(image, metadata, instance_mode=ColorMode.SEGMENTATION)
    drawn = visualizer.draw_instance_predictions(predictions, jittering=False).get_image()
    assert drawn[70, 40].argmax() == 0 and drawn[70, 120].argmax() == 2  # red, blue


def test_a_grey_image_keeps_colour_under_masks(metadata):
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[..., 0] = 240
    visualizer = Visualizer(image, metadata, instance_mode=ColorMode.IMAGE_BW)
    drawn = visualizer.draw_instance_predictions(_instances([_disc(80, 60, 30)], [0])).get_image()
    assert np.ptp(drawn[5, 5].astype(int)) == 0
    assert np.ptp(drawn[70, 80].astype(int)) > 50


def test_nothing_to_draw_changes_nothing(image, metadata):
    predictions = _instances([_disc(80, 60, 30)], [0])[:0]
    for mode in (ColorMode.IMAGE, ColorMode.SEGMENTATION):
        drawn = Visualizer(image, metadata, instance_mode=mode).draw_instance_predictions(predictions).get_image()
        assert (drawn == image).all()
    assert (VideoVisualizer(metadata).draw_instance_predictions(image, predictions).get_image() == image).all()


def test_annotations_of_a_data_set_are_drawn(image, metadata):
    record = {
        "annotations": [
            {
                "bbox": [20, 30, 50, 60],
                "bbox_mode": BoxMode.XYWH_ABS,
                "segmentation": [[20, 30, 70, 30, 70, 90, 20, 90]],
                "category_id": 1,
                "iscrowd": 0,
            }
        ]
    }
    changed = _changed(Visualizer(image, metadata).draw_dataset_dict(record).get_image(), image)
    assert changed[35:85, 25:65].all()
    assert not changed[100:, 90:].any()


def test_panoptic_segments_are_drawn(image, metadata):
    ids = np.ones((HEIGHT, WIDTH), dtype=np.int64)
    ids[_disc(80, 60, 30)] = 2
    segments = [
        {"id": 1, "isthing": False, "category_id": 1},
        {"id": 2, "isthing": True, "category_id": 0},
    ]
    drawn = Visualizer(image, metadata).draw_panoptic_seg(torch.from_numpy(ids), segments, alpha=0.9).get_image()
    assert drawn[5, 5].argmax() == 2
    assert _changed(drawn, image).all()


def test_any_number_of_classes_has_colours(image):
    labels = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) // 20
    visualizer = Visualizer(image)
    for label in (0, 100, 800):
        visualizer.draw_binary_mask((labels == label).astype(np.uint8), alpha=1.0, area_threshold=0)
    assert visualizer.get_output().get_image().shape == image.shape


def test_labels_hold_class_and_score():
    names = ["cat", "dog"]
    assert _create_text_labels([0, 1], [0.87, 0.5], names) == ["cat 87%", "dog 50%"]
    assert _create_text_labels([1], None, None) == ["1"]
    assert _create_text_labels(None, [0.25], names) == ["25%"]
    assert _create_text_labels([0, 1], None, names, [0, 1]) == ["cat", "dog|crowd"]
    assert _create_text_labels(None, None, names) is None


def test_masks_turn_into_polygons_and_back():
    mask = _disc(60, 50, 25).astype(np.uint8)
    polygons = GenericMask(mask, HEIGHT, WIDTH).polygons
    again = GenericMask([polygon.tolist() for polygon in polygons], HEIGHT, WIDTH)
    assert 0.9 < again.area() / mask.sum() < 1.1
    assert not again.has_holes
    ring = mask * (1 - _disc(60, 50, 10))
    assert GenericMask(ring, HEIGHT, WIDTH).has_holes
    assert GenericMask(np.zeros_like(mask), HEIGHT, WIDTH).polygons == []


def test_objects_keep_their_colour_over_frames(image, metadata):
    visualizer = VideoVisualizer(metadata)
    colours = []
    for step in range(4):
        discs = [_disc(40 + 4 * step, 40, 20), _disc(110, 80 - 3 * step, 20)]
        classes = [0, 1]
        if step % 2:  # the order in which a model finds them must not matter
            discs, classes = discs[::-1], classes[::-1]
        drawn = visualizer.draw_instance_predictions(image, _instances(discs, classes)).get_image()
        colours.append((tuple(drawn[25, 40 + 4 * step]), tuple(drawn[95 - 3 * step, 110])))
    assert len(set(colours)) == 1
    assert colours[0][0] != colours[0][1]


def test_boxes_alone_are_drawn(image):
    changed = _changed(
        Visualizer(image).overlay_instances(boxes=Boxes(torch.tensor([[20.0, 20, 80, 60]]))).get_image(), image
    )
    assert changed[20, 30:70].all() and changed[30:50, 80].all()
    assert not changed[30:50, 30:70].any()


def test_different_lengths_are_refused(image):
    with pytest.raises((ValueError, AssertionError)):
        Visualizer(image).overlay_instances(boxes=np.zeros((2, 4)), labels=["one"])
