"""Documents and packaging against the code: links, settings and commands that they name exist; pins are complete."""

import argparse
import fnmatch
import functools
import importlib.metadata
import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from detection.task import add_config  # makes detectron2 importable
from detectron2.config import get_cfg as get_detectron2_cfg
from prompt_pretrain.config import flatten, get_cfg
from segmentation.task import add_config as add_segmentation_config

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "docs").glob("*.ipynb"))
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "datasets/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
by_name = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
# A command up to the first sign that ends it; in text it stands between backquotes.
_INLINE = re.compile(r"`((?:[A-Z_0-9]+=\S+ )*(?:python|torchrun|make) [^`]+)`")
_SCRIPT = re.compile(r"(?:tools|datasets)/[\w/]+\.py")
_PLACEHOLDER = re.compile(r"…|\.\.\.|^[A-Z_]+$|^<")


@by_name
def test_links_lead_somewhere(document):
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    assert [target for target in targets if not (document.parent / target).exists()] == []


@by_name
def test_named_files_exist(document):
    named = set(
        re.findall(
            r"\b(?:tools|configs|prompt_pretrain|detection|segmentation|datasets)/[\w./+-]+\.(?:py|yaml)\b",
            document.read_text(encoding="utf-8"),
        )
    )
    named = {name for name in named if not _PLACEHOLDER.search(Path(name).stem)}
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


@by_name
def test_named_settings_exist(document):
    settings = set().union(*settings_of_tasks().values())
    settings |= {name[: match.end()] for name in settings for match in re.finditer(r"\w+(?=\.)", name)}  # nodes
    groups = "|".join({name.partition(".")[0] for name in settings if "." in name})
    named = set(re.findall(rf"`((?:{groups})\.[A-Z0-9_.]+)", document.read_text(encoding="utf-8")))
    assert sorted({name.rstrip(".") for name in named} - settings) == []


@by_name
def test_commands_would_be_understood(document, monkeypatch, capsys):
    commands = list(commands_of(document.read_text(encoding="utf-8")))
    assert [fault for command in commands for fault in faults_of(command, monkeypatch, capsys)] == []


@pytest.mark.parametrize("task", ["prompt_pretrain", "detection", "segmentation"])
def test_every_experiment_is_described(task):
    folder = ROOT / "configs" / task
    names = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")}
    bases = {name for name in names if re.search(r"(^|/)([Bb]ase|parts/|shapeworld)", name)}
    text = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("RUN.md", "MODELS.md"))
    words = {re.sub(rf"^configs/{task}/|\.(yaml|pth)$", "", word) for word in re.findall(r"[\w./*+-]*[\w*]", text)}
    patterns = [word for word in words if re.search(r"\w{3}", word)]
    left = {
        name
        for name in names - bases
        if name.rpartition("/")[2] not in words and not any(fnmatch.fnmatchcase(name, each) for each in patterns)
    }
    assert sorted(left) == []


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_cells_of_notebooks_compile(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code
    for number, source in enumerate(code):
        compile(source, f"{notebook.name}, cell {number}", "exec")


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_run(notebook, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), notebook.name, "exec"), names)


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("python tools/no_such.py", "no file"),
        ("python tools/train_net.py --no-such-flag 3", "not understood"),
        ("python tools/train_net.py --config-file configs/detection/no_such.yaml", "no config"),
        ("python tools/pretrain_prompt.py OPTIM.NO_SUCH 3", "no setting"),
        ("make no-such-target", "no target"),
    ],
)
def test_wrong_commands_are_noticed(command, fault, monkeypatch, capsys):
    assert any(fault in found for found in faults_of(command, monkeypatch, capsys))


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


@functools.cache
def settings_of_tasks() -> dict[str, set[str]]:
    """All config keys, by the folder of configs that they belong to."""
    detection, segmentation = get_detectron2_cfg(), get_detectron2_cfg()
    add_config(detection)
    add_segmentation_config(segmentation)
    configs = {"prompt_pretrain": get_cfg(), "detection": detection, "segmentation": segmentation}
    return {task: set(flatten(cfg)) for task, cfg in configs.items()}


def commands_of(text: str) -> Iterator[str]:
    """The commands of a document that belong to this project: lines of code blocks, and code within sentences."""
    blocks = re.findall(r"^```(?:bash|sh|)\n(.*?)^```", text, flags=re.M | re.S)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    lines = re.sub(r"\\\n\s*", " ", "\n".join(blocks)).splitlines()
    for line in [*lines, *_INLINE.findall(prose)]:
        if _SCRIPT.search(line) or line.startswith("make "):
            yield line.strip()


class _Understood(Exception):  # noqa: N818 (no error)
    """A command line that its parser took; the command must not go on."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options


def faults_of(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> list[str]:
    """What is wrong with a command, without running it: its script's own parser reads it."""
    words = [word for word in shlex.split(command, comments=True) if word not in ("[KEY", "VALUE]")]
    while re.fullmatch(r"[A-Z_0-9]+=.*", words[0]):
        words.pop(0)
    if words[0] == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
        unknown = [word for word in words[1:] if "=" not in word and word not in targets]
        return [f"{command}: no target {word}" for word in unknown]
    place = next(index for index, word in enumerate(words) if _SCRIPT.fullmatch(word))
    script, arguments = ROOT / words[place], words[place + 1 :]
    if not script.is_file():
        return [f"{command}: no file {words[place]}"]
    if not arguments:  # a mention of the script
        return []
    options = understood_options(script, arguments, monkeypatch)
    if options is None:
        return [f"{command}: not understood: {capsys.readouterr().err.strip().splitlines()[-1]}"]
    faults = []
    for word in arguments:
        if "configs/" in word and not _PLACEHOLDER.search(word) and not (ROOT / word).is_file():
            faults.append(f"{command}: no config {word}")
    faults += [f"{command}: no setting {key}" for key in unknown_settings(words[place], arguments, options)]
    return faults


def understood_options(
    script: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> argparse.Namespace | None:
    """What the script's own parser makes of the arguments; None where it refuses them."""

    def stopping(parse: Callable[..., argparse.Namespace]) -> Callable[..., None]:
        def stop(parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
            raise _Understood(parse(parser, *args, **kwargs))

        return stop

    with monkeypatch.context() as patch:
        for name in ("parse_args", "parse_intermixed_args"):  # neither calls the other
            patch.setattr(argparse.ArgumentParser, name, stopping(getattr(argparse.ArgumentParser, name)))
        patch.setattr(sys, "argv", [str(script), *arguments])
        patch.syspath_prepend(str(script.parent))
        try:
            module = script_module(script)
            module.main(arguments) if "argv" in module.main.__code__.co_varnames else module.main()
        except _Understood as understood:
            return understood.options
        except SystemExit as left:
            if "--help" in arguments and left.code == 0:
                return argparse.Namespace()
            assert left.code == 2, f"{script.name} ended with {left.code} instead of reading its options"
    return None


def script_module(script: Path) -> ModuleType:
    name = f"documented_{script.parent.name}_{script.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, script)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def unknown_settings(script: str, arguments: list[str], options: argparse.Namespace) -> list[str]:
    """The keys among KEY VALUE pairs that the command's task does not have."""
    pairs = getattr(options, "opts", None) or getattr(options, "overrides", None) or []
    by_task = settings_of_tasks()
    task = next((task for task in by_task if any(f"configs/{task}/" in word for word in arguments)), None)
    if "pretrain_prompt" in script or "shapeworld_results" in script:
        task = "prompt_pretrain"
    known = by_task[task] if task else by_task["detection"] | by_task["segmentation"]
    return [str(key) for key in pairs[::2] if not _PLACEHOLDER.search(str(key)) and key not in known]
