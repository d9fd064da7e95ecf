"""The Python API, on a small model with random weights."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import segmentation
from detectron2.config import CfgNode, get_cfg
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.class_groups import ClassGroups
from prompt_pretrain.errors import InputError
from segmentation.api import CONFIG_FOLDER, Segmenter, load
from segmentation.class_counts import classes_of
from segmentation.config import add_config
from segmentation.results import SegmentationResult

NAMES = ("striped red star", "plain blue ring", "sand")


def tiny_config() -> CfgNode:
    """A narrow ResNet, 5 queries and the tiny CLIP; the classes of VOC, on which it says that it was trained."""
    cfg = get_cfg()
    add_config(cfg)
    model = cfg.MODEL
    model.META_ARCHITECTURE, model.WEIGHTS = "ZeroShotMaskFormer", ""
    model.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    model.RESNETS.RES2_OUT_CHANNELS, model.RESNETS.STEM_OUT_CHANNELS, model.RESNETS.WIDTH_PER_GROUP = 16, 8, 4
    model.RESNETS.NORM = "BN"
    head = model.SEM_SEG_HEAD
    head.NAME, head.NUM_CLASSES, head.IN_FEATURES = "ZeroShotMaskFormerHead", 15, model.RESNETS.OUT_FEATURES
    head.CONVS_DIM = head.MASK_DIM = head.EMBED_HIDDEN_DIM = 32
    head.EMBEDDING_DIM = 64
    former = model.MASK_FORMER
    former.HIDDEN_DIM, former.NHEADS, former.DIM_FEEDFORWARD, former.DEC_LAYERS = 32, 2, 16, 1
    former.NUM_OBJECT_QUERIES = 5
    model.CLIP_ADAPTER.CLIP_MODEL_NAME, model.CLIP_ADAPTER.PROMPT_DIM = "shapeworld-tiny", 64
    model.CLIP_ADAPTER.PROMPT_LEARNER, model.CLIP_ADAPTER.REGION_SIZE = "predefined", 0
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("voc_base_sem_seg_train",), ("voc_sem_seg_test",)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 96
    return cfg


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    return load(tiny_config(), "", "cpu")


@pytest.fixture(autouse=True)
def _same_classes(segmenter: Segmenter) -> None:
    segmenter.set_classes(NAMES)


def picture(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def scores(segmenter: Segmenter, pixels: np.ndarray) -> torch.Tensor:
    """(K, H, W), finer than the label map that follows from them."""
    from prompt_pretrain.image_inputs import ImageInput

    with torch.no_grad():
        return segmenter.model([segmenter.prepare(ImageInput("", pixels), 0)])[0]["sem_seg"]


def same(one: SegmentationResult, other: SegmentationResult) -> None:
    assert one.vocabulary == other.vocabulary
    assert torch.equal(one.label_map, other.label_map)


def test_one_image_gives_one_result_with_names(segmenter: Segmenter) -> None:
    found = segmenter.predict(picture())
    assert isinstance(found, SegmentationResult) and found.label_map.shape == (40, 60)
    assert set(found.class_names) <= set(NAMES) and sum(found.areas.values()) == 2400
    assert segmentation.load is load and "3 classes" in repr(segmenter)


def test_classes_are_those_of_the_test_set_at_first() -> None:
    fresh = Segmenter(tiny_config(), load(tiny_config(), "", "cpu").model)
    assert len(fresh.class_names) == 20 and fresh.class_names[0] == "aeroplane"
    names, seen = fresh.model.vocabulary.of([])
    assert names == list(fresh.class_names) and seen.tolist() == [1] * 15 + [0] * 5


def test_data_sets_without_known_classes_leave_the_choice_to_the_caller(segmenter: Segmenter) -> None:
    cfg = tiny_config()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("never_registered",), ()
    fresh = Segmenter(cfg, segmenter.model)
    with pytest.raises(InputError, match="call set_classes first"):
        fresh.predict(picture())
    assert fresh.set_classes(NAMES).class_names == NAMES


def test_arrays_files_and_pictures_give_the_same(segmenter: Segmenter, tmp_path: Path) -> None:
    pixels = picture()
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    expected = segmenter.predict(pixels)
    same(segmenter.predict(tmp_path / "a.png"), expected)
    same(segmenter.predict(Image.fromarray(pixels[..., ::-1].copy())), expected)
    (in_folder,) = segmenter.predict(str(tmp_path))
    same(in_folder, expected)


def test_batches_change_no_result_and_keep_the_order(segmenter: Segmenter) -> None:
    pictures = [picture(40, 60, 0), picture(60, 40, 1), picture(40, 60, 2), picture(50, 50, 3), picture(40, 60, 4)]
    alone = [segmenter.predict(each) for each in pictures]
    together = list(segmenter.stream(pictures, batch_size=2))
    assert [each.index for each in together] == [0, 1, 2, 3, 4]
    for one, other in zip(alone, together, strict=True):
        agreement = (one.label_map == other.label_map).float().mean()
        assert agreement > 0.999  # sums of a batch are added up in another order


def test_classes_by_names_vocabulary_embeddings_and_file(segmenter: Segmenter, tmp_path: Path) -> None:
    expected = scores(segmenter, picture())
    made = ClassEmbeddings(torch.eye(64)[:2])
    assert segmenter.set_classes(made).class_names == ("class 0", "class 1")
    assert segmenter.set_classes(made, names=["a", "b"]).class_names == ("a", "b")
    made.save(tmp_path / "e.npy")
    assert segmenter.set_classes(tmp_path / "e.npy", names="a,b").class_names == ("a", "b")
    assert len(scores(segmenter, picture())) == 2
    torch.testing.assert_close(scores(segmenter.set_classes(",".join(NAMES)), picture()), expected)
    assert segmenter.set_classes("sand,").predict(picture()).areas == {"sand": 2400}
    assert len(segmenter.set_classes("ade20k_150").class_names) == 150


def test_a_prompt_replaces_that_of_the_model_until_the_next_classes(segmenter: Segmenter, tmp_path: Path) -> None:
    segmenter.cfg.MODEL.CLASS_EMBEDDINGS.CACHE_DIR = str(tmp_path)
    own = scores(segmenter, picture())
    same_prompt = scores(segmenter.set_classes(NAMES, prompt="a sculpture of a {}."), picture())
    torch.testing.assert_close(same_prompt, own, rtol=1e-4, atol=1e-5)
    other = scores(segmenter.set_classes(NAMES, prompt="my {}"), picture())
    assert not torch.allclose(other, own, rtol=1e-3)
    torch.testing.assert_close(scores(segmenter.set_classes(NAMES), picture()), own)


def test_another_order_of_classes_changes_only_their_numbers(segmenter: Segmenter) -> None:
    expected = scores(segmenter, picture())
    torch.testing.assert_close(scores(segmenter.set_classes(NAMES[::-1]), picture()), expected.flip(0))


def test_classes_of_the_training_set_count_as_seen(segmenter: Segmenter) -> None:
    segmenter.set_classes(["Aeroplane", "tvmonitor", "sand"])  # the second is one of the unseen classes of VOC
    assert segmenter.model.vocabulary.of([])[1].tolist() == [1, 0, 0]
    segmenter.set_classes(["aeroplane", "tvmonitor", "sand"], seen=["sand"])
    assert segmenter.model.vocabulary.of([])[1].tolist() == [0, 0, 1]
    with pytest.raises(InputError, match="seen class 'dog' is not among the 3 classes"):
        segmenter.set_classes(NAMES, seen=["dog"])


def test_tiny_odd_and_bad_pictures(segmenter: Segmenter, tmp_path: Path) -> None:
    for height, width in ((1, 1), (1, 90), (3, 2)):
        assert segmenter.predict(picture(height, width)).label_map.shape == (height, width)
    with pytest.raises(InputError, match="900 x 1 pixels are too elongated for images of 96 pixels"):
        segmenter.predict(picture(1, 900))
    assert len(segmenter.predict([picture(1, 900), picture()], skip_bad=True)) == 1
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match="a.jpg: damaged or not an image"):
        segmenter.predict(tmp_path)
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        segmenter.predict(picture(), batch_size=0)


def test_bad_classes(segmenter: Segmenter, tmp_path: Path) -> None:
    for given, message in (
        (([],), "is empty"),
        ((["a", ""],), "class 1 has the name ''"),
        ((["a", "a"],), "repeat 'a'"),
        ((ClassEmbeddings(torch.ones(2, 7)),), "width 7 but the model's features have 64"),
        ((tmp_path / "none.npy",), "no class embeddings"),
    ):
        with pytest.raises(InputError, match=message):
            segmenter.set_classes(*given)
    with pytest.raises(InputError, match="names belong to class embeddings"):
        segmenter.set_classes(NAMES, names=NAMES)
    with pytest.raises(InputError, match="give a prompt with it"):
        segmenter.set_classes(NAMES, clip="shapeworld-tiny")
    same(segmenter.predict(picture()), segmenter.set_classes(NAMES).predict(picture()))  # nothing had changed


def test_weights_and_vocabulary_of_the_config(segmenter: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": segmenter.model.state_dict()}, path)
    again = load(tiny_config(), path, "cpu", overrides=["MODEL.CLASS_EMBEDDINGS.VOCABULARY", ",".join(NAMES)])
    assert again.class_names == NAMES
    torch.testing.assert_close(scores(again, picture()), scores(segmenter, picture()))


def test_weights_of_a_training_with_another_number_of_classes(segmenter: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": segmenter.model.state_dict()}, path)
    again = load(tiny_config(), path, "cpu", overrides=["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4]).set_classes(NAMES)
    torch.testing.assert_close(scores(again, picture()), scores(segmenter, picture()))


def test_weights_tell_classes_that_the_config_does_not_know(segmenter: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(
        {"model": segmenter.model.state_dict(), "class_names": list(NAMES), "seen_class_names": list(NAMES[:2])}, path
    )
    for data_sets in (("not_registered_train",), ("voc_base_sem_seg_train",)):
        cfg = tiny_config()
        cfg.DATASETS.TRAIN = data_sets
        again = load(cfg, path, "cpu")
        assert again.class_names == NAMES
        assert again.model.vocabulary.of([])[1].tolist() == [1, 1, 0]
    known = {"model": segmenter.model.state_dict(), "class_names": list(classes_of("voc_base_sem_seg_train"))}
    torch.save(known, path)
    assert load(tiny_config(), path, "cpu").class_names == classes_of("voc_sem_seg_test")


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    stage_1 = ["MODEL.META_ARCHITECTURE", "ProposalClipClassifier"]
    for given, overrides, message in (
        (("nothing",), (), "no config 'nothing'"),
        (("zero_shot_maskformer_R101c_bs32_60k",), (), "2 configs are called .*: coco-stuff-164k-156/zero"),
        ((tmp_path / "none.yaml",), (), "no config file"),
        ((tiny_config(),), (), "no weights: give a checkpoint"),
        ((tiny_config(), tmp_path / "none.pth"), (), "none.pth not found"),
        ((tiny_config(), ""), stage_1, "ProposalClipClassifier segments nothing by itself"),
    ):
        with pytest.raises(InputError, match=message):
            load(*given, device="cpu", overrides=overrides)
    assert CONFIG_FOLDER.is_dir()


def test_a_learned_classifier_has_fixed_classes() -> None:
    overrides = ["MODEL.META_ARCHITECTURE", "MaskFormer", "MODEL.SEM_SEG_HEAD.NAME", "MaskFormerHead"]
    closed = load(tiny_config(), "", "cpu", overrides=overrides)
    assert len(closed.class_names) == 15 and closed.class_names[0] == "aeroplane"
    assert closed.predict(picture()).label_map.shape == (40, 60)
    with pytest.raises(InputError, match="learned classifier, its classes are fixed"):
        closed.set_classes(NAMES)


@pytest.mark.parametrize("aggregation", ["max", "sum"])
def test_groups_report_classes_and_not_names(segmenter: Segmenter, aggregation: str) -> None:
    names = (*NAMES, "water")
    segmenter.set_classes(names)
    plain, rows = segmenter.predict(picture()), scores(segmenter, picture())
    groups = ClassGroups.of(names[:3], background=names[3:], aggregation=aggregation)
    groups = groups.with_parents({"shape": names[:2]})
    found = segmenter.set_classes(groups).predict(picture())
    assert segmenter.class_names == found.vocabulary == ("shape", "sand", "background")
    expected = torch.stack([rows[:2].amax(0) if aggregation == "max" else rows[:2].sum(0), rows[2], rows[3]])
    assert torch.equal(found.label_map, expected.argmax(0))
    segmenter.set_classes(names)
    same(segmenter.predict(picture()), plain)  # groups are forgotten
