"""``CustomRCNN``: batches of every kind of annotation, captions over processes, sampled classes, errors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from detection import meta_arch
from detection.meta_arch import CustomRCNN
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from prompt_pretrain.errors import InputError
from tests.detection.small_rcnn import NUM_CLASSES, WIDTH, small_input, small_model
from tests.prompt_pretrain.processes import run_ranks


class WordLengths(nn.Module):
    """Stands for the text tower: feature d of a caption is d plus its length."""

    embed_dim = WIDTH

    def forward(self, captions: list[str]) -> Tensor:
        return torch.tensor([[float(len(caption) + d) for d in range(WIDTH)] for caption in captions])


def losses_of(model: CustomRCNN, *inputs: dict[str, Any]) -> dict[str, Tensor]:
    with EventStorage():
        return model.train()(list(inputs))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CustomRCNN:
    return small_model(tmp_path_factory.mktemp("model"))


def heads_see(model: CustomRCNN, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The keyword arguments that the ROI heads get, and the ground truth, once the model has run."""
    seen: dict[str, Any] = {}
    forward = model.roi_heads.forward

    def spy(images, features, proposals, targets, **arguments):
        seen.update(arguments, targets=targets)
        return forward(images, features, proposals, targets, **arguments)

    monkeypatch.setattr(model.roi_heads, "forward", spy)
    return seen


def test_batches_of_boxes_and_of_labels_have_the_same_losses(model: CustomRCNN) -> None:
    of_boxes = losses_of(model, small_input(), small_input(seed=1))
    of_labels = losses_of(model, small_input("image"), small_input("image", seed=1))
    assert of_boxes.keys() == of_labels.keys()
    assert sum(of_labels.values()).isfinite() and of_labels["image_loss_stage0"] > 0
    for name, loss in of_labels.items():
        assert loss == 0 or name.startswith("image_loss"), name
        assert of_boxes[name] > 0 or name.startswith("image_loss"), name


def test_losses_of_labels_reach_the_same_parameters(model: CustomRCNN) -> None:
    reached = []
    for ann_type in ("box", "image"):
        model.zero_grad(set_to_none=True)
        sum(losses_of(model, small_input(ann_type)).values()).backward()
        reached.append({name for name, each in model.named_parameters() if each.grad is not None})
    boxes, labels = reached
    assert {name for name in boxes if name.startswith(("backbone", "proposal_generator"))} <= labels


@pytest.mark.parametrize("ann_type", ["prop", "proptag"])
def test_boxes_without_classes_train_the_proposals_alone(
    model: CustomRCNN, monkeypatch: pytest.MonkeyPatch, ann_type: str
) -> None:
    seen = heads_see(model, monkeypatch)
    losses = losses_of(model, small_input(ann_type))
    assert losses and all("centernet" in name for name, loss in losses.items() if loss != 0)
    assert seen["targets"][0].gt_classes.tolist() == [0, 0]


def test_images_without_a_target_are_ordinary_in_batches_of_labels(model: CustomRCNN) -> None:
    entry = small_input("image")
    expected = losses_of(model, entry)
    del entry["instances"]
    for name, loss in losses_of(model, entry).items():
        assert_close(loss, expected[name])


def test_labels_and_kind_travel_with_the_ground_truth(model: CustomRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = heads_see(model, monkeypatch)
    losses_of(model, small_input("image", pos_category_ids=[4]))
    assert seen["ann_type"] == "image" and seen["targets"][0]._pos_category_ids == [4]
    assert seen["targets"][0]._ann_type == "image"


def test_evaluation_ignores_half_precision_and_labels(model: CustomRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"image": small_input()["image"], "height": 128, "width": 192}
    expected = model.eval()([entry])[0]["instances"]
    assert expected.image_size == (128, 192) and len(expected)
    monkeypatch.setattr(model, "fp16", True)
    assert_close(model.eval()([entry])[0]["instances"].scores, expected.scores)


def test_half_precision_falls_back_where_the_device_has_none(
    model: CustomRCNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    expected = losses_of(model, small_input())
    monkeypatch.setattr(model, "fp16", True)
    torch.manual_seed(0)
    assert losses_of(model, small_input()) == expected


def test_data_sets_weigh_their_losses(model: CustomRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = losses_of(model, small_input("image"))
    monkeypatch.setattr(model, "dataset_loss_weight", (1.0, 3.0))
    for name, loss in losses_of(model, small_input("image")).items():
        assert_close(loss, 3 * expected[name])
    with pytest.raises(InputError, match="has 2 entries, but there is a training set number 2"):
        losses_of(model, small_input("image", dataset_source=2))
    with pytest.raises(InputError, match="batches of one data set each"):
        losses_of(model, small_input("image"), small_input("image", dataset_source=0))


def test_mixed_unknown_and_missing_annotations_are_named(model: CustomRCNN) -> None:
    with pytest.raises(InputError, match=r"kinds box, image; set DATALOADER\.MULTI_DATASET_GROUPING True"):
        losses_of(model, small_input(), small_input("image"))
    with pytest.raises(InputError, match="DATASET_ANN holds 'boxes'; expected box, prop"):
        losses_of(model, small_input("boxes"))
    entry = small_input(seed=7)
    del entry["instances"]
    with pytest.raises(InputError, match=r"7\.jpg of a batch with boxes has no 'instances'"):
        losses_of(model, entry)


SYNCED = {"MODEL__SYNC_CAPTION_BATCH": True, "MODEL__CAP_BATCH_RATIO": 2}
CAPTIONED = [small_input("caption", captions=["four"]), small_input("caption", seed=1, captions=["seven.."])]


def one_of_two_processes(rank: int, folder: Path) -> None:
    """The first process has two captions, the second an image with boxes."""
    (folder / str(rank)).mkdir()
    with pytest.MonkeyPatch.context() as monkeypatch:
        model = caption_model(folder / str(rank), monkeypatch, **SYNCED)
        losses = losses_of(model, *(CAPTIONED if rank == 0 else [small_input()]))
    torch.save({name: loss.detach() for name, loss in losses.items()}, folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_share_their_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_ranks(one_of_two_processes, 2, tmp_path)
    of_captions, of_boxes = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert of_captions.keys() == of_boxes.keys()

    def with_zeros(rows: Tensor) -> list[Tensor]:
        other = torch.zeros_like(rows)
        other[:, -1] = 1
        return [rows, other]

    model = caption_model(tmp_path, monkeypatch, **SYNCED)
    monkeypatch.setattr(comm, "all_gather", with_zeros)
    alone = losses_of(model, *CAPTIONED)
    for stage in range(3):
        assert_close(of_captions[f"image_loss_stage{stage}"], alone[f"image_loss_stage{stage}"].detach())
        assert of_captions[f"image_loss_stage{stage}"] > 0 and of_boxes[f"image_loss_stage{stage}"] == 0


def caption_model(folder: Path, monkeypatch: pytest.MonkeyPatch, **overrides: Any) -> CustomRCNN:
    monkeypatch.setattr(meta_arch, "build_caption_encoder", lambda clip_name: WordLengths())
    return small_model(folder, MODEL__WITH_CAPTION=True, MODEL__ROI_BOX_HEAD__ADD_IMAGE_BOX=True, **overrides)


def test_one_caption_of_each_image_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = caption_model(tmp_path, monkeypatch)
    seen = heads_see(model, monkeypatch)
    inputs = [small_input("caption", captions=["a", "four"]), small_input("caption", seed=1, captions=["seven.."])]
    drawn = set()
    for seed in range(8):
        torch.manual_seed(seed)
        assert losses_of(model, *inputs)["image_loss_stage0"] > 0
        classifier, sampled, captions = seen["classifier_info"]
        assert classifier is None and sampled is None and captions[1, 0] == 7
        drawn.add(captions[0, 0].item())
    assert drawn == {1.0, 4.0}
    losses_of(model, small_input("image"))
    assert seen["classifier_info"][2] is None
    with pytest.raises(InputError, match=r"3\.jpg of a data set of captions has none"):
        losses_of(model, small_input("caption", seed=3, captions=[]))


@pytest.mark.parametrize(
    ("overrides", "warned"),
    [
        ({}, False),
        ({"MODEL__CLASS_EMBEDDINGS__PROMPT": "prompt.pth"}, True),
        ({"MODEL__CLASS_EMBEDDINGS__PROMPT": "prompt.pth", "MODEL__CAPTION_CLIP": "ViT-B/16"}, False),
    ],
)
def test_captions_in_another_text_space_are_warned_about(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    overrides: dict[str, Any],
    warned: bool,
) -> None:
    caption_model(tmp_path, monkeypatch, **overrides)
    assert ("captions by ViT-B/32, whose text features are unrelated" in caplog.text) == warned


def test_captions_of_all_processes_are_gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = caption_model(tmp_path, monkeypatch, MODEL__SYNC_CAPTION_BATCH=True, MODEL__CAP_BATCH_RATIO=2)
    sent = []

    def gather(rows: Tensor) -> list[Tensor]:
        sent.append(rows)
        other = torch.zeros_like(rows)
        other[:, -1] = 0
        return [other, rows]

    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    monkeypatch.setattr(comm, "all_gather", gather)
    seen = heads_see(model, monkeypatch)
    losses = model._caption_features([small_input("caption", captions=["four"])], "caption")
    assert losses.shape == (2, WIDTH + 1) and losses[:, -1].tolist() == [0, 1] and losses[1, 0] == 4
    losses_of(model, small_input())  # a batch of boxes hands in zeros and keeps nothing
    assert seen["classifier_info"][2] is None
    assert sent[-1].shape == (2, WIDTH + 1) and sent[-1][:, -1].tolist() == [1, 1] and not sent[-1][:, :-1].any()


def test_a_dynamic_classifier_compares_with_sampled_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(
        tmp_path,
        MODEL__DYNAMIC_CLASSIFIER=True,
        MODEL__NUM_SAMPLE_CATS=3,
        MODEL__ROI_BOX_HEAD__USE_FED_LOSS=False,
    )
    assert "freq_weight" not in model.state_dict()
    seen = heads_see(model, monkeypatch)
    zs_weight = model.roi_heads.box_predictor[0].cls_score.zs_weight
    for ann_type, labels in (("box", [2, 4]), ("image", [1, 3])):
        losses = losses_of(model, small_input(ann_type))
        assert sum(losses.values()).isfinite()
        rows, (inds, positions), _ = seen["classifier_info"]
        assert inds[:2].tolist() == labels and len(inds) == 3 and len(positions) == NUM_CLASSES + 1
        assert_close(rows[:-1], zs_weight[:, inds].t())
        assert not rows[-1].any()
    # Class 1 has no training image, so boxes never draw it as a negative.
    for _ in range(20):
        losses_of(model, small_input())
        assert 1 not in seen["classifier_info"][1][0]
    assert sum(losses_of(model, small_input("image", pos_category_ids=[])).values()).isfinite()


def without_proposals(cfg: CfgNode) -> None:
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"


def other_heads(cfg: CfgNode) -> None:
    cfg.MODEL.ROI_HEADS.NAME = "CustomCascadeROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = False
    cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS = (0.6, 0.7, 0.8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_proposals, r"set MODEL\.PROPOSAL_GENERATOR\.NAME to CenterNet or RPN"),
        (other_heads, r"NAME CustomCascadeROIHeads knows boxes only"),
    ],
)
def test_unfit_parts_are_refused(tmp_path: Path, change: Callable[[CfgNode], None], message: str) -> None:
    from tests.detection.small_rcnn import small_config

    cfg = small_config(tmp_path)
    change(cfg)
    with pytest.raises(InputError, match=message):
        CustomRCNN(cfg)


@pytest.mark.cuda
def test_half_precision_changes_losses_little(tmp_path: Path) -> None:
    found = []
    for fp16 in (False, True):
        model = small_model(tmp_path, FP16=fp16, MODEL__DEVICE="cuda")
        torch.manual_seed(1)
        losses = losses_of(model, small_input())
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        found.append({name: loss.item() for name, loss in losses.items()})
    assert found[1] == pytest.approx(found[0], rel=0.1, abs=0.02)
