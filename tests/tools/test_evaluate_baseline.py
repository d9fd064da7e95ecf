"""The paper's Table 2 for a learned baseline."""

import json

from prompt_pretrain.baselines.files import save_learner
from prompt_pretrain.baselines.learners import CoCoOp
from prompt_pretrain.clip import clip_from_config
from prompt_pretrain.command_line import run_command
from tests.classification_recipes import DOMAIN_LAYOUTS, write_domain_set
from tests.tools.test_evaluate_classification import CONFIG
from tools.evaluate_baseline import main


def test_a_baseline_gets_the_papers_table(tmp_path, capsys):
    (tmp_path / "clip.json").write_text(json.dumps(CONFIG))
    learner = CoCoOp(clip_from_config(CONFIG), n_ctx=2, words="", seed=0)
    metadata = {"trainer": "CoCoOp", "arguments": {"n_ctx": 2, "words": "", "seed": 0}, "dataset": "ImageNet"}
    save_learner(tmp_path / "model.pth", learner.state_dict(), metadata)
    for name in DOMAIN_LAYOUTS:
        write_domain_set(tmp_path / "data", name)
    command = ["--model", str(tmp_path / "model.pth"), "--clip", str(tmp_path / "clip.json"), "--num-workers", "0"]
    command += ["--datasets", "cross-domain", "--data-root", str(tmp_path / "data"), "--device", "cpu"]
    command += ["--cache-dir", str(tmp_path / "cache"), "--json", str(tmp_path / "t.json")]
    assert run_command(main, command) == 2
    assert "1 of 4 data sets are not there: ImageNetV2" in capsys.readouterr().err
    assert run_command(main, [*command, "--skip-missing"]) == 0
    assert "ours: CoCoOp        ImageNet-1K" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "t.json").read_text())["table"]["ours"]
    assert (row["name"], row["source"], len(row["accuracy"])) == ("CoCoOp", "ImageNet-1K", 3)
