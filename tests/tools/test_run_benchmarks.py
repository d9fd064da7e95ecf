"""The benchmark runner on made-up benchmarks."""

import json
import subprocess
import sys

import pytest

from prompt_pretrain.errors import InputError
from tools import run_benchmarks

AS_SCRIPTS = f"""
import runpy, sys
sys.path[0] = {str(run_benchmarks.BENCHMARKS)!r}
for name in ("segmentation", "detection", "training_step"):
    runpy.run_path(f"{run_benchmarks.BENCHMARKS}/{{name}}.py")
"""
SCRIPT = """
import json, sys
assert sys.argv[1] == "--quick", sys.argv
result = {"name": "NAME/time", "value": 2.0, "unit": "s", "reference": None, "ratio": None, "limit_fraction": 0.51234}
with open(sys.argv[sys.argv.index("--json") + 1], "w") as file:
    json.dump([result], file)
"""


@pytest.fixture
def folder(tmp_path):
    for name in ("alpha", "beta"):
        (tmp_path / f"{name}.py").write_text(SCRIPT.replace("NAME", name))
    return tmp_path


def test_results_of_all_benchmarks_come_together(folder, tmp_path, capsys):
    file = tmp_path / "out" / "all.json"
    assert run_benchmarks.main(["--json", str(file)], folder) == 0
    assert [result["name"] for result in json.loads(file.read_text())] == ["alpha/time", "beta/time"]
    table = capsys.readouterr().out.splitlines()
    assert "alpha/time  2      s     -          -      0.5123" in table


def test_a_failing_benchmark_does_not_hide_the_others(folder, tmp_path, capsys):
    (folder / "alpha.py").write_text("raise SystemExit(1)")
    file = tmp_path / "all.json"
    assert run_benchmarks.main(["--json", str(file)], folder) == 1
    assert [result["name"] for result in json.loads(file.read_text())] == ["beta/time"]
    assert "failed: alpha" in capsys.readouterr().err


def test_unknown_benchmark_lists_the_known_ones(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        run_benchmarks.main(["gamma"], folder)
    assert stop.value.code == 2
    assert "no benchmark gamma; there are: alpha, beta" in capsys.readouterr().err


def test_records_of_several_runs_and_machines_are_rendered_together(folder, tmp_path):
    document, records = tmp_path / "PERFORMANCE.md", tmp_path / "records"
    document.write_text("# Performance\n\nWords of its own.\n")
    records.mkdir()
    other = {
        "device": "Some GPU",
        "command": "make bench",
        "results": [{"name": "gamma/time", "value": 3, "unit": "ms"}],
    }
    (records / "some-gpu.json").write_text(json.dumps(other))
    words = ["--record", "--records", str(records), "--document", str(document), "--json", str(tmp_path / "all.json")]
    assert run_benchmarks.main(["alpha", *words], folder) == 0
    assert run_benchmarks.main(["beta", *words], folder) == 0  # what alpha gave is kept
    text = document.read_text()
    assert "Words of its own." in text and text.count("Recorded benchmarks") == 1
    lines = text.splitlines()
    assert "| alpha/time | 2 | s | - | - | 0.5123 |" in lines and "| beta/time | 2 | s | - | - | 0.5123 |" in lines
    assert "| gamma/time | 3 | ms | - | - | - |" in lines and any("Some GPU" in line for line in lines)


def test_a_broken_record_is_named(folder, tmp_path):
    (tmp_path / "cpu.json").write_text("[]")
    with pytest.raises(InputError, match="cpu.json is no record of benchmarks; remove it"):
        run_benchmarks.render_records(tmp_path)


def test_packages_are_found_by_scripts_of_the_same_name(tmp_path):
    done = subprocess.run([sys.executable, "-c", AS_SCRIPTS], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
