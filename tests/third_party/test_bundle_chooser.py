"""Which detectron2 is used: made-up installations, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import third_party

ROOT = Path(third_party.__file__).parents[1]
SHOW = "import third_party, detectron2; print(third_party.detectron2_source(), detectron2.__version__)"


@pytest.fixture
def run(tmp_path):
    """Runs Python code with a choice; with or without a detectron2 installed in ``site``."""

    def run(code, choice=None, path=()):
        environment = {name: text for name, text in os.environ.items() if name != "POMP_DETECTRON2"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *map(str, path)])
        if choice is not None:
            environment["POMP_DETECTRON2"] = choice
        # -S leaves out what is really installed here.
        command = [sys.executable, "-S", "-c", code]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        last = (result.stdout if result.returncode == 0 else result.stderr).strip().splitlines()
        return last[-1] if last else ""

    return run


@pytest.fixture
def site(tmp_path):
    return make_detectron2(tmp_path / "site", '__version__ = "0.6+real"\n')


def make_detectron2(folder, text):
    (folder / "detectron2").mkdir(parents=True)
    (folder / "detectron2" / "__init__.py").write_text(text)
    return folder


def test_an_installed_one_wins_unless_told_otherwise(run, site):
    assert run(SHOW) == "bundled 0.6+bundled"
    assert run(SHOW, path=[site]) == "installed 0.6+real"
    assert run(SHOW, "", [site]) == run(SHOW, "auto", [site]) == run(SHOW, "installed", [site]) == "installed 0.6+real"
    assert run(SHOW, "bundled", [site]) == "bundled 0.6+bundled"


def test_source_is_known_before_the_import(run, site):
    code = (
        "import third_party, sys; assert 'detectron2.config' not in sys.modules; print(third_party.detectron2_source())"
    )
    assert run(code) == "bundled"
    assert run(code, "bundled", [site]) == "bundled"
    assert run(code, path=[site]) == "installed"


def test_the_folder_is_last_on_the_path_or_first_if_chosen(run):
    code = "import third_party, sys; i = [p.endswith('third_party') for p in sys.path]; print({}, sum(i))"
    assert run(code.format("i[-1]")) == "True 1"
    assert run(code.format("i[0]"), "bundled") == "True 1"


def test_a_folder_of_that_name_is_no_installation(run, tmp_path):
    (tmp_path / "clone" / "detectron2" / "detectron2").mkdir(parents=True)
    assert run(SHOW, path=[tmp_path / "clone"]) == "bundled 0.6+bundled"


def test_editable_installations_are_found_and_stay_first_for_child_processes(run, site):
    code = f"""
import importlib.util, sys
class Editable:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "detectron2":
            return importlib.util.spec_from_file_location(name, {str(site / "detectron2" / "__init__.py")!r},
                submodule_search_locations=[{str(site / "detectron2")!r}])
sys.meta_path.append(Editable)
{SHOW}
sys.meta_path.remove(Editable); del sys.modules["detectron2"]
import detectron2; print(detectron2.__version__)
"""
    assert run(code) == "0.6+real"


def test_installed_without_one_is_an_error(run):
    error = run(SHOW, "installed")
    assert error.startswith("ImportError: POMP_DETECTRON2 is 'installed', but there is no detectron2")
    assert "POMP_DETECTRON2=bundled" in error


def test_an_installation_that_cannot_be_imported_is_an_error(run, tmp_path):
    broken = make_detectron2(tmp_path / "broken", "raise OSError('undefined symbol: _ZN3c10')")
    for choice in (None, "installed"):
        error = run(SHOW, choice, [broken])
        assert error.startswith(f"ImportError: the detectron2 installed at {broken}/detectron2/__init__.py cannot be")
        assert "(OSError: undefined symbol: _ZN3c10)" in error
        assert "POMP_DETECTRON2=bundled" in error
    assert run(SHOW, "bundled", [broken]) == "bundled 0.6+bundled"


def test_a_broken_extension_is_an_error(run, site, tmp_path):
    (site / "detectron2" / "_C.py").write_text("raise ImportError('built for another torch')")
    (site / "torch.py").write_text("")
    assert "(ImportError: built for another torch)" in run(SHOW, path=[site])


def test_a_choice_that_comes_too_late_is_an_error(run, site):
    late = "import sys; sys.path.insert(0, {!r}); import detectron2; import third_party"
    error = run(late.format(str(site)), "bundled")
    assert error.startswith("ImportError: POMP_DETECTRON2 is 'bundled', but the installed detectron2 has already been")
    error = run(late.format(str(ROOT / "third_party")), "installed")
    assert error.startswith("ImportError: POMP_DETECTRON2 is 'installed', but the bundled detectron2 has already been")
    changed = f"{SHOW}; import os; os.environ['POMP_DETECTRON2'] = 'installed'; third_party.detectron2_source()"
    assert "but the bundled detectron2 has already been imported" in run(changed)


def test_an_unknown_choice_is_an_error(run):
    assert run(SHOW, "builtin") == "ValueError: POMP_DETECTRON2 is 'builtin', expected one of auto, installed, bundled"
