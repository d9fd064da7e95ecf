"""``MODEL.CLASS_EMBEDDINGS``: a prompt, a vocabulary or ready embeddings in place of the published keys."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import segmentation  # noqa: F401  (makes detectron2 importable)
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.clip import load_clip
from prompt_pretrain.errors import InputError
from segmentation.class_embedding_hook import apply_class_embeddings, resolve_class_embeddings_of, use_vocabulary
from segmentation.setup import load_config
from segmentation.training import load_for_evaluation
from tests.segmentation.tiny_runs import CLASS_NAMES, TEST, TRAIN, registered, write_config

NODE = "MODEL.CLASS_EMBEDDINGS."


@pytest.fixture(autouse=True)
def data_sets(tmp_path: Path) -> Iterator[None]:
    with registered(tmp_path / "data"):
        yield


def resolved(folder: Path, stage: int = 2, **settings: str) -> CfgNode:
    pairs = [text for name, value in settings.items() for text in (NODE + name, value)]
    cfg = load_config(write_config(folder, stage), [NODE + "CLIP", "shapeworld-tiny", *pairs])
    resolve_class_embeddings_of(cfg)
    return cfg


def write_prompt(folder: Path, *shape: int) -> str:
    path = folder / "prompt.pth"
    torch.save({"state_dict": {"ctx": torch.randn(*shape, generator=torch.Generator().manual_seed(0))}}, path)
    return str(path)


def test_without_it_nothing_changes(tmp_path: Path) -> None:
    assert resolved(tmp_path) == load_config(write_config(tmp_path), [NODE + "CLIP", "shapeworld-tiny"])


@pytest.mark.parametrize("stage", [1, 2])
def test_learned_prompt_becomes_the_prompt_learner(stage: int, tmp_path: Path) -> None:
    path = write_prompt(tmp_path, 3, 64)
    cfg = resolved(tmp_path, stage, PROMPT=path)
    adapter = cfg.MODEL.CLIP_ADAPTER
    assert ("pomp", path) == (adapter.PROMPT_LEARNER, adapter.PROMPT_CHECKPOINT)
    assert (adapter.PROMPT_SHAPE, adapter.PROMPT_DIM, adapter.CLIP_MODEL_NAME) == ((3, 0), 64, "shapeworld-tiny")
    assert cfg.MODEL.SEM_SEG_HEAD.EMBEDDING_DIM == 64
    learner = build_model(cfg).clip_adapter.prompt_learner
    assert learner.ctx.shape == (3, 64) and learner.ctx.requires_grad == (stage == 1)


def test_templates_become_predefined_prompts_for_queries_and_crops(tmp_path: Path) -> None:
    cfg = resolved(tmp_path, PROMPT="a photo of {}.")
    assert cfg.MODEL.CLIP_ADAPTER.PROMPT_LEARNER == "predefined" and not cfg.MODEL.CLIP_ADAPTER.SEPERATE_ADAPTER
    assert cfg.MODEL.CLIP_ADAPTER.PREDEFINED_PROMPT_TEMPLATES == ["a photo of {}."]
    assert len(resolved(tmp_path, PROMPT="vild").MODEL.CLIP_ADAPTER.PREDEFINED_PROMPT_TEMPLATES) == 14


def test_number_of_classes_follows_the_training_set(tmp_path: Path) -> None:
    cfg = load_config(write_config(tmp_path), [NODE + "CLIP", "shapeworld-tiny", NODE + "PROMPT", "vild"])
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 99
    resolve_class_embeddings_of(cfg)
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3


def test_prompt_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="width 32, but the text tower of .* has 64; set MODEL.CLASS_EMBEDDINGS.CLIP"):
        resolved(tmp_path, PROMPT=write_prompt(tmp_path, 3, 32))
    with pytest.raises(InputError, match="no single context before the class name; encode the classes"):
        resolved(tmp_path, PROMPT=write_prompt(tmp_path, 4, 3, 64))
    with pytest.raises(InputError, match="no class embeddings nix.npy"):
        resolved(tmp_path, PATH="nix.npy")
    cfg = load_config("", [NODE + "PROMPT", "vild", "MODEL.META_ARCHITECTURE", "MaskFormer"])
    with pytest.raises(InputError, match="the classifier of MaskFormer is a learned one; take a config with"):
        resolve_class_embeddings_of(cfg)


def test_vocabulary_renames_classes_of_data_sets_of_its_size(tmp_path: Path) -> None:
    cfg = resolved(tmp_path, VOCABULARY="beach,sea,ruby star,sapphire disc")
    model = build_model(cfg)
    apply_class_embeddings(cfg, model)
    inputs = [{"meta": {"dataset_name": TRAIN}}]
    assert model.vocabulary.of(inputs)[0] == list(CLASS_NAMES[:3])
    use_vocabulary(cfg, model, TEST)
    names, seen = model.vocabulary.of([{"meta": {"dataset_name": TEST}}])
    assert names == ["beach", "sea", "ruby star", "sapphire disc"] and seen.tolist() == [1, 1, 1, 0]
    use_vocabulary(cfg, model, TRAIN)
    assert model.vocabulary.of(inputs)[0] == list(CLASS_NAMES[:3])
    with pytest.raises(InputError, match=f"a,b has 2 classes, the data sets have others .{TRAIN} 3, {TEST} 4.;"):
        resolved(tmp_path, VOCABULARY="a,b")


def test_ready_embeddings_are_the_text_features(tmp_path: Path) -> None:
    path = tmp_path / "classes.safetensors"
    made = ClassEmbeddings.make(load_clip("shapeworld-tiny"), CLASS_NAMES, "vild")
    made.save(path)
    cfg = resolved(tmp_path, PATH=str(path))
    model = build_model(cfg)
    apply_class_embeddings(cfg, model)
    assert torch.allclose(model.clip_adapter.text_features(CLASS_NAMES[1:]), made.normalized()[1:], atol=1e-6)

    # Weights that are loaded bring no prompt of their own.
    other = resolved(tmp_path, PROMPT=write_prompt(tmp_path, 3, 64))
    torch.save({"model": build_model(other).state_dict()}, tmp_path / "weights.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    load_for_evaluation(cfg, model)
    assert torch.allclose(model.clip_adapter.text_features(CLASS_NAMES), made.normalized(), atol=1e-6)


def test_embeddings_without_names_are_those_of_a_data_set_of_their_number(tmp_path: Path) -> None:
    path = tmp_path / "classes.npy"
    rows = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float16)
    np.save(path, rows)
    cfg = resolved(tmp_path, PATH=str(path))
    model = build_model(cfg)
    apply_class_embeddings(cfg, model)
    found = model.clip_adapter.text_features(CLASS_NAMES)
    assert torch.allclose(found, torch.nn.functional.normalize(torch.from_numpy(rows).float(), dim=1))


def test_embedding_errors(tmp_path: Path) -> None:
    path = tmp_path / "classes.safetensors"
    clip = load_clip("shapeworld-tiny")
    ClassEmbeddings.make(clip, CLASS_NAMES[:3], "vild").save(path)
    cfg = resolved(tmp_path, PATH=str(path))
    model = build_model(cfg)
    with pytest.raises(InputError, match=f"no embedding of 'blue disc', one of 1 classes of {TEST} that it lacks"):
        apply_class_embeddings(cfg, model)
    np.save(tmp_path / "7.npy", np.ones((7, 64), np.float16))
    cfg.MODEL.CLASS_EMBEDDINGS.PATH = str(tmp_path / "7.npy")
    with pytest.raises(InputError, match="holds 7 class embeddings without names, and no data set"):
        apply_class_embeddings(cfg, model)
    np.save(tmp_path / "4.npy", np.ones((4, 5), np.float16))
    cfg.MODEL.CLASS_EMBEDDINGS.PATH = str(tmp_path / "4.npy")
    with pytest.raises(InputError, match="holds embeddings of width 5 but the model's features have 64"):
        apply_class_embeddings(cfg, model)
