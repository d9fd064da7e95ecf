"""The quickstart's detector and segmenter: commands that run once, stop and go on; settings; what the report shows."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prompt_pretrain.clip import load_clip
from prompt_pretrain.errors import InputError
from prompt_pretrain.pretrain import TrainingInterrupted
from prompt_pretrain.prompt import SoftPrompt, save_prompt
from prompt_pretrain.report import Report
from prompt_pretrain.shapeworld import TINY_CLIP_NAME

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))  # as for the command itself
from quickstart_parts import scenes as scene_steps  # noqa: E402
from quickstart_parts.page import scene_chapter, scene_text  # noqa: E402
from quickstart_parts.scenes import ROWS, ScenePlan, SceneSteps  # noqa: E402
from quickstart_parts.tool_run import Runner, ToolRun, run_side_by_side  # noqa: E402

# Counts its starts, waits if told so, and says when a signal ended it.
SCRIPT = """
import signal, sys, time
folder, wait = sys.argv[1], float(sys.argv[2])
def stop(*_):
    open(folder + "/stopped", "w").close()
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
with open(folder + "/starts", "a") as file:
    file.write("x")
time.sleep(wait)
if len(sys.argv) > 3:
    sys.exit(sys.argv[3])
"""
PLAN = ScenePlan(*scene_steps._worlds(6, 3, 4, 4, 2), detector_steps=2, segmenter_steps=2, pictures=2)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def step(script: Path, name: str, *words: str, **more: Any) -> ToolRun:
    folder = script.parent / name
    return ToolRun(name, str(script), (str(folder), *words), folder, **more)


def starts(run: ToolRun) -> int:
    return len((run.folder / "starts").read_text())


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.02)


def test_a_command_runs_once_until_its_arguments_or_inputs_change(script: Path) -> None:
    weights = script.parent / "weights"
    weights.write_text("1")
    run = step(script, "a", "0", inputs=(weights,))
    for _ in range(2):
        Runner().run(run)
    assert starts(run) == 1 and run.seconds > 0
    (run.folder / "old").touch()
    weights.write_text("2")
    Runner().run(run)
    assert starts(run) == 1 and not (run.folder / "old").exists()  # a new folder
    (run.folder / "old").touch()
    Runner().run(step(script, "a", "0.0", inputs=(weights,)))
    assert not (run.folder / "old").exists()


def test_a_failed_command_is_named_with_its_output_and_repeated(script: Path) -> None:
    run = step(script, "a", "0", "the disk is gone")
    for count in (1, 2):
        with pytest.raises(InputError, match=r"a failed with exit code 1; see .*output.txt: the disk is gone"):
            Runner().run(run)
        assert starts(run) == count


def test_a_failure_stops_the_other_chain_which_can_go_on_later(script: Path) -> None:
    slow, bad = step(script, "slow", "30"), step(script, "bad", "1.5", "no")
    told: list[tuple[int, int, str]] = []
    with pytest.raises(InputError, match="bad failed"):
        run_side_by_side(Runner(), [[slow], [bad]], jobs=2, show=lambda *state: told.append(state))
    assert (slow.folder / "stopped").exists()
    assert told[-1][1] == 80 and "slow" in told[-1][2]
    with pytest.raises(TrainingInterrupted):
        stopped = Runner()
        stopped.stop()
        stopped.run(slow)


def test_chains_go_on_behind_what_is_done(script: Path) -> None:
    chains = [[step(script, f"{chain}{number}", "0") for number in range(2)] for chain in "ab"]
    Runner().run(chains[0][0])
    run_side_by_side(Runner(), chains, jobs=1, show=lambda *_: None)
    assert [starts(run) for chain in chains for run in chain] == [1, 1, 1, 1]


def test_commands_end_with_a_killed_parent_and_the_next_one_waits_for_that(script: Path) -> None:
    run = step(script, "a", "30")
    code = (
        f"import sys; sys.path[:0] = {[str(TOOLS), str(TOOLS.parent)]!r}\n"
        "from pathlib import Path; from quickstart_parts.tool_run import Runner, ToolRun\n"
        f"Runner().run(ToolRun('a', {run.script!r}, {run.arguments!r}, Path({str(run.folder)!r})))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    wait_for(run.folder / "starts")
    time.sleep(0.3)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_for(run.folder / "stopped")
    again = step(script, "a", "30")
    assert again.command == run.command and not json.loads((run.folder / "quickstart.json").read_text())["done"]


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> SceneSteps:
    folder = tmp_path_factory.mktemp("scenes")
    clip = load_clip(TINY_CLIP_NAME)
    save_prompt(folder / "prompt.pth.tar", SoftPrompt.random(4, clip.text_width, seed=1))
    made = SceneSteps(folder, PLAN, clip=clip, clip_name=TINY_CLIP_NAME, prompt=folder / "prompt.pth.tar")
    told: list[tuple[int, int, str]] = []
    made.draw(lambda *state: told.append(state))
    assert told[-1][0] == told[-1][1]
    return made


def test_settings_of_all_commands_are_understood(steps: SceneSteps, monkeypatch: pytest.MonkeyPatch) -> None:
    import demo
    import train_net

    from detection.setup import load_config as load_detection
    from segmentation.setup import load_config as load_segmentation

    for runs, load in ((steps.detection_runs(), load_detection), (steps.segmentation_runs(), load_segmentation)):
        folders = [run.folder for run in runs]
        assert len(set(folders)) == len(folders)
        for run in runs:
            if run.script.endswith("demo.py"):
                args = demo.parse_args(run.arguments)
                assert [Path(name).is_file() for name in args.input] == [True, True]
                continue
            args = train_net.parse_args(run.arguments)
            cfg = load(args.config_file, args.opts)
            assert str(run.folder) == cfg.OUTPUT_DIR
            assert args.eval_only == (run.iterations == 0) and args.resume == (run.iterations > 0)
            assert shlex.split(run.command)[1:3] == ["python", "tools/train_net.py"] or not Path("tools").exists()


def pretend(steps: SceneSteps) -> None:
    """What the commands would leave behind."""
    for run in (*steps.detection_runs(), *steps.segmentation_runs()):
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "quickstart.json").write_text('{"seconds": 61.0, "done": true}')
        detects = "detector" in run.title
        results = {name: _metrics(steps, name) for name in scene_steps.DETECTION_SETS} if detects else {}
        for name in () if detects else scene_steps.SEGMENTATION_SETS:
            own = {"hIoU-base": 8.5, "mIoU-base": 9.5, "mIoU-unbase": 7.5} if name == scene_steps.SOURCE else {}
            results[name] = {"sem_seg": {"mIoU": 3.25, "fwIoU": 4.25, "pACC": 5.25, **own}}
        (run.folder / "results.json").write_text(json.dumps(results))
        (run.folder / "metrics.json").write_text('{"iteration": 19, "total_loss": 3.0}\n{"iteration": 39, "tot')
        if run.script.endswith("demo.py"):
            for path in scene_steps_inputs(run):
                Image.new("RGB", (16, 16)).save(run.folder / path.name)


def scene_steps_inputs(run: ToolRun) -> list[Path]:
    words = list(run.arguments)
    return [Path(word) for word in words[words.index("--input") + 1 : words.index("--output")]]


def _metrics(steps: SceneSteps, name: str) -> dict[str, Any]:
    metrics = {"AP": 12.5, "AP50": 20.5, "APr": 6.5, "APc": 7.0, "APf": 8.0}
    categories = json.loads(steps.detection.annotations(name).read_text())["categories"]
    per_class = {f"AP-{category['name']}": 4.5 for category in categories}
    return {"bbox": metrics | per_class | {f"AP-{categories[0]['name']}": None}}  # a class without things


def test_the_report_shows_rows_pictures_losses_times_and_commands(steps: SceneSteps) -> None:
    pretend(steps)
    outcome = steps.outcome()
    assert tuple(outcome.detection) == tuple(outcome.segmentation) == tuple(reversed(ROWS))
    assert outcome.losses["detector"] == [{"iteration": 19, "total_loss": 3.0}]  # half a line is left out
    chapter = scene_chapter(outcome)
    assert [picture.name.split("_")[1] for picture in chapter.pictures] == ["detector", "segmenter"]
    report = Report("test")
    for title, fill in chapter.sections:
        report.section(title)
        fill(report)
    page = report.html()
    assert "<td>POMP</td><td>12.5</td><td>20.5</td><td>6.5</td>" in page.replace(" class=text", "")
    assert "<td>POMP</td><td>9.5</td><td>7.5</td><td>8.5</td><td>5.2</td>" in page
    assert page.count("data:image/jpeg") == 6 and page.count("There: ") == 6
    assert len(chapter.commands) == 9 and set(dict(chapter.commands)) == set(chapter.seconds)
    assert all(" tools/" in command for _, command in chapter.commands) or not Path("tools").exists()
    assert "hard prompt" in scene_text(outcome)
