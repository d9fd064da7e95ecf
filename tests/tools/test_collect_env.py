"""The doctor: what it finds in made-up environments."""

import json
import os
import subprocess
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
    assert report["detectron2"]["source"] in ("bundled", "installed")
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


FOLDER = str(third_party.__path__[0])


def doctor(**variables):
    """``detectron2`` in the report of a new process."""
    environment = {key: value for key, value in os.environ.items() if key not in ("POMP_DETECTRON2", "PYTHONPATH")}
    command = [sys.executable, collect_env.__file__, "--json"]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_detectron2_source(tmp_path):
    assert doctor(POMP_DETECTRON2="bundled")["detectron2"] == {"source": "bundled", "version": "0.6+bundled"}
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text('__version__ = "0.6"\n')
    assert doctor(PYTHONPATH=str(tmp_path))["detectron2"]["source"] == "installed"


def test_a_bad_choice_of_detectron2_is_a_problem():
    report = doctor(POMP_DETECTRON2="best")
    assert report["detectron2"]["source"] == "unusable"
    assert any("POMP_DETECTRON2 is 'best', expected one of" in problem for problem in report["problems"])


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
