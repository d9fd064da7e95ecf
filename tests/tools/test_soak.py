"""The soak tool: its shortest useful run, and its parts."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import third_party  # noqa: F401  (makes detectron2 importable)

_ROOT = Path(__file__).parents[2]


@pytest.fixture
def soaking(monkeypatch):
    monkeypatch.syspath_prepend(str(_ROOT / "tools"))


def test_data_vanish_and_return(soaking, tmp_path):
    from soaking.disturbances import DataFolder

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_text("a")
    data = DataFolder(tmp_path / "data")
    data.vanish()
    assert not data.path.exists()
    DataFolder(tmp_path / "data")  # another soak after one that was killed meanwhile
    data.restore()
    assert (data.path / "a").read_text() == "a"


def test_damage_is_drawn_from_the_seed_and_spares_most_images(soaking, tmp_path):
    from soaking.disturbances import damage_images

    for run in ("one", "other"):
        (tmp_path / run).mkdir()
        for number in range(20):
            (tmp_path / run / f"{number}.jpg").write_bytes(bytes(400))
        assert damage_images(tmp_path / run, "*.jpg", random.Random(5)) == 2
    content = [[path.read_bytes() for path in sorted((tmp_path / run).iterdir())] for run in ("one", "other")]
    assert content[0] == content[1]
    assert content[0].count(bytes(400)) == 18


def test_memory_is_reported_from_the_process_that_lived_longest(soaking):
    from soaking.session import Training

    training = Training(
        "prompt", disturbed=True, starts=2, rss_mb=[100.0] * 10 + [200.0] * 30, disturbances=Counter(kill=1)
    )
    row = training.as_json()
    assert (row["task"], row["rss_first_mb"], row["rss_last_mb"]) == ("prompt", 200.0, 200.0)
    assert Training("prompt", disturbed=False).as_json()["rss_last_mb"] == 0.0


def test_foreign_files_are_left_alone(soaking, tmp_path):
    from soaking.session import _OwnDisk

    from prompt_pretrain.errors import InputError

    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds files that are none of a soak"), _OwnDisk(tmp_path / "runs"):
        pass
    assert (tmp_path / "runs" / "thesis.txt").read_text() == "mine"


@pytest.mark.slow
def test_a_killed_pre_training_ends_with_the_weights_of_an_undisturbed_one(tmp_path):
    words = ["--minutes", "0.01", "--steps", "24", "--tasks", "prompt", "--disturbances", "kill", "damaged_checkpoint"]
    # A pool of threads that was used before the fork: the trainings may not wait for it.
    started = f"import runpy, sys, torch; sys.path.insert(0, {str(_ROOT / 'tools')!r}); torch.set_num_threads(2); "
    started += "torch.rand(2000, 2000).exp().sum(); sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    script = [sys.executable, "-c", started, str(_ROOT / "tools" / "soak.py")]
    done = subprocess.run(
        [*script, *words, "--seed", "1", "--output", str(tmp_path)],
        env={name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "soak.json").read_text())
    alone, disturbed = report["trainings"]
    assert report["problems"] == []
    assert (alone["starts"], disturbed["equal"]) == (1, True)
    assert disturbed["disturbances"]["kill"] >= 1
    assert disturbed["starts"] == 1 + disturbed["disturbances"]["kill"]
    assert 0 < disturbed["open_files_peak"] < 100
    assert "| prompt |" in done.stdout
