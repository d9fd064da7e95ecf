"""``tools/demo.py``: inputs, outputs, vocabularies and complaints, with models that find something for sure."""

import argparse
import importlib
import json
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

import segmentation  # noqa: F401  makes detectron2 importable
from detection.results import DetectionResult
from detectron2.structures import Boxes, Instances
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError
from prompt_pretrain.predictor import Predictor
from segmentation.results import SegmentationResult
from tests.segmentation.tiny_runs import write_config

TOOLS = Path(__file__).parents[2] / "tools"
WORDS = ("red car", "dog")


class Fake(Predictor[Any]):
    """Finds a dog in the lower half of every picture, and a car in all of it with a score of 0.2."""

    longest_side = 0

    def __init__(self, task: str) -> None:
        self.task = task
        self.class_names = WORDS
        self.sizes: list[int] = []

    def prepare(self, image: Any, index: int) -> dict[str, Any]:
        tensor = torch.as_tensor(image.pixels.transpose(2, 0, 1).copy())
        return {"image": tensor, "index": index, "source": image.source}

    def padded_size(self, image: torch.Tensor) -> tuple[int, int]:
        return image.shape[-2], image.shape[-1]

    def run(self, entries: Any) -> list[Any]:
        self.sizes.append(len(entries))
        return [self._result(entry) for entry in entries]

    def _result(self, entry: dict[str, Any]) -> Any:
        height, width = entry["image"].shape[-2:]
        if self.task == "segmentation":
            labels = torch.zeros(height, width, dtype=torch.int64)
            labels[height // 2 :] = 1
            return SegmentationResult(labels, WORDS, entry["source"], entry["index"])
        instances = Instances((height, width))
        instances.pred_boxes = Boxes(torch.tensor([[0, height / 2, width, height], [0, 0, width, height]]))
        instances.scores, instances.pred_classes = torch.tensor([0.9, 0.2]), torch.tensor([1, 0])
        return DetectionResult(instances, WORDS, entry["source"], entry["index"])


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("demo")


@pytest.fixture
def run(demo: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command with a fake model, which is ``run.model``."""

    def command(*arguments: object, task: str = "detection") -> int:
        command.model = Fake(task)  # type: ignore[attr-defined]
        monkeypatch.setattr(demo, "load_model", lambda args: (task, command.model))  # type: ignore[attr-defined]
        return run_command(demo.main, ["--config-file", "any", *map(str, arguments)])

    return command


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, (name, size) in enumerate((("a.jpg", (60, 40)), ("b.png", (40, 60)), ("c.webp", (60, 40)))):
        Image.fromarray(np.full((size[1], size[0], 3), 40 * number, np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_text("no picture")
    (folder / "notes.txt").write_text("no picture either")
    return folder


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_folder_with_a_corrupt_file_gives_overlays_and_a_coco_json(
    run: Callable[..., int], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "out"
    assert run("--input", pictures, "--output", output, "--batch-size", 2) == 0
    assert written(output) == ["a.jpg", "b.png", "c.jpg", "predictions.json"]
    assert run.model.sizes == [2, 1]  # type: ignore[attr-defined]
    assert Image.open(output / "a.jpg").size == (480, 320)  # enlarged, so that letters can be read
    coco = COCO(str(output / "predictions.json"))
    assert [coco.imgs[key]["file_name"] for key in (1, 2, 3)] == [
        str(pictures / name) for name in ("a.jpg", "b.png", "c.webp")
    ]
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(WORDS)
    (entry,) = coco.loadAnns(coco.getAnnIds(imgIds=[2]))
    assert entry["bbox"] == [0, 30, 40, 30] and entry["area"] == 1200 and entry["category_name"] == "dog"
    assert entry["score"] == pytest.approx(0.9)
    assert "a.jpg: 1 found: dog" in capsys.readouterr().out


def test_segmentation_writes_label_maps_and_legends(run: Callable[..., int], pictures: Path, tmp_path: Path):
    output = tmp_path / "out"
    assert run("--input", pictures / "a.jpg", pictures / "b.png", "--output", output, task="segmentation") == 0
    assert written(output) == ["a.jpg", "b.png", "labels/a.png", "labels/b.png", "predictions.json"]
    labels = np.asarray(Image.open(output / "labels" / "a.png"))
    assert labels.shape == (40, 60) and (labels[:20] == 0).all() and (labels[20:] == 1).all()
    assert Image.open(output / "a.jpg").size[0] > 480  # the legend
    coco = COCO(str(output / "predictions.json"))
    (first, second) = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert (first["area"], first["bbox"]) == (1200, [0, 0, 60, 20]) and second["bbox"] == [0, 20, 60, 20]
    assert coco.annToMask(second).sum() == 1200


def test_patterns_and_equal_names(run: Callable[..., int], pictures: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.jpg").write_bytes((pictures / "a.jpg").read_bytes())
    output = tmp_path / "out"
    assert run("--input", f"{pictures}/[ab].*", other, "--output", output) == 0
    assert written(output) == ["a.jpg", "a_2.jpg", "b.png", "predictions.json"]
    assert run("--input", f"{tmp_path}/**/in/b.*", "--output", tmp_path / "single.png") == 0
    assert Image.open(tmp_path / "single.png").size == (320, 480)


def test_the_threshold_holds(run: Callable[..., int], pictures: Path, tmp_path: Path):
    assert run("--input", pictures / "a.jpg", "--output", tmp_path / "o", "--confidence-threshold", 0.1) == 0
    assert len(json.loads((tmp_path / "o" / "predictions.json").read_text())["annotations"]) == 2


def test_ctrl_c_leaves_whole_files_and_says_which(
    run: Callable[..., int],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    whole = Fake.run

    def interrupted(model: Fake, entries: Any) -> list[Any]:
        if len(model.sizes) == 2:
            raise KeyboardInterrupt
        return whole(model, entries)

    monkeypatch.setattr(Fake, "run", interrupted)
    output = tmp_path / "out"
    assert run("--input", pictures, "--output", output, "--batch-size", 1) == 130
    assert written(output) == ["a.jpg", "b.png", "predictions.json"]
    assert len(json.loads((output / "predictions.json").read_text())["images"]) == 2
    assert "interrupted; " in (text := capsys.readouterr().err) and "the same command starts anew" in text
    assert run("--input", video(tmp_path / "v.mp4"), "--output", tmp_path / "v", "--batch-size", 1) == 130
    assert written(tmp_path / "v") == ["predictions.json"]  # no video that is shorter than it looks
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    assert run("--webcam", "--output", tmp_path / "w") == 130  # the only way to stop a camera
    assert written(tmp_path / "w") == ["camera0.mp4", "predictions.json"]


def test_a_run_that_finds_nothing_says_what_to_change(
    run: Callable[..., int], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run("--input", pictures / "a.jpg", "--output", tmp_path / "o", "--confidence-threshold", 0.95) == 0
    assert "nothing scored 0.95 or more; lower --confidence-threshold" in capsys.readouterr().out


def video(path: Path, frames: int = 5) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 12, (64, 48))
    for value in range(frames):
        writer.write(np.full((48, 64, 3), 30 * value, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_video_becomes_a_video(run: Callable[..., int], tmp_path: Path, task: str):
    path = video(tmp_path / "v.avi")
    output = tmp_path / "out"
    assert run("--video-input", path, "--output", output, "--max-frames", 4, task=task) == 0
    assert written(output) == ["predictions.json", "v.mp4"]
    result = cv2.VideoCapture(str(output / "v.mp4"))
    assert int(result.get(cv2.CAP_PROP_FRAME_COUNT)) == 4 and result.get(cv2.CAP_PROP_FPS) == pytest.approx(12)
    content = json.loads((output / "predictions.json").read_text())
    assert [entry["file_name"] for entry in content["images"]] == [f"{path}#{number}" for number in range(4)]


class Camera:
    """Gives three pictures."""

    def __init__(self, number: int) -> None:
        self.left = 3 if number == 0 else 0

    def isOpened(self) -> bool:  # noqa: N802 (OpenCV's name)
        return self.left > 0

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.left -= 1
        return (True, np.zeros((48, 64, 3), np.uint8)) if self.left >= 0 else (False, None)

    def release(self) -> None:
        pass


def test_a_camera_is_seen_live(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    shown: list[np.ndarray] = []
    monkeypatch.setattr(cv2, "imshow", lambda title, picture: shown.append(picture))
    keys: Iterator[int] = iter((255, 27))
    monkeypatch.setattr(cv2, "waitKey", lambda delay: next(keys))
    assert run("--webcam") == 0
    assert len(shown) == 2 and shown[0].shape == (384, 512, 3)  # Escape after the second
    assert run("--webcam", "--output", tmp_path / "out", "--max-frames", 2) == 0
    assert written(tmp_path / "out") == ["camera0.mp4", "predictions.json"]
    assert run("--webcam", 1) == 2
    assert "no camera 1; check --webcam" in capsys.readouterr().err
    assert run("--webcam", "--output", tmp_path / "out2") == 2
    assert "camera 0 gives no pictures any more, after 3" in capsys.readouterr().err
    assert not written(tmp_path / "out2")  # nothing half written


def test_pictures_are_shown_in_a_window(
    run: Callable[..., int], pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(cv2, "imshow", lambda title, picture: None)
    monkeypatch.setattr(cv2, "waitKey", lambda delay: ord("q"))
    assert run("--input", pictures) == 0

    def no_screen(*_: object) -> None:
        raise cv2.error("no display")

    monkeypatch.setattr(cv2, "imshow", no_screen)
    assert run("--input", pictures) == 2
    assert "no window can be opened here; give --output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "nothing to look at; give --input, --video-input or --webcam"),
        ("--input nix.jpg", "no image, folder or video nix.jpg"),
        ("--input nix*.jpg", "no image or video matches 'nix*.jpg'"),
        ("--input {empty}", "no images in the folder {empty}"),
        ("--video-input nix.mp4", "no video nix.mp4"),
        ("--webcam two", "--webcam 'two': expected a camera's number or 'screen'"),
        ("--webcam 0 --max-frames 0", "--max-frames 0: it must be at least 1"),
        ("--input {in} --output {out}.png", "is one picture, but there are 4 inputs; give a folder"),
        ("--input {in} --output {in}/notes.txt", "notes.txt is a file, and no picture; give a folder"),
        ("--input {in} --output {in}/notes.txt/below", "cannot write below {in}/notes.txt"),
        ("--input {in}/broken.jpg --output {out}", "no input could be used"),
    ],
)
def test_bad_inputs_and_outputs(
    run: Callable[..., int],
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
):
    (tmp_path / "empty").mkdir()
    places = {"in": pictures, "out": tmp_path / "out", "empty": tmp_path / "empty"}
    assert run(*(word.format(**places) for word in arguments.split())) == 2
    assert message.format(**places) in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--batch-size 0", "--batch-size 0: it must be at least 1"),
        ("--confidence-threshold 1.5", "--confidence-threshold 1.5: it must lie between 0 and 1"),
        ("--cpu --device cuda", "--cpu and --device cuda exclude each other"),
        ("--vocabulary custom", "--vocabulary custom needs the words"),
        ("--vocabulary coco --custom-vocabulary a,b", "--vocabulary coco and --custom-vocabulary exclude each other"),
        ("--vocabulary nix", "unknown vocabulary 'nix'"),
        ("--class-embeddings e.npy --prompt a", "--prompt and --clip would change nothing"),
        ("--class-embeddings e.npy --background wall", "--background needs names that can be encoded"),
        ("--prompt a{{}} b", "of several templates 'b' has no {}"),
        ("--vocabulary coco --synonyms", "the vocabulary coco knows none"),
        ("--vocabulary coco --parents nix.json", "no file of parents nix.json"),
        ("--vocabulary coco", "no config 'nix' below"),
    ],
)
def test_bad_options_are_found_before_a_model_is_loaded(
    demo: types.ModuleType, pictures: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
):
    words = [word.replace("{{}}", "{}") for word in arguments.split()]
    assert run_command(demo.main, ["--config-file", "nix", "--input", str(pictures), *words]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def options(demo: types.ModuleType, *words: str) -> argparse.Namespace:
    return demo.parse_args(["--config-file", "shapeworld_boxsup", "--weights", "", "--cpu", *words])


def loaded(demo: types.ModuleType, *words: str) -> tuple[str, Any]:
    return importlib.import_module("demo_parts.models").load_model(options(demo, *words))


def test_vocabularies_and_their_helpers_reach_a_detector(demo: types.ModuleType, tmp_path: Path):
    cache = ("--opts", "MODEL.CLASS_EMBEDDINGS.CACHE_DIR", str(tmp_path))
    words = (
        "--custom_vocabulary",
        "red car|red auto,dog,cat",
        "--background",
        "wall, sky",
        "--parents",
        "pet: dog, cat",
    )
    task, model = loaded(demo, *words, "--confidence-threshold", "0.3", *cache)
    assert task == "detection" and model.class_names == ("red car", "pet")
    assert model.model.roi_heads.num_classes == 6
    assert model.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.3 and model.cfg.MODEL.ROI_HEADS.ONE_CLASS_PER_PROPOSAL
    own = model.model.roi_heads.box_predictor[0].cls_score.zs_weight

    _, model = loaded(demo, "--custom-vocabulary", "dog", "--prompt", "a {}", "my {}", "--pred_all_class", *cache)
    assert model.class_names == ("dog",) and not model.cfg.MODEL.ROI_HEADS.ONE_CLASS_PER_PROPOSAL
    assert not torch.equal(model.model.roi_heads.box_predictor[0].cls_score.zs_weight[:, 0], own[:, 1])

    embeddings = ClassEmbeddings(torch.eye(64)[:2], ("one", "two"))
    embeddings.save(tmp_path / "e.safetensors")
    _, model = loaded(demo, "--class-embeddings", str(tmp_path / "e.safetensors"))
    assert model.class_names == ("one", "two")
    with pytest.raises(InputError, match="this model does not know its classes; give --vocabulary"):
        loaded(demo)


def test_words_come_from_the_command_line_or_a_file(demo: types.ModuleType, tmp_path: Path):
    models = importlib.import_module("demo_parts.models")
    file = tmp_path / "words.txt"
    file.write_text("red car\ndog|hound\n")

    def chosen(words: str) -> tuple[str, ...]:
        options = {"vocabulary": None, "synonyms": False, "background": None, "parents": None}
        return models.choose_classes(argparse.Namespace(custom_vocabulary=words, **options)).class_names

    assert chosen(str(file)) == ("red car", "dog")
    assert chosen("dog") == ("dog",) and chosen("car/truck") == ("car/truck",)
    with pytest.raises(InputError, match="no vocabulary file none.txt"):
        chosen("none.txt")


def test_published_embeddings_are_taken_where_they_are(demo: types.ModuleType, tmp_path: Path):
    rows = np.random.default_rng(0).normal(size=(80, 64)).astype(np.float16)
    np.save(tmp_path / "coco_clip_a+cname.npy", rows)
    trained_with = str(tmp_path / "lvis_v1_clip_a+cname.npy")
    pairs = ("MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH", trained_with, "MODEL.CLASS_EMBEDDINGS.PROMPT", "")
    _, model = loaded(demo, "--vocabulary", "coco", "--opts", *pairs)
    assert model.class_names[:2] == ("person", "bicycle")
    columns = model.model.roi_heads.box_predictor[0].cls_score.zs_weight[:, :-1]
    expected = torch.nn.functional.normalize(torch.from_numpy(rows).float(), dim=1).t()
    torch.testing.assert_close(columns, expected)


def test_a_segmenter_is_recognised_by_its_config(demo: types.ModuleType, tmp_path: Path, pictures: Path):
    config = write_config(tmp_path)
    sets = ["--opts", "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]
    words = ["--custom-vocabulary", "red star|ruby star,sand", "--background", "sky"]
    command = ["--config-file", str(config), "--weights", "", "--cpu", "--input", str(pictures), *words]
    assert run_command(demo.main, [*command, "--output", str(tmp_path / "out"), *sets]) == 0
    labels = np.asarray(Image.open(tmp_path / "out" / "labels" / "a.png"))
    assert labels.shape == (40, 60) and labels.max() <= 2
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [entry["name"] for entry in content["categories"]] == ["red star", "sand", "background"]
