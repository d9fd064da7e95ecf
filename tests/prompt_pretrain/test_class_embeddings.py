import json
import logging
import multiprocessing
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fvcore.common.config import CfgNode
from safetensors import safe_open
from torch.testing import assert_close

from prompt_pretrain import class_embeddings
from prompt_pretrain.class_embeddings import ClassEmbeddings, add_class_embeddings_config, resolve_class_embeddings
from prompt_pretrain.clip import Clip, clip_from_config
from prompt_pretrain.errors import InputError
from prompt_pretrain.prompt import SoftPrompt, prompt_hash, save_prompt
from prompt_pretrain.vocabulary import Vocabulary, clean_class_name, load_vocabulary

TINY = {
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
NAMES = ("sea_lion", "dog", "crème brûlée")
RELEASED = Path(__file__).parents[3] / "shared" / "data" / "class_embeddings"
needs_released = pytest.mark.skipif(not RELEASED.is_dir(), reason="the released arrays are not part of the repository")


@pytest.fixture(scope="module")
def clip() -> Clip:
    return clip_from_config(TINY)


@pytest.fixture
def prompt() -> SoftPrompt:
    return SoftPrompt.random(4, 16, seed=1)


def test_make_records_what_the_rows_are(clip, prompt):
    made = ClassEmbeddings.make(clip, Vocabulary("demo", NAMES), prompt)
    assert made.embeddings.shape == (3, 12) and made.embeddings.dtype == torch.float32
    assert (len(made), made.width, made.class_names, made.clip_id) == (3, 12, NAMES, clip.clip_id)
    assert made.metadata["prompt_hash"] == prompt_hash(prompt) and made.metadata["vocabulary"] == "demo"
    assert_close(made.normalized().norm(dim=1), torch.ones(3))
    assert not torch.allclose(made.embeddings.norm(dim=1), torch.ones(3), atol=1e-2)  # raw
    backwards = ClassEmbeddings.make(clip, NAMES[::-1], prompt)
    assert_close(backwards.embeddings.flip(0), made.embeddings, rtol=1e-4, atol=1e-5)


def test_npy_is_what_detic_reads(clip, prompt, tmp_path):
    made = ClassEmbeddings.make(clip, NAMES, prompt)
    made.save(tmp_path / "demo.npy")
    array = np.load(tmp_path / "demo.npy", allow_pickle=False)
    assert array.dtype == np.float16 and array.flags.c_contiguous and array.shape == (3, 12)
    assert_close(torch.from_numpy(array).float(), made.embeddings, rtol=1e-3, atol=1e-3)
    loaded = ClassEmbeddings.load(tmp_path / "demo.npy", NAMES)
    assert loaded.class_names == NAMES and loaded.clip_id == "" and loaded.embeddings.dtype == torch.float32
    torch.save(made.embeddings.half(), tmp_path / "demo.pth")
    assert torch.equal(ClassEmbeddings.load(tmp_path / "demo.pth").embeddings, loaded.embeddings)


def test_safetensors_keeps_all_facts(clip, prompt, tmp_path):
    made = ClassEmbeddings.make(clip, NAMES, prompt)
    made.save(tmp_path / "demo.safetensors")
    loaded = ClassEmbeddings.load(tmp_path / "demo.safetensors")
    assert torch.equal(loaded.embeddings, made.embeddings)
    assert (loaded.class_names, loaded.clip_id, loaded.prompt) == (NAMES, clip.clip_id, made.prompt)
    assert dict(loaded.metadata) == dict(made.metadata)
    with safe_open(tmp_path / "demo.safetensors", framework="np") as file:
        stored = file.metadata()
    assert (
        stored["format_version"] == "1"
        and stored["dot"] == "joint"
        and json.loads(stored["class_names"])[0] == NAMES[0]
    )
    assert len(list(tmp_path.iterdir())) == 1


def test_checks_say_what_differs(clip, prompt):
    made = ClassEmbeddings.make(clip, NAMES, prompt)
    made.check(width=12, num_classes=3, class_names=("sea lion", "Dog", "crème brûlée"), clip=clip)
    with pytest.raises(
        InputError,
        match="the set holds 3 class embeddings but MODEL.ROI_HEADS.NUM_CLASSES is 1203; .* set NUM_CLASSES to 3",
    ):
        made.check(num_classes=1203)
    with pytest.raises(InputError, match="but MODEL.SEM_SEG_HEAD.NUM_CLASSES is 4; .* or set NUM_CLASSES to 3"):
        made.check(num_classes=4, key="MODEL.SEM_SEG_HEAD.NUM_CLASSES")
    with pytest.raises(InputError, match="embeddings of width 12 but the model's features have 512"):
        made.check(width=512)
    with pytest.raises(InputError, match="holds 3 class embeddings but the vocabulary has 2 names"):
        made.check(class_names=NAMES[:2])
    with pytest.raises(InputError, match="row 1 of the set is 'dog' but class 1 of the vocabulary is 'cat'"):
        made.check(class_names=("sea_lion", "cat", "crème brûlée"))
    other = clip_from_config(TINY, seed=1)
    with pytest.raises(InputError, match="was made by config:.*#seed0 but config:.*#seed1 is in use"):
        made.check(clip=other)


def test_unusable_files_are_explained(tmp_path, clip):
    def npy(array) -> Path:
        np.save(tmp_path / "x.npy", array, allow_pickle=True)
        return tmp_path / "x.npy"

    with pytest.raises(InputError, match="no class embeddings .*missing.npy; make them with"):
        ClassEmbeddings.load(tmp_path / "missing.npy")
    for array in (np.zeros(3), np.zeros((0, 4)), np.ones((2, 3), dtype=np.int64)):
        with pytest.raises(InputError, match=r"x.npy holds torch\.\w+ of shape .*; expected floats \(classes, width\)"):
            ClassEmbeddings.load(npy(array))
    broken = np.ones((4, 2), dtype=np.float16)
    broken[2], broken[3, 1] = 0, np.nan
    with pytest.raises(InputError, match="x.npy: row 2 is zero or not finite, as are 2 in all"):
        ClassEmbeddings.load(npy(broken))
    with pytest.raises(InputError, match="x.npy is no readable .npy array"):
        ClassEmbeddings.load(npy(np.array([Evil()], dtype=object)))
    whole = npy(np.ones((100, 2))).read_bytes()
    (tmp_path / "x.npy").write_bytes(whole[:-8])
    with pytest.raises(InputError, match="x.npy is no readable .npy array"):
        ClassEmbeddings.load(tmp_path / "x.npy")
    with pytest.raises(InputError, match="holds 2 class embeddings but the vocabulary has 3 names"):
        ClassEmbeddings.load(npy(np.ones((2, 4))), NAMES)
    (tmp_path / "x.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="no safetensors file or is cut short"):
        ClassEmbeddings.load(tmp_path / "x.safetensors")
    class_embeddings.write_safetensors(tmp_path / "y.safetensors", {"w": torch.ones(1)}, {})
    with pytest.raises(InputError, match="holds no 'embeddings'"):
        ClassEmbeddings.load(tmp_path / "y.safetensors")
    for names, message in [
        ("[", "are damaged"),
        ("[1]", "are no list of texts"),
        ('["a"]', "2 class embeddings but 1 names"),
    ]:
        class_embeddings.write_safetensors(
            tmp_path / "z.safetensors", {"embeddings": torch.ones(2, 3)}, {"class_names": names}
        )
        with pytest.raises(InputError, match=message):
            ClassEmbeddings.load(tmp_path / "z.safetensors")
    torch.save({"a": 1}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="holds a dict; expected a tensor"):
        ClassEmbeddings.load(tmp_path / "x.pt")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(InputError, match="evil.pt does not load as a plain tensor"):
        ClassEmbeddings.load(tmp_path / "evil.pt")
    with pytest.raises(InputError, match="written as .npy .* or .safetensors .*, not to x.pt"):
        ClassEmbeddings(torch.ones(1, 1)).save("x.pt")
    with pytest.raises(InputError, match="do not fit the float16 of .npy"):
        ClassEmbeddings(torch.full((1, 1), 1e6)).save(tmp_path / "big.npy")
    assert not Evil.ran


class Evil:
    ran = False

    def __reduce__(self):
        return setattr, (Evil, "ran", True)


def test_cache_answers_equal_requests_only(clip, prompt, tmp_path, monkeypatch, caplog):
    made = ClassEmbeddings.cached(clip, NAMES, prompt, cache_dir=tmp_path)
    monkeypatch.setattr(ClassEmbeddings, "make", None)  # encoding again would fail
    again = ClassEmbeddings.cached(clip_from_config(TINY), NAMES, SoftPrompt(prompt.ctx), cache_dir=tmp_path)
    assert torch.equal(again.embeddings, made.embeddings) and again.class_names == NAMES
    for other in [
        (clip_from_config(TINY, seed=1), NAMES, prompt),
        (clip, NAMES[:2], prompt),
        (clip, NAMES, SoftPrompt.random(4, 16, seed=2)),
        (clip, NAMES, "a {}"),
    ]:
        with pytest.raises(TypeError):
            ClassEmbeddings.cached(*other, cache_dir=tmp_path)


def test_damaged_cache_is_made_again(clip, prompt, tmp_path, caplog):
    made = ClassEmbeddings.cached(clip, NAMES, prompt, cache_dir=tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:50])
    with caplog.at_level(logging.WARNING):
        assert torch.equal(ClassEmbeddings.cached(clip, NAMES, prompt, cache_dir=tmp_path).embeddings, made.embeddings)
    assert "made again" in caplog.text
    assert len(ClassEmbeddings.load(file)) == 3


def test_unusable_cache_folder_costs_time_only(clip, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        made = ClassEmbeddings.cached(clip, NAMES, "a {}", cache_dir=tmp_path / "file" / "folder")
    assert len(made) == 3 and "class embeddings are not cached" in caplog.text


def test_full_disk_costs_time_only(clip, tmp_path, monkeypatch, caplog):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(class_embeddings, "write_safetensors", full)
    with caplog.at_level(logging.WARNING):
        assert len(ClassEmbeddings.cached(clip, NAMES, "a {}", cache_dir=tmp_path)) == 3
    assert "No space left" in caplog.text


def test_many_processes_at_once_encode_once(clip, tmp_path, monkeypatch):
    def slow_make(*arguments):
        with open(tmp_path / "log", "a") as log:
            log.write("made\n")
        time.sleep(0.3)
        return ClassEmbeddings(torch.full((2, 12), float(os.getpid())), ("sea lion", "dog"))

    def ask(answers):
        found = ClassEmbeddings.cached(clip, ["sea lion", "dog"], "a {}", cache_dir=tmp_path / "cache")
        answers.put(found.embeddings[0, 0].item())

    monkeypatch.setattr(ClassEmbeddings, "make", slow_make)
    context = multiprocessing.get_context("fork")  # nothing in the children computes in several threads
    answers = context.Queue()
    processes = [context.Process(target=ask, args=(answers,)) for _ in range(6)]
    for process in processes:
        process.start()
    found = {answers.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(60)
    assert len(found) == 1 and found <= {float(process.pid) for process in processes}
    assert (tmp_path / "log").read_text() == "made\n"


def config(**values) -> CfgNode:
    cfg = CfgNode()
    add_class_embeddings_config(cfg)
    cfg.merge_from_list([x for key, value in values.items() for x in (f"MODEL.CLASS_EMBEDDINGS.{key}", value)])
    return cfg


def test_config_hook_adds_the_documented_keys():
    cfg = CfgNode({"MODEL": {"WEIGHTS": "x"}})
    add_class_embeddings_config(cfg)
    assert set(cfg.MODEL.CLASS_EMBEDDINGS) == {"PROMPT", "CLIP", "VOCABULARY", "PATH", "CACHE_DIR"}
    assert cfg.MODEL.WEIGHTS == "x" and cfg.MODEL.CLASS_EMBEDDINGS.CLIP == "ViT-B/16"


def test_config_resolves_to_encoded_or_ready_embeddings(clip, prompt, tmp_path):
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    save_prompt(tmp_path / "prompt.pth", prompt)
    settings = {"CLIP": str(tmp_path / "tiny.json"), "PROMPT": str(tmp_path / "prompt.pth"), "CACHE_DIR": str(tmp_path)}
    found = resolve_class_embeddings(config(VOCABULARY="sea_lion,dog,crème brûlée", **settings), num_classes=3)
    assert_close(found.embeddings, ClassEmbeddings.make(clip, NAMES, prompt).embeddings)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    found.save(tmp_path / "ready.npy")
    ready = resolve_class_embeddings(config(PATH=str(tmp_path / "ready.npy"), VOCABULARY="sea lion,dog,crème brûlée"))
    assert ready.class_names == ("sea lion", "dog", "crème brûlée")
    with pytest.raises(InputError, match="holds 3 class embeddings but the vocabulary has 80 names"):
        resolve_class_embeddings(config(PATH=str(tmp_path / "ready.npy"), VOCABULARY="coco"))
    with pytest.raises(InputError, match="ready.npy holds 3 class embeddings but MODEL.ROI_HEADS.NUM_CLASSES is 80"):
        resolve_class_embeddings(config(PATH=str(tmp_path / "ready.npy")), num_classes=80)


def test_incomplete_config_names_the_missing_keys():
    with pytest.raises(
        InputError, match="MODEL.CLASS_EMBEDDINGS.VOCABULARY, MODEL.CLASS_EMBEDDINGS.PROMPT not set; .*PATH to a file"
    ):
        resolve_class_embeddings(config())


def released(file: str) -> torch.Tensor:
    return ClassEmbeddings.load(RELEASED / file).normalized()


@needs_released
@pytest.mark.parametrize(
    ("file", "vocabulary", "norms"),
    [
        ("coco_clip_a+cname.npy", "coco", (8.879, 10.156, 11.735)),
        ("coco_clip_pomp+cname.npy", "coco", (7.147, 8.361, 9.655)),
        ("lvis_v1_clip_a+cname.npy", "lvis_v1", (7.966, 9.819, 13.421)),
        ("lvis_v1_clip_pomp+cname.npy", "lvis_v1", (7.051, 8.157, 9.712)),
        ("o365_clip_a+cnamefix.npy", "objects365", (8.075, 9.894, 12.484)),
        ("o365_fixname_clip_pomp+cname.npy", "objects365", (6.904, 8.243, 9.652)),
    ],
)
def test_released_arrays_load(file, vocabulary, norms):
    loaded = ClassEmbeddings.load(RELEASED / file, load_vocabulary(vocabulary).class_names)
    found = loaded.embeddings.norm(dim=1)
    assert (found.min(), found.mean(), found.max()) == pytest.approx(norms, abs=1e-3)
    loaded.check(width=512)


@needs_released
@pytest.mark.parametrize(
    ("first", "second", "kind", "equal", "shared"),
    [
        ("coco", "lvis_v1", "pomp", 59, 59),
        ("coco", "objects365", "pomp", 70, 70),
        ("lvis_v1", "objects365", "pomp", 177, 177),
        ("coco", "objects365", "a", 70, 70),
        ("coco", "lvis_v1", "a", 51, 59),
        ("lvis_v1", "objects365", "a", 160, 177),
    ],
)
def test_names_that_released_sets_share_have_equal_rows(first, second, kind, equal, shared):
    files = {
        "a": {
            "coco": "coco_clip_a+cname.npy",
            "lvis_v1": "lvis_v1_clip_a+cname.npy",
            "objects365": "o365_clip_a+cnamefix.npy",
        },
        "pomp": {
            "coco": "coco_clip_pomp+cname.npy",
            "lvis_v1": "lvis_v1_clip_pomp+cname.npy",
            "objects365": "o365_fixname_clip_pomp+cname.npy",
        },
    }[kind]
    rows = []
    for name in (first, second):
        names = [clean_class_name(n).lower() for n in load_vocabulary(name).class_names]
        rows.append(dict(zip(names, released(files[name]), strict=True)))
    both = rows[0].keys() & rows[1].keys()
    assert len(both) == shared
    assert sum(bool(rows[0][name] @ rows[1][name] > 0.9999) for name in both) == equal


def test_shuffled_rows_keep_names_and_values():
    rows = torch.arange(10.0)[:, None].repeat(1, 3) + 1
    made = ClassEmbeddings(rows, tuple("abcdefghij"), "clip", "a {}")
    shuffled = made.shuffled(1)
    assert shuffled.class_names == made.class_names and shuffled.prompt == "shuffled: a {}"
    assert sorted(shuffled.embeddings[:, 0].tolist()) == rows[:, 0].tolist()
    assert not torch.equal(shuffled.embeddings, rows)
    assert torch.equal(shuffled.embeddings, made.shuffled(1).embeddings)
