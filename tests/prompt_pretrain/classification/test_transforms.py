import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from torchvision import transforms as tv

from prompt_pretrain.classification.transforms import (
    RandomResizedCrop,
    eval_transform,
    random_flip,
    train_transform,
)
from prompt_pretrain.errors import InputError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
ALL = ["random_resized_crop", "random_flip", "randaugment2", "normalize"]


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(64, 48), (37, 90), (32, 32), (32, 45), (20, 17), (61, 33)])
def test_eval_transform_equals_torchvision(size):
    reference = tv.Compose(
        [
            tv.Resize(32, tv.InterpolationMode.BICUBIC),
            tv.CenterCrop(32),
            tv.ToTensor(),
            tv.Normalize(MEAN, STD),
        ]
    )
    image = picture(*size)
    assert_close(eval_transform(32, MEAN, STD)(image, generator()), reference(image), rtol=0, atol=1e-6)


def test_without_crop_images_are_squashed():
    image = picture(64, 48)
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1) / np.float32(255)
    transform = train_transform([], 32, MEAN, STD)
    assert_close(transform(image, generator()), torch.from_numpy(expected))
    assert not transform.random


def test_order_of_names_does_not_matter_but_the_set_does():
    image = picture(64, 48)
    forward = train_transform(ALL, 32, MEAN, STD)
    backward = train_transform(ALL[::-1], 32, MEAN, STD)
    assert forward.key == backward.key
    assert torch.equal(forward(image, generator(5)), backward(image, generator(5)))
    keys = {train_transform(ALL[:n], 32, MEAN, STD).key for n in range(5)}
    keys |= {train_transform(ALL, 32, MEAN, STD, randaugment_n=3).key, train_transform(ALL, 48, MEAN, STD).key}
    keys |= {train_transform(ALL, 32, STD, STD).key, eval_transform(32, MEAN, STD).key}
    keys |= {train_transform(ALL, 32, MEAN, STD, interpolation="bilinear").key}
    assert len(keys) == 10


def test_the_generator_alone_decides():
    transform = pickle.loads(pickle.dumps(train_transform(ALL, 32, MEAN, STD)))
    image = picture(64, 48)
    torch.manual_seed(1)
    first = transform(image, generator(3))
    torch.manual_seed(2)
    assert torch.equal(first, transform(image, generator(3)))
    assert not torch.equal(first, transform(image, generator(4)))


def test_crop_boxes_have_the_published_distribution():
    crop = RandomResizedCrop(8, Image.Resampling.BICUBIC)
    source = generator(0)
    boxes = np.array([crop.box(200, 150, source) for _ in range(2000)], dtype=float)
    left, top, width, height = boxes.T
    assert (left >= 0).all() and (top >= 0).all()
    assert (left + width <= 200).all() and (top + height <= 150).all()
    area, ratio = width * height / 30000, width / height
    assert area.min() < 0.1 and area.max() > 0.9
    assert (np.abs(np.log(ratio)) < np.log(4 / 3) + 0.03).all()
    torch.manual_seed(0)
    theirs = [tv.RandomResizedCrop.get_params(torch.zeros(3, 150, 200), (0.08, 1), (3 / 4, 4 / 3)) for _ in range(2000)]
    reference = np.array(theirs, dtype=float)[:, [1, 0, 3, 2]]
    # Means of left, top, width and height agree within five standard errors.
    error = np.sqrt((boxes.var(0) + reference.var(0)) / 2000)
    assert (np.abs(boxes.mean(0) - reference.mean(0)) < 5 * error).all()


@pytest.mark.parametrize(
    ("size", "box"), [((100, 3), (48, 0, 4, 3)), ((3, 100), (0, 48, 3, 4)), ((1, 1), (0, 0, 1, 1))]
)
def test_crop_falls_back_to_the_centre(size, box):
    crop = RandomResizedCrop(8, Image.Resampling.BICUBIC, scale=(0.9999, 1.0))
    assert crop.box(*size, generator()) == box


def test_half_of_the_images_are_flipped():
    image = picture(8, 4)
    mirrored = np.asarray(image)[:, ::-1]
    source = generator(0)
    flips = [np.array_equal(np.asarray(random_flip(image, source)), mirrored) for _ in range(400)]
    assert 160 < sum(flips) < 240


def test_errors_name_the_nearest():
    with pytest.raises(
        InputError, match="unknown entry 'random_flipp' in INPUT.TRANSFORMS; did you mean 'random_flip'"
    ):
        train_transform(["random_flipp"], 32, MEAN, STD)
    with pytest.raises(InputError, match="unknown INPUT.INTERPOLATION 'xyz'; expected one of bicubic, bilinear"):
        eval_transform(32, MEAN, STD, interpolation="xyz")
    with pytest.raises(InputError, match="INPUT.SIZE must be at least 1, got 0"):
        eval_transform(0, MEAN, STD)
