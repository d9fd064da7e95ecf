import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from prompt_pretrain.classification.items import ClassificationData
from prompt_pretrain.config import load_cfg
from prompt_pretrain.errors import InputError
from prompt_pretrain.label_hierarchy import cross_entropy, read_hierarchy
from prompt_pretrain.pretraining_setup import pretrain_prompt
from prompt_pretrain.shapeworld.writers import Recipe, write_imagenet21k

# seal (a class) > sea lion, walrus; cat (no class) > lion; thing is the root.
NAMES = {"n1": "sea_lion", "n2": "walrus", "n3": "seal", "n4": "lion", "n5": "cat", "n9": "thing"}
CHAINS = [[0, 2, 5], [1, 2, 5], [2, 5], [3, 4, 5], [4, 5], [5]]


@pytest.fixture
def data(tmp_path) -> ClassificationData:
    tree = {"class_list": list(NAMES), "class_description": NAMES, "class_tree_list": CHAINS}
    torch.save(tree, tmp_path / "imagenet21k_miil_tree.pth")
    folders = ("n1", "n2", "n3", "n4")
    return ClassificationData("x", str(tmp_path), tuple(NAMES[f] for f in folders), (), (), (), (), (), folders)


def targets(hierarchy) -> torch.Tensor:
    """(N, N + extra) target distributions, read off the losses' gradients."""
    classes = hierarchy.num_classes
    logits = torch.zeros(classes, classes + len(hierarchy.extra_names), requires_grad=True)
    hierarchy.losses(logits, torch.arange(classes)).sum().backward()
    return 1 / logits.shape[1] - logits.grad


def test_parents_are_right_too_and_join_the_softmax_if_they_are_no_classes(data):
    hierarchy = read_hierarchy(data, "positives", weight=0.1, levels=1)
    assert hierarchy.extra_names == ("cat",)
    half = 0.5
    expected = [[half, 0, half, 0, 0], [0, half, half, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, half, half]]
    assert_close(targets(hierarchy), torch.tensor(expected))


def test_smoothing_shares_with_siblings_and_the_parent(data):
    found = targets(read_hierarchy(data, "smooth", weight=0.2, levels=1))
    expected = [[0.8, 0.1, 0.1, 0], [0.1, 0.8, 0.1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert_close(found, torch.tensor(expected))


def test_accuracy_counts_the_classes_proper_alone(data):
    hierarchy = read_hierarchy(data, "positives", weight=0.1, levels=1)
    logits = torch.tensor([[0.0, 0, 0, 1, 5]])  # the added parent scores highest
    assert cross_entropy(logits, torch.tensor([3]), hierarchy)[1].item()
    losses, _ = cross_entropy(logits, torch.tensor([3]), None)
    assert_close(losses, F.cross_entropy(logits, torch.tensor([3]), reduction="none"))


def test_no_hierarchy_is_no_tree(data, tmp_path):
    (tmp_path / "imagenet21k_miil_tree.pth").unlink()
    assert read_hierarchy(data, "none", weight=0.1, levels=1) is None
    with pytest.raises(InputError, match="No such file"):
        read_hierarchy(data, "smooth", weight=0.1, levels=1)


def test_a_tree_without_a_class_is_named(data):
    other = ClassificationData("x", data.root, ("a",), (), (), (), (), (), ("n77",))
    with pytest.raises(InputError, match="has no class n77; get the class tree of this data set"):
        read_hierarchy(other, "smooth", weight=0.1, levels=1)


def test_prompts_train_with_either_mode_and_need_all_classes(tmp_path):
    write_imagenet21k(tmp_path / "data" / "shapeworld", Recipe(num_classes=6, num_novel=1, images_per_class=2))
    pairs = ["DATASET.ROOT", str(tmp_path / "data"), "FEATURE_CACHE.FOLDER", str(tmp_path / "f")]
    pairs += ["OPTIM.MAX_EPOCH", "1", "DATASET.HELD_OUT_SHOTS", "0", "TEST.SELECTION", "last"]

    def run(mode: str, k: str, *more: str):
        changed = ["OUTPUT_DIR", str(tmp_path / mode), "TRAINER.HIERARCHY.MODE", mode]
        file = "configs/prompt_pretrain/shapeworld_tiny.yaml"
        return pretrain_prompt(load_cfg(file, [*pairs, *changed, "TRAINER.POMP.UPDATE_CLASS_NUM", k, *more]))

    for mode in ("positives", "smooth"):
        assert run(mode, "all").result.last_epoch == 1
    with pytest.raises(InputError, match="smooth needs the softmax over all classes; set"):
        run("smooth", "4")
    with pytest.raises(InputError, match="positives adds . parents to the classes"):
        run("positives", "all", "TRAINER.POMP.CSC", "True")
