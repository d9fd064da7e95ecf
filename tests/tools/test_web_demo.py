"""``tools/web_demo.py``: questions and answers, and the page where gradio is installed."""

import argparse
import importlib
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import detection
from detection.api import Detector
from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError

TOOLS = Path(__file__).parents[2] / "tools"
FEW = ("MODEL.CENTERNET.POST_NMS_TOPK_TEST", 8, "TEST.DETECTIONS_PER_IMAGE", 5)
WORDS = "red star, blue ring"


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    torch.manual_seed(0)
    cache = str(tmp_path_factory.mktemp("cache"))
    found = detection.load("shapeworld_boxsup", "", "cpu", overrides=[*FEW, "MODEL.CLASS_EMBEDDINGS.CACHE_DIR", cache])
    return found.set_classes(["green heart"])


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("demo_parts.session")


@pytest.fixture
def session(parts: types.ModuleType, detector: Detector, monkeypatch: pytest.MonkeyPatch) -> Any:
    detector.set_classes(["green heart"])
    monkeypatch.setattr(parts, "load_model", lambda options: ("detection", detector))
    return parts.DemoSession({"detection": argparse.Namespace()}, prompts=("my {}",))


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_words_are_encoded_once_for_any_number_of_pictures(
    session: Any, detector: Detector, monkeypatch: pytest.MonkeyPatch
):
    calls = []
    plain = detector.set_classes

    def counted(classes: Any, **options: Any) -> Detector:
        calls.append(classes)
        return plain(classes, **options)

    monkeypatch.setattr(detector, "set_classes", counted)
    for seed in range(3):
        answer = session.look(picture(seed), WORDS, task="detection", threshold=0.0)
    assert len(calls) == 1 and detector.class_names == ("red star", "blue ring")
    assert answer.picture.shape == (320, 480, 3) and answer.picture.dtype == np.uint8
    assert {row[0] for row in answer.rows} <= {"red star", "blue ring"} and 0 < len(answer.rows) <= 5
    assert "found among 2 classes" in answer.note
    session.look(picture(), "red star|crimson star\nblue ring", task="detection", background="sand")
    assert len(calls) == 2 and detector.class_names == ("red star", "blue ring")
    session.look(picture(), "", task="detection")
    assert len(calls) == 3 and detector.class_names == ("green heart",)  # those it had at first
    assert session.look(picture(), WORDS, task="detection", threshold=1.0).rows == []


def test_prompts_change_the_scores(session: Any):
    own, other, typed = (
        [row[1] for row in session.look(picture(), WORDS, task="detection", threshold=0.0, prompt=prompt).rows]
        for prompt in ("the model's own", "my {}", "some {} here")
    )
    assert len({tuple(scores) for scores in (own, other, typed)}) > 1


def test_strangers_read_no_files(session: Any, tmp_path: Path, detector: Detector):
    (tmp_path / "secret.txt").write_text("one\ntwo\n")
    session.look(picture(), str(tmp_path / "secret.txt"), task="detection")
    assert detector.class_names == (str(tmp_path / "secret.txt"),)  # a word like any other
    with pytest.raises(InputError, match="unknown prompt"):
        session.look(picture(), WORDS, task="detection", prompt=str(tmp_path / "secret.txt"))


def test_what_cannot_be_answered(session: Any):
    with pytest.raises(InputError, match="no picture yet; upload one"):
        session.look(None, WORDS, task="detection")
    with pytest.raises(InputError, match="'red star|' has an empty name"):
        session.look(picture(), "red star|, b", task="detection")
    with pytest.raises(InputError, match="too elongated"):
        session.look(np.zeros((1, 2000, 3), np.uint8), WORDS, task="detection")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "no model; give --detector CONFIG WEIGHTS or --segmenter CONFIG WEIGHTS"),
        ("--detector c w --port 0", "--port 0: it must lie between 1 and 65535"),
        ("--detector c w --confidence-threshold 2", "--confidence-threshold 2.0: it must lie between 0 and 1"),
        ("--detector c w --examples nix", "no image, folder or video nix"),
        ("--detector nix w", "no config 'nix' below"),
    ],
)
def test_bad_options(
    parts: types.ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
):
    tool = importlib.import_module("web_demo")
    monkeypatch.setattr(tool, "import_gradio", lambda: None)
    assert run_command(tool.main, arguments.split()) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_without_gradio_the_command_says_what_to_install(parts: types.ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(importlib.import_module("sys").modules, "gradio", None)
    with pytest.raises(InputError, match=r"pip install -c constraints.txt -e .\[demo\]"):
        importlib.import_module("web_demo").import_gradio()


@pytest.mark.slow
def test_the_page_answers(session: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    gradio = pytest.importorskip("gradio", reason="the extra 'demo' is not installed")
    client = pytest.importorskip("gradio_client")
    from PIL import Image

    Image.fromarray(picture()).save(tmp_path / "a.png")
    page = importlib.import_module("web_demo").build_page(
        gradio, session, words=WORDS, examples=[str(tmp_path / "a.png")], least_score=0.05
    )
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, allowed_paths=[str(tmp_path)])
    try:
        ask = client.Client(address, verbose=False)
        image = client.handle_file(str(tmp_path / "a.png"))
        overlay, table, note = ask.predict(image, WORDS, "boxes", "the model's own", 0.05, None, api_name="/look_1")
        assert Image.open(overlay).size == (480, 320) and "found among 2 classes" in note
        assert table["headers"] == ["class", "score", "box"]
        with pytest.raises(client.exceptions.AppError, match="unknown prompt"):
            ask.predict(image, WORDS, "boxes", "/etc/passwd", 0.05, None, api_name="/look_1")
    finally:
        page.close()
