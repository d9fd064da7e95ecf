"""Documents and packaging against the code: links, settings and commands that they name exist; pins are complete."""

import importlib.metadata
import re
from pathlib import Path

import pytest

from detection.task import add_config  # makes detectron2 importable
from detectron2.config import get_cfg as get_detectron2_cfg
from prompt_pretrain.config import flatten, get_cfg

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
by_name = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


@by_name
def test_links_lead_somewhere(document):
    targets = re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8"))
    assert [target for target in targets if not (document.parent / target).exists()] == []


@by_name
def test_named_files_exist(document):
    named = set(
        re.findall(r"\b(?:tools|configs|prompt_pretrain)/[\w/]+\.(?:py|yaml)", document.read_text(encoding="utf-8"))
    )
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


@by_name
def test_named_settings_exist(document):
    detection = get_detectron2_cfg()
    add_config(detection)
    settings = {*flatten(get_cfg()), *flatten(detection)}
    settings |= {name[: match.end()] for name in settings for match in re.finditer(r"\w+(?=\.)", name)}  # nodes
    groups = "|".join({name.partition(".")[0] for name in settings if "." in name})
    named = set(re.findall(rf"`((?:{groups})\.[A-Z0-9_.]+)", document.read_text(encoding="utf-8")))
    assert sorted({name.rstrip(".") for name in named} - settings) == []


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200


def test_every_requirement_is_pinned():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r'[\w.-]+==[\w.]+(; python_version (<|>=) "3\.\d+")?', pin)] == []
    pinned = {normalised(pin.split("==")[0]) for pin in pins}
    requirements = importlib.metadata.requires("openvocab-prompt") or []
    wanted = [
        re.match(r"[\w.-]+", text)[0] for text in requirements if not re.search(r"extra == .(demo|loggers)", text)
    ]
    assert {normalised(name) for name in wanted} - pinned - {"openvocab-prompt"} == set()
    assert "detectron2" not in {normalised(name) for name in wanted}  # no package index has it


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
