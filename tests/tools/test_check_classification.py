"""The data-set checker on classification sets."""

import importlib
import json
from pathlib import Path

import pytest

from prompt_pretrain.command_line import run_command
from tests.classification_recipes import write_aircraft, write_domain_set, write_imagenet_v2, write_split_set

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def check(monkeypatch, tmp_path):
    """``check(name)`` gives the exit code and the report."""
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tool = importlib.import_module("check_dataset")

    def run(name, *more):
        file = tmp_path / "report.json"
        code = run_command(tool.main, [name, "--data-root", str(tmp_path), "--json", str(file), *more])
        return code, json.loads(file.read_text())

    return run


def kinds(report):
    return {finding["kind"]: (finding["severity"], finding["count"]) for finding in report["findings"]}


@pytest.mark.parametrize("name", ["OxfordPets", "FGVCAircraft", "ImageNetV2", "ImageNetR", "dtd"])
def test_sets_of_few_classes_are_only_warned_about(name, check, tmp_path):
    write_split_set(tmp_path, "OxfordPets")
    write_split_set(tmp_path, "DescribableTextures")
    write_aircraft(tmp_path)
    write_imagenet_v2(tmp_path)
    write_domain_set(tmp_path, "ImageNetR")
    code, report = check(name)
    assert code == 0
    expected = "classes without images" if name == "ImageNetV2" else "classes differ from the published ones"
    assert kinds(report) == {expected: ("warning", 1)}
    assert report["facts"]["test images"] == {"ImageNetV2": 4, "ImageNetR": 6}.get(name, 5)


def test_everything_wrong_with_a_split_is_told_at_once(check, tmp_path):
    file = write_split_set(tmp_path, "OxfordPets")
    content = json.loads(file.read_text())
    content["test"].append(content["train"][0])
    content["train"].append(content["train"][1])
    content["val"].append(content["train"][2])
    content["val"].append(["a.jpg", "x", "dog"])
    content["val"].append("a.jpg")
    content["test"][4][2] = "dog"
    content["train"].append(["gone.jpg", 3, "cat"])
    file.write_text(json.dumps(content))
    (file.parent / "images" / content["train"][5][0]).write_bytes(b"no image")
    code, report = check("OxfordPets")
    assert code == 2
    assert kinds(report) == {
        "entry": ("error", 2),
        "class names differ": ("error", 1),
        "class without images": ("error", 1),
        "classes differ from the published ones": ("warning", 1),
        "image listed twice": ("warning", 1),
        "image in two splits": ("warning", 2),
        "missing image": ("error", 1),
        "corrupt image": ("error", 1),
    }
    assert "corrupt image" not in kinds(check("OxfordPets", "--no-files")[1])


def test_what_cannot_be_read_is_one_finding(check, tmp_path):
    file = write_split_set(tmp_path, "SUN397")
    file.write_text("[]")
    for name in ("SUN397", "EuroSAT"):
        code, report = check(name)
        assert (code, kinds(report)) == (2, {"split file": ("error", 1)})
    code, report = check("ImageNetA")
    assert (code, kinds(report)) == (2, {"loading": ("error", 1)})


def test_unknown_names_list_classification_sets_too(check, capsys):
    with pytest.raises(FileNotFoundError):
        check("OxfordPet")
    assert "and for classification ImageNet21K, " in capsys.readouterr().err
