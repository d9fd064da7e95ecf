"""The installer's decisions and messages; nothing is installed here."""

import os
import subprocess
import sys
from collections import namedtuple

import pytest

from tools import bootstrap

Usage = namedtuple("Usage", "total used free")


def test_old_python_is_refused_with_the_cure():
    with pytest.raises(bootstrap.SetupError, match=r"Python 3\.10 or newer is needed, found 3\.8 at .*PYTHON="):
        bootstrap.check_python((3, 8, 18))
    bootstrap.check_python(sys.version_info)


def test_missing_venv_module_names_the_debian_package(monkeypatch):
    monkeypatch.setattr(bootstrap.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else object())
    with pytest.raises(bootstrap.SetupError, match=r"lacks the module ensurepip; .* apt-get install python3\.12-venv"):
        bootstrap.check_python((3, 12, 1))


def test_full_disk_is_found_before_anything_is_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda path: Usage(0, 0, 3 * 10**9))
    with pytest.raises(bootstrap.SetupError, match=rf"{tmp_path} has 3\.0 GB free, the environment needs 8\.0 GB"):
        bootstrap.check_disk(str(tmp_path / "venv"))
    (tmp_path / "venv").mkdir()
    with open(tmp_path / "venv" / "torch.so", "wb") as file:
        file.truncate(6 * 10**9)  # most is there already: 2 GB are enough for the rest
    bootstrap.check_disk(str(tmp_path / "venv"))


@pytest.mark.parametrize(
    ("complaint", "expected"),
    [
        ("ERROR: [Errno 28] No space left on device", "the disk is full; free about 8.0 GB"),
        (
            "WARNING: Retrying after NewConnectionError('Failed to establish a new connection')\n"
            "ERROR: No matching distribution found for torch",
            "the package index https://mirror.example:8080 cannot be reached",
        ),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]", "certificate that is not trusted"),
        ("ERROR: No matching distribution found for torch==2.11.0", "lacks a pinned package for this Python"),
        ("ERROR: Could not install: [Errno 13] Permission denied: '/x'", "no permission to write"),
        ("  note: x\nERROR: Something new", "pip failed (ERROR: Something new)"),
        ("", "pip failed (it gave no reason)"),
    ],
)
def test_failures_of_pip_are_explained_in_one_line(tmp_path, monkeypatch, complaint, expected):
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:secret@mirror.example:8080/simple")
    message = bootstrap.explain(complaint, str(tmp_path / "venv"))
    assert expected in message
    assert "\n" not in message
    assert "secret" not in message


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A bootstrap whose steps are recorded instead of done."""
    steps = []
    venv = tmp_path / "venv"

    def make(venv, python):
        os.makedirs(os.path.dirname(python), exist_ok=True)
        for file in (python, os.path.join(venv, "pyvenv.cfg")):
            open(file, "w").close()
        steps.append("make")

    monkeypatch.setattr(bootstrap, "make_environment", make)
    monkeypatch.setattr(bootstrap, "install", lambda venv, python: steps.append("install"))
    monkeypatch.setattr(bootstrap, "fingerprint", lambda root: "one")
    return venv, steps


def test_second_run_does_nothing_and_changed_requirements_install_again(environment, monkeypatch):
    venv, steps = environment
    for _ in range(2):
        assert bootstrap.main(["--venv", str(venv)]) == 0
    assert steps == ["make", "install"]
    monkeypatch.setattr(bootstrap, "fingerprint", lambda root: "two")
    assert bootstrap.main(["--venv", str(venv)]) == 0
    assert steps == ["make", "install"] * 2


def test_interrupted_installation_is_taken_up_again(environment, monkeypatch, capsys):
    venv, steps = environment

    def fail(venv, python):
        raise bootstrap.SetupError("the index is away")

    with monkeypatch.context() as patch:
        patch.setattr(bootstrap, "install", fail)
        assert bootstrap.main(["--venv", str(venv)]) == 2
    assert capsys.readouterr().err == "error: the index is away\n"
    assert bootstrap.main(["--venv", str(venv)]) == 0
    assert steps == ["make", "make", "install"]


def test_foreign_folder_is_left_alone(environment, capsys):
    venv, steps = environment
    venv.mkdir()
    (venv / "thesis.tex").touch()
    assert bootstrap.main(["--venv", str(venv)]) == 2
    assert "is no virtual environment; choose another folder" in capsys.readouterr().err
    assert steps == []


def test_fingerprint_follows_requirements_and_packages(tmp_path):
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text("a")
    seen = [bootstrap.fingerprint(str(tmp_path))]
    (tmp_path / "constraints.txt").write_text("b")
    seen.append(bootstrap.fingerprint(str(tmp_path)))
    (tmp_path / "detection").mkdir()
    (tmp_path / "detection" / "__init__.py").touch()
    seen.append(bootstrap.fingerprint(str(tmp_path)))
    assert len(set(seen)) == 3
    assert bootstrap.fingerprint(str(tmp_path)) == seen[-1]


def test_make_explains_that_no_python_is_new_enough(tmp_path):
    make, shell = (
        next(f"{folder}/{name}" for folder in ("/usr/bin", "/bin") if os.path.exists(f"{folder}/{name}"))
        for name in ("make", "sh")
    )
    (tmp_path / "python3").write_text(f'#!{shell}\n[ "$1" = --version ] && echo Python 3.8.18 && exit 0\nexit 1\n')
    (tmp_path / "python3").chmod(0o755)
    command = [make, "-C", bootstrap.ROOT, "environment", "PYTHON=", f"SHELL={shell}"]
    result = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert result.returncode == 2
    assert (
        "error: Python 3.10 or newer is needed, found Python 3.8.18; install it or name one by PYTHON=" in result.stderr
    )
