"""The golden machinery: one test per file found, in every folder, and a failure where the bundled file is missing."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pytest_golden_dir import join_option
from tests.golden.fill import value
from tests.golden_files import GOLDEN_FOLDER, KINDS, Golden, find_goldens, kind_of

TEST = """
import pytest

@pytest.mark.golden("pomp_loss")
def test_sum(golden):
    assert golden.arrays["x"].sum() == golden.meta["sum"]
"""


def write_golden(path: Path, numbers: list[float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path.with_name(path.name + ".npz"), x=np.array(numbers))
    path.with_name(path.name + ".json").write_text(f'{{"sum": {sum(numbers)}}}')


@pytest.fixture
def project(tmp_path):
    """A project that holds only our golden machinery, one golden and one test that uses it."""
    root = tmp_path / "project"
    source = Path(__file__).parent
    (root / "tests").mkdir(parents=True)
    for name in ("__init__.py", "conftest.py", "golden_files.py"):
        shutil.copy(source / name, root / "tests")
    shutil.copy(source.parent / "pyproject.toml", root)
    (root / "tests" / "test_sum.py").write_text(TEST)
    write_golden(root / "tests" / "golden" / "pomp_loss", [1.0, 2.0])
    return root


def run_pytest(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)


def test_runs_once_per_file_of_the_kind_in_every_folder(project):
    write_golden(project / "tests" / "golden" / "pomp_loss_2", [3.0])
    write_golden(project / "more" / "deep" / "pomp_loss", [4.0])
    write_golden(project / "more" / "pomp_loss.v2", [5.0])
    write_golden(project / "more" / "pomp_misc", [6.0])
    write_golden(project / "more" / "unrelated", [7.0])
    result = run_pytest(project, "--golden-dir", "more", "-n", "1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("PASSED") == 4
    for name in ("tests/golden/pomp_loss", "tests/golden/pomp_loss_2", "more/deep/pomp_loss", "more/pomp_loss.v2"):
        assert f"test_sum[{name}]" in result.stdout


def test_a_wrong_number_in_an_extra_folder_fails(project, tmp_path):
    write_golden(tmp_path / "extra" / "pomp_loss", [1.0])
    (tmp_path / "extra" / "pomp_loss.json").write_text('{"sum": 9}')
    result = run_pytest(project, "--golden-dir", str(tmp_path / "extra"))
    assert result.returncode == 1
    assert "1 failed, 1 passed" in result.stdout
    assert f"test_sum[{tmp_path}/extra/pomp_loss]" in result.stdout


def test_an_array_that_nothing_was_compared_with_fails_or_warns(project):
    unread = {"x": np.ones(1), "forgotten": np.ones(2)}
    for folder in (project / "tests" / "golden", project / "more"):
        write_golden(folder / "pomp_loss_2", [1.0])
        np.savez(folder / "pomp_loss_2.npz", **unread)
    result = run_pytest(project, "--golden-dir", "more")
    assert "1 failed, 2 passed" in result.stdout  # of another recording it may be there to inform
    assert result.stdout.count("pomp_loss_2.npz: nothing was compared with forgotten") >= 2


def test_the_option_is_joined_with_its_folder():
    assert join_option(["-v", "--golden-dir", "a", "b", "--golden-dir"]) == [
        "-v",
        "--golden-dir=a",
        "b",
        "--golden-dir",
    ]


def test_missing_bundled_golden_fails(project):
    for file in (project / "tests" / "golden").iterdir():
        file.unlink()
    result = run_pytest(project)
    assert result.returncode == 1
    assert "1 failed" in result.stdout
    assert "missing golden never skips" in result.stdout


def test_unusable_golden_folder_is_a_usage_error(project):
    result = run_pytest(project, "--golden-dir", "nowhere")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "nowhere is not a folder" in result.stderr
    (project / "empty").mkdir()
    result = run_pytest(project, "--golden-dir", "empty")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "empty holds no golden file" in result.stderr


def test_unknown_kind_is_an_error(project):
    (project / "tests" / "test_sum.py").write_text(TEST.replace("pomp_loss", "pomp_lots"))
    result = run_pytest(project)
    assert result.returncode != 0
    assert "KIND one of pomp_loss" in result.stdout + result.stderr


def test_kind_is_the_longest_that_fits(monkeypatch):
    monkeypatch.setattr("tests.golden_files.KINDS", ("head", "head_small"))
    names = ["head", "head-b", "head.v2", "head_small", "head_small_2", "header", "other"]
    assert [kind_of(name) for name in names] == ["head", "head", "head", "head_small", "head_small", None, None]


def test_golden_reads_its_files_siblings_and_references(tmp_path):
    write_golden(tmp_path / "pomp_loss.v2", [1.0])
    write_golden(tmp_path / "pomp_misc.v2", [2.0])
    golden = Golden(tmp_path / "pomp_misc.v2", "pomp_misc")
    assert golden.name == "pomp_misc.v2"
    assert golden.meta == {"sum": 2.0}
    assert golden.sibling("pomp_loss").arrays["x"].tolist() == [1.0]
    assert Golden(tmp_path / "pomp_misc", "pomp_misc").sibling("pomp_loss").path == GOLDEN_FOLDER / "pomp_loss"
    params = golden.reference("elsewhere/reference/pomp_tiny_clip_params.json")
    assert params == GOLDEN_FOLDER / "reference" / "pomp_tiny_clip_params.json"
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / params.name).write_text("[]")
    assert golden.reference(params.name) == tmp_path / "reference" / params.name
    with pytest.raises(FileNotFoundError, match=r"refers to absent\.json"):
        golden.reference("absent.json")


def test_pickles_in_a_golden_are_refused(tmp_path):
    np.savez(tmp_path / "pomp_loss.npz", x=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="pickle"):
        _ = Golden(tmp_path / "pomp_loss", "pomp_loss").arrays


def test_every_bundled_file_has_a_documented_kind():
    readme = (GOLDEN_FOLDER / "README.md").read_text(encoding="utf-8")
    assert [kind for kind in KINDS if f"`{kind}`" not in readme] == []
    bundled = Counter(golden.kind for golden in find_goldens(GOLDEN_FOLDER))
    assert set(bundled) == set(KINDS)
    stems = {file.stem for file in GOLDEN_FOLDER.iterdir() if file.suffix in (".json", ".npz")}
    assert {name for name in stems if kind_of(name) is None} == set()


def test_fill_values_never_drift():
    # Recorded once; the golden files depend on exactly these numbers.
    assert value("w.weight", (2, 3)).flatten().tolist() == pytest.approx(FILLED, abs=1e-7)
    assert value("bn.running_var", (4,)).min() >= 0.5
    assert value("logit_scale", ()).shape == ()


FILLED = [0.4075982, 0.98082292, -0.3873556, 0.98315769, 0.87173939, 0.53140461]
