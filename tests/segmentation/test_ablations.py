"""The oracle, the per-pixel model and the proposal-based one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import third_party  # noqa: F401  (makes detectron2 importable)
from detectron2.modeling import build_model
from detectron2.structures import Instances
from prompt_pretrain.errors import InputError
from segmentation.ablations import OracleMaskFormer, ZeroShotPerPixelModel, ZeroShotProposalBasedSegmentor
from segmentation.ablations.oracle import oracle_scores
from tests.segmentation.tiny_models import noise_image, tiny_config

NAMES = ["sand", "red star", "blue disc"]
ORACLE = ("MODEL.META_ARCHITECTURE", "OracleMaskFormer", "MODEL.SEM_SEG_HEAD.NAME", "MaskFormerHead")
PIXELS = (
    "MODEL.META_ARCHITECTURE",
    "ZeroShotPerPixelModel",
    "MODEL.SEM_SEG_HEAD.NAME",
    "ZeroPerPixelBaselineHead",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
    64,
    "MODEL.CLIP_ADAPTER.REGION_SIZE",
    0,
)


def labelled(height: int, width: int, labels: list[int]) -> dict[str, Any]:
    """An input with one horizontal band per label."""
    masks = torch.zeros(len(labels), height, width, dtype=torch.bool)
    for index, band in enumerate(torch.arange(height).tensor_split(len(labels)) if labels else ()):
        masks[index, band] = True
    instances = Instances((height, width), gt_classes=torch.tensor(labels, dtype=torch.long), gt_masks=masks)
    return {"image": noise_image(height, width), "file_name": "a.jpg", "instances": instances}


def test_an_oracle_gives_a_true_mask_its_class_alone() -> None:
    truth = torch.zeros(2, 4, 4, dtype=torch.bool)
    truth[0, :2], truth[1, 2:] = True, True
    mixed = torch.zeros(4, 4)
    mixed[1:3] = 0.9  # half of each
    masks = torch.stack([truth[1] * 0.8, mixed, torch.full((4, 4), 0.5)])
    found = oracle_scores(masks, truth, torch.tensor([3, 1]), 5)
    assert_close(found, torch.tensor([[0, 1.0, 0, 0, 0], [0, 0.5, 0, 0.5, 0], [0] * 5]))
    twice = oracle_scores(masks[:1], truth[[1, 1]], torch.tensor([1, 1]), 2)
    assert_close(twice, torch.tensor([[0.0, 1.0]]))  # instances of one class add up


def test_an_oracle_model_adds_up_its_masks_by_the_truth(tmp_path: Path) -> None:
    model = build_model(tiny_config(tmp_path, *ORACLE)).eval()
    assert isinstance(model, OracleMaskFormer)
    inputs = [labelled(40, 50, [2, 0]), labelled(64, 33, []) | {"height": 20, "width": 10}]
    with torch.no_grad():
        first, second = (output["sem_seg"] for output in model(inputs))
    assert first.shape == (3, 40, 50)
    assert float(first[1].abs().max()) == 0  # not in the image
    assert_close(second, torch.zeros(3, 20, 10))
    model.train()
    assert "loss_mask" in model([labelled(64, 64, [1])])

    model.eval()
    with pytest.raises(InputError, match="a.jpg has no ground-truth masks.*ORACLE True"):
        model([{"image": noise_image(64, 64), "file_name": "a.jpg"}])
    with pytest.raises(InputError, match=r"a.jpg has label 3, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is 3"):
        model([labelled(64, 64, [3])])
    wrong = labelled(64, 64, [0]) | {"image": noise_image(64, 48)}
    with pytest.raises(InputError, match=r"masks of a.jpg have size \(64, 64\).*its image \(64, 48\)"):
        model([wrong])


@pytest.mark.parametrize("scale", [100.0, 7.0])
def test_pixels_are_compared_with_text_features(tmp_path: Path, scale: float) -> None:
    own = ("MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE", False, "MODEL.CLIP_ADAPTER.LOGIT_SCALE", scale)
    model = build_model(tiny_config(tmp_path, *PIXELS, *own)).eval()
    assert isinstance(model, ZeroShotPerPixelModel)
    model.set_classes(NAMES)
    inputs = [{"image": noise_image(37, 50)}, {"image": noise_image(64, 40), "height": 20, "width": 30}]
    with torch.no_grad():
        first, second = (output["sem_seg"] for output in model(inputs))
        assert first.shape == (3, 37, 50) and second.shape == (3, 20, 30)
        assert_close(first.sum(0), torch.ones(37, 50))
        # The slow way, for the second alone.
        image = (inputs[1]["image"].float() - model.pixel_mean) / model.pixel_std
        batch = F.pad(image[None], (0, 12))  # as wide as the first, whose sides become multiples of 4
        x = model.sem_seg_head(model.backbone(batch))
        x = F.interpolate(x, scale_factor=4, mode="bilinear")[:, :, :64, :40]
        x = F.interpolate(x, (20, 30), mode="bilinear")[0]
        features = model.clip_adapter.text_features(NAMES)
        slow = torch.einsum("kd,dhw->khw", scale * features, x / x.norm(dim=0)).softmax(0)
    assert_close(second, slow, rtol=1e-3, atol=1e-4)

    model.train()
    target = torch.randint(0, 3, (64, 40))
    inputs = [{"image": noise_image(64, 40), "sem_seg": target}]
    loss = model(inputs)["loss_sem_seg"]
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    nothing = model([inputs[0] | {"sem_seg": torch.full((64, 40), 255)}])["loss_sem_seg"]
    assert float(nothing.detach()) == 0


def test_clip_votes_on_the_whole_image(tmp_path: Path) -> None:
    model = build_model(tiny_config(tmp_path, *PIXELS)).eval()
    model.set_classes(NAMES, seen=[1, 0, 0])
    inputs = [{"image": noise_image(32, 48)}]

    def maps(weight: float) -> torch.Tensor:
        model.clip_ensemble_weight = weight
        with torch.no_grad():
            return model(inputs)[0]["sem_seg"]

    pixels, image = maps(1.5), maps(-1)
    assert_close(pixels.sum(0), torch.ones(32, 48))
    assert_close(image, image[:, :1, :1].expand(-1, 32, 48))  # one distribution for all pixels
    scores = model.clip_adapter.classify_images(
        [F.interpolate(inputs[0]["image"][None].float(), (64, 64), mode="bicubic")[0]], NAMES
    )
    assert_close(image[:, 0, 0], scores[0].softmax(0))
    mixed = maps(0.7)
    assert_close(mixed[0], pixels[0] ** 0.7 * image[0] ** 0.3)
    assert_close(mixed[1:], pixels[1:] ** 0.3 * image[1:] ** 0.7)
    model.input_format = "BGR"
    inputs[0]["image"] = inputs[0]["image"].flip(0)
    assert_close(maps(-1), image)


def test_embeddings_of_another_width_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="MODEL.SEM_SEG_HEAD.NUM_CLASSES is 3.*64; set it to that"):
        build_model(tiny_config(tmp_path, *PIXELS, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3))


def proposal_model(folder: Path, *overrides: Any) -> ZeroShotProposalBasedSegmentor:
    regions = folder / "regions"
    regions.mkdir(exist_ok=True)
    values = ("MODEL.META_ARCHITECTURE", "ZeroShotProposalBasedSegmentor", "MODEL.CLIP_ADAPTER.PROPOSALS", str(regions))
    model = build_model(tiny_config(folder, *values, "MODEL.CLIP_ADAPTER.REGION_SIZE", 0, *overrides)).eval()
    assert isinstance(model, ZeroShotProposalBasedSegmentor)
    return model


def test_regions_of_a_file_get_their_crops_scores(tmp_path: Path) -> None:
    model = proposal_model(tmp_path)
    model.set_classes(NAMES)
    regions = np.full((10, 12), -1, np.int32)
    regions[:5, :6], regions[6:, 8:] = 7, 300
    np.save(tmp_path / "regions" / "x.npy", regions)
    image = noise_image(40, 48)
    found = model([{"image": image, "file_name": "/data/x.jpg"}])[0]["sem_seg"]
    assert found.shape == (3, 40, 48)
    assert float(found[:, 20:24].abs().max()) == 0  # between the regions
    masks = torch.zeros(2, 40, 48)
    masks[0, :20, :24], masks[1, 24:, 32:] = 1, 1
    logits, _ = model.clip_adapter(image, NAMES, masks)
    expected = logits[:, :-1].softmax(1)
    assert_close(found[:, 3, 5], expected[0])
    assert_close(found[:, 30, 40], expected[1])
    assert_close(found[:, :20, :24], found[:, :1, :1].expand(-1, 20, 24))


def test_errors_of_proposals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="MODEL.CLIP_ADAPTER.PROPOSALS is ''; give the folder"):
        proposal_model(tmp_path, "MODEL.CLIP_ADAPTER.PROPOSALS", "")
    with pytest.raises(InputError, match="TEST.AUG.ENABLED"):
        proposal_model(tmp_path, "TEST.AUG.ENABLED", True)
    model = proposal_model(tmp_path)
    model.set_classes(NAMES)
    inputs = [{"image": noise_image(16, 16), "file_name": "x.jpg"}]
    with pytest.raises(InputError, match=r"no regions of x.jpg: expected .*x.npy"):
        model(inputs)
    path = tmp_path / "regions" / "x.npy"
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"x.npy is no readable .npy"):
        model(inputs)
    np.save(path, np.zeros((3, 4)))
    with pytest.raises(InputError, match=r"x.npy has shape \(3, 4\) of float64; expected integers"):
        model(inputs)
    with pytest.raises(InputError, match="nothing to train"):
        model.train()(inputs)
