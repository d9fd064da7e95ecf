import runpy
from pathlib import Path

from prompt_pretrain.clip import load_clip
from prompt_pretrain.command_line import run_command

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "train_tiny_clip.py"), run_name="tool")


def run(*arguments: object) -> int:
    return run_command(TOOL["main"], [str(argument) for argument in arguments])


def test_it_writes_a_clip_that_loads(tmp_path, capsys):
    output = tmp_path / "new" / "tiny.safetensors"
    assert run("--output", output, "--steps", 2, "--batch-size", 4) == 0
    assert f"written: {output} (" in capsys.readouterr().out
    clip = load_clip(output)
    assert (clip.image_size, clip.context_length) == (64, 77)
    assert [path.name for path in output.parent.iterdir()] == ["tiny.safetensors"]


def test_bad_output_names_are_refused(tmp_path, capsys):
    assert run("--output", tmp_path / "tiny.pt") == 2
    assert "expected a file that ends in .safetensors" in capsys.readouterr().err
    (tmp_path / "tiny.safetensors").write_bytes(b"mine")
    assert run("--output", tmp_path / "tiny.safetensors") == 2
    assert "exists; choose another name or delete it" in capsys.readouterr().err
    assert run("--output", tmp_path / "new.safetensors", "--steps", 0) == 2
    assert "steps must be at least 1, found 0" in capsys.readouterr().err
