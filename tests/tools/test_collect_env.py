"""The doctor: what it finds in made-up environments."""

import json
import sys

import pytest

import third_party
from tools import collect_env


def test_json_holds_versions_devices_data_and_folders(tmp_path, monkeypatch, capsys):
    (tmp_path / "data" / "sun397" / "SUN397").mkdir(parents=True)
    (tmp_path / "scenes" / "cityscapes" / "gtFine").mkdir(parents=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "scenes"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert collect_env.main(["--json", "--data-root", str(tmp_path / "data"), "--output", str(tmp_path / "out")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["packages"]["torch"].startswith("2.")
    assert report["detectron2"]["source"] in ("bundled", "installed", "missing")
    assert report["cpu"]["torch_threads"] >= 1
    classification, scenes = report["data"]["classification"], report["data"]["detection and segmentation"]
    assert classification["found"] == ["SUN397"]
    assert "EuroSAT" in classification["missing"]
    assert scenes["missing"]["cityscapes"] == ["cityscapes/leftImg8bit"]
    places = {folder["path"]: folder for folder in report["folders"]}
    assert places[str(tmp_path / "cache" / "prompt_pretrain")]["writable"]
    assert not places[str(tmp_path / "out")]["exists"]


def test_text_names_what_is_missing(tmp_path, capsys):
    assert collect_env.main(["--data-root", str(tmp_path / "absent")]) == 0
    text = capsys.readouterr().out
    assert f"classification data in {tmp_path / 'absent'} (no such folder)" in text
    assert "missing  EuroSAT                eurosat/2750" in text


def test_missing_package_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr(collect_env, "REQUIRED", ("torch", "no-such-package"))
    problems = collect_env.collect(tmp_path, tmp_path)["problems"]
    assert problems == ["no-such-package is not installed; run: make test"]


@pytest.fixture
def no_detectron2(monkeypatch):
    """Forget an imported or installed detectron2 for one test."""
    for name in [name for name in sys.modules if name.split(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-packages" not in path and path != FOLDER])
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if isinstance(finder, type)])


FOLDER = str(third_party.__path__[0])


def make_detectron2(folder):
    (folder / "detectron2").mkdir(parents=True)
    (folder / "detectron2" / "__init__.py").write_text('__version__ = "0.6"\n')


def test_detectron2_source(no_detectron2, tmp_path, monkeypatch):
    assert collect_env.detectron2_in_use() == {"source": "missing", "version": None}
    make_detectron2(tmp_path / "third_party")
    monkeypatch.setattr(third_party, "__file__", str(tmp_path / "third_party" / "__init__.py"))
    sys.path.append(str(tmp_path / "third_party"))
    assert collect_env.detectron2_in_use() == {"source": "bundled", "version": "0.6"}
    make_detectron2(tmp_path / "site")
    sys.path.insert(0, str(tmp_path / "site"))
    assert collect_env.detectron2_in_use()["source"] == "installed"


def test_stand_ins_come_last_on_the_search_path():
    assert sys.path.count(FOLDER) == 1
    assert sys.path.index(FOLDER) > max(i for i, path in enumerate(sys.path) if path.endswith("site-packages"))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("", None),
        (
            "ImportError: libGL.so.1: cannot open shared object file: No such file or directory",
            "apt-get install libgl1",
        ),
        ("ImportError: libgthread-2.0.so.0: cannot open shared object file", "apt-get install libglib2.0-0"),
        ("ModuleNotFoundError: No module named 'cv2'", "No module named 'cv2'"),
    ],
)
def test_opencv_errors_name_the_package(error, expected):
    explained = collect_env.explain_opencv(error)
    assert (explained is None) if expected is None else expected in explained


def test_read_only_folder_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(collect_env.os, "access", lambda path, mode: False)
    folder = collect_env.describe_folder("results", tmp_path / "deep" / "out")
    assert folder["writable"] is False
    assert folder["free_gb"] > 0
