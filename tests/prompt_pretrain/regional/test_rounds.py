"""The whole pipeline on ShapeWorld scenes in LVIS' format, with a server of our own as the web."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from prompt_pretrain.baselines import setup
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.clip import load_clip
from prompt_pretrain.command_line import run_command
from prompt_pretrain.config import load_cfg
from prompt_pretrain.errors import InputError
from prompt_pretrain.metrics_log import read_metrics
from prompt_pretrain.regional.crop_data import TrainingSet
from prompt_pretrain.regional.crops import CropRules, make_crops
from prompt_pretrain.regional.embeddings import load_classes
from prompt_pretrain.regional.fetching import FetchLimits
from prompt_pretrain.regional.learner import RegionalPrompt
from prompt_pretrain.regional.retrieval import ExactIndex, open_index
from prompt_pretrain.regional.rounds import RoundRules, Rounds, novel_images
from prompt_pretrain.regional.selection import SelectionRules
from prompt_pretrain.shapeworld.annotation_writers import write_lvis
from prompt_pretrain.shapeworld.images import render_image
from prompt_pretrain.shapeworld.scene_files import SceneRecipe
from prompt_pretrain.shapeworld.world_folder import encode_jpeg
from tests.prompt_pretrain import processes
from tests.prompt_pretrain.regional.web_server import serve
from tools import pretrain_prompt, regional_prompt

RECIPE = SceneRecipe(num_classes=10, num_novel=4, train_images=24, val_images=12, size=96)
CONFIG = "configs/prompt_pretrain/regional/shapeworld.yaml"
CLIP = ("--clip", "shapeworld-tiny", "--num-workers", "0")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Annotations, scenes, crops, a web of pictures."""
    folder = tmp_path_factory.mktemp("regional")
    write_lvis(folder / "world", RECIPE)
    for label, thing in enumerate(RECIPE.things):
        for number in range(3):
            path = folder / "web" / f"{label:02d}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_jpeg(render_image(thing, number)))
    lvis = folder / "world" / "lvis"
    words = ["--train", f"{lvis}/lvis_v1_train.json", "--val", f"{lvis}/lvis_v1_val.json", "--padding", "0.25"]
    images = ["--images", f"{folder}/world/coco"]
    assert run_command(regional_prompt.main, ["crops", *words, *images, "--output", f"{folder}/crops"]) == 0
    return folder


def annotations(world: Path) -> str:
    return str(world / "world" / "lvis" / "lvis_v1_train.json")


def settings(world: Path, *more: str) -> list[str]:
    return ["FEATURE_CACHE.FOLDER", str(world / "cache"), "OPTIM.MAX_EPOCH", "2", *more]


def test_two_rounds_with_a_server_as_the_web(world, tmp_path):
    words = ["index", "--images", str(world / "web"), "--cache-dir", str(world / "cache"), *CLIP]
    with serve(world / "web") as web:
        served = [*words, "--base-url", web.url("files/"), "--output", str(tmp_path / "index")]
        assert run_command(regional_prompt.main, served) == 0
        # One in six addresses leads nowhere, one to a page.
        urls = (tmp_path / "index" / "urls.txt").read_text().splitlines()
        urls[::6] = [web.url(f"nothing/{number}") for number in range(len(urls[::6]))]
        urls[3] = web.url("page")
        (tmp_path / "index" / "urls.txt").write_text("\n".join(urls) + "\n")
        said: list[str] = []
        rules = RoundRules(
            rounds=2, candidates=6, selection=SelectionRules(top_k=2), limits=FetchLimits(timeout=5, retries=0)
        )
        cfg = load_cfg(CONFIG, ["DATASET.ROOT", str(world / "crops"), *settings(world)])
        classes = load_classes(annotations(world))
        rounds = Rounds(tmp_path / "rounds", cfg, classes, open_index(tmp_path / "index"), rules, backend="own")
        done = rounds.run(announce=said.append)
        asked = sum(web.asked.values())
        assert rounds.run(announce=said.append) == done and sum(web.asked.values()) == asked  # from the files
    assert [entry["round"] for entry in done] == [1, 2] and len(said) == 2
    assert done[1]["train_images"] > done[0]["train_images"]
    counts = json.loads((tmp_path / "rounds" / "round1" / "web" / "download.json").read_text())["counts"]
    assert counts["ok"] == 20 and counts["failed: HTTP status 404"] >= 1
    embeddings = ClassEmbeddings.load(rounds.best(done)["embeddings"])
    embeddings.check(num_classes=14, class_names=[item.name for item in classes])
    assert TrainingSet.load(tmp_path / "rounds" / "round2").web

    other = RoundRules(rounds=2, candidates=5, selection=SelectionRules(top_k=2))
    with pytest.raises(InputError, match="holds rounds of other settings"):
        Rounds(tmp_path / "rounds", cfg, classes, open_index(tmp_path / "index"), other).run()
    Path(done[0]["prompt"]).unlink()
    with pytest.raises(InputError, match="model-best.pth.tar of round 1 is gone"):
        rounds.run()


def train(rank: int, world: Path, output: Path, batch_size: int) -> None:
    size = ["DATALOADER.TRAIN_X.BATCH_SIZE", str(batch_size), "OPTIM.WARMUP_EPOCH", "0", "OPTIM.LR", "0.02"]
    places = ["DATASET.ROOT", str(world / "crops"), "OUTPUT_DIR", str(output), "TRAIN.PRINT_FREQ", "1"]
    setup.train(load_cfg(CONFIG, settings(world, *places, *size)))


@pytest.mark.slow
def test_two_processes_learn_what_one_does(world, tmp_path):
    train(0, world, tmp_path / "one", 12)  # writes the features, too
    processes.run_ranks(train, 2, world, tmp_path / "two", 6)
    states, losses = [], []
    for name in ("one", "two"):
        prompt = torch.load(tmp_path / name / "prompt_learner" / "model.pth.tar-2", weights_only=True)
        states.append(prompt["state_dict"])
        losses.append([line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl", "train")])
    assert states[0].keys() == states[1].keys() == {"ctx1", "ctx2"}
    start = RegionalPrompt(load_clip("shapeworld-tiny"), seed=3).state_dict()
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=0, atol=1e-5)
        assert (value - start[name]).abs().max() > 1e-3  # it has learned something
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and len(losses[0]) > 4


def test_rounds_check_what_they_are_given(world, tmp_path):
    cfg = load_cfg(CONFIG, ["DATASET.ROOT", str(world / "crops")])
    with pytest.raises(InputError, match="more than one round needs an index"):
        Rounds(tmp_path, cfg, [], None)
    with pytest.raises(InputError, match="not POMP on ShapeWorld"):
        Rounds(tmp_path, load_cfg("configs/prompt_pretrain/shapeworld_tiny.yaml"), [], None, RoundRules(1))
    with pytest.raises(InputError, match="number of rounds is 0"):
        RoundRules(0)


def test_every_step_as_a_command_with_a_folder_as_the_web(world, tmp_path, capsys):
    def run(*words: object) -> str:
        assert run_command(regional_prompt.main, [str(word) for word in words]) == 0
        return capsys.readouterr().out

    classes = ("--annotations", annotations(world))
    train = ["--config-file", CONFIG, "--data-root", str(world / "crops"), "--output-dir", str(tmp_path / "run")]
    assert run_command(pretrain_prompt.main, [*train, *settings(world)]) == 0
    model = tmp_path / "run" / "prompt_learner" / "model.pth.tar-2"
    assert f"regional_prompt.py embed --model {model}" in capsys.readouterr().out
    embeddings = tmp_path / "e.safetensors"
    lists = ("--base-indices", tmp_path / "base.txt", "--entries", tmp_path / "entries.txt")
    printed = run("embed", "--model", model, *classes, "--clip", "shapeworld-tiny", "--output", embeddings, *lists)
    assert "14 class embeddings of width 64" in printed
    assert (tmp_path / "base.txt").read_text() == ", ".join(map(str, range(10)))

    index = ("--index", tmp_path / "index")
    run("index", "--images", world / "web", "--output", tmp_path / "index", "--cache-dir", world / "cache", *CLIP)
    run("retrieve", *index, "--embeddings", embeddings, *classes, "--output", tmp_path / "lists", "-k", 4)
    assert len(list((tmp_path / "lists").glob("*.txt"))) == 10
    downloaded = ("--downloaded", tmp_path / "got")
    run("download", "--lists", tmp_path / "lists", "--output", downloaded[1], "--web-folder", world / "web")
    run("select", *downloaded, *classes, "--crops", world / "crops", "--output", tmp_path / "set", "--top-k", 2)
    assert sum(map(len, TrainingSet.load(tmp_path / "set").web.values())) == 20
    scores = ("--rescore", "--copy-above", 0.99, "--embeddings", embeddings, "--cache-dir", world / "cache")
    run("select", *downloaded, *classes, "--crops", world / "crops", "--output", tmp_path / "set2", *scores, *CLIP)

    novel = tmp_path / "novel"
    words = ("retrieve", *index, "--embeddings", embeddings, *classes, "--classes", "novel", "--output", novel)
    run(*words, "-k", 3)
    run("download", "--lists", novel, "--output", tmp_path / "n", "--web-folder", world / "web")
    run("select", "--downloaded", tmp_path / "n", *classes, "--detector-json", tmp_path / "novel.json")
    assert len(json.loads((tmp_path / "novel.json").read_text())["images"]) == 12

    one = ("--rounds", 1, "--crops", world / "crops", *classes, "--output", tmp_path / "rounds")
    assert "best round 1" in run("rounds", "--config-file", CONFIG, *one, *settings(world))


def test_images_of_novel_classes_for_the_detector(world, tmp_path):
    classes = load_classes(annotations(world))
    embeddings = ClassEmbeddings(torch.eye(14, 64), tuple(item.name for item in classes))
    features = np.eye(4, 64, k=10, dtype=np.float32)
    index = ExactIndex(features, [f"{label:02d}/0.jpg" for label in range(10, 14)])
    rules = SelectionRules(top_k=1)
    chosen = novel_images(index, embeddings, classes, tmp_path, candidates=1, selection=rules, web_folder=world / "web")
    assert list(chosen) == [item.folder for item in classes if not item.base]


def test_bad_use_ends_with_one_line(world, tmp_path, capsys, monkeypatch):
    def fails(*words: object) -> str:
        assert run_command(regional_prompt.main, [str(word) for word in words]) == 2
        return capsys.readouterr().err

    classes = ("--annotations", annotations(world))
    assert "give either --crops and --output" in fails("select", "--downloaded", tmp_path, *classes)
    words = ("select", "--downloaded", tmp_path, *classes, "--detector-json", tmp_path / "x.json", "--rescore")
    assert "give --embeddings too" in fails(*words)
    assert "written as .npy" in fails("embed", "--model", "m", *classes, "--output", tmp_path / "x.txt")
    torch.save(torch.ones(14, 64), tmp_path / "bare.pt")
    words = ("retrieve", "--index", tmp_path, "--embeddings", tmp_path / "bare.pt", *classes, "--output", tmp_path)
    assert "holds no class names" in fails(*words)
    lvis = ("--train", "none.json", "--val", "none.json", "--images", tmp_path, "--output", tmp_path / "crops")
    assert "none.json not found" in fails("crops", *lvis)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "2 processes were started, but each step of regional_prompt is for one" in fails("crops", *lvis)


@pytest.mark.slow
def test_training_lowers_the_loss_of_crops(tmp_path):
    """Accuracy is no measure here: the tiny CLIP starts so near its best that gains are those of a crop or two."""
    write_lvis(tmp_path / "world", SceneRecipe(num_classes=40, num_novel=15, train_images=100, val_images=10))
    lvis = tmp_path / "world" / "lvis"
    train, val = lvis / "lvis_v1_train.json", lvis / "lvis_v1_val.json"
    make_crops(train, val, tmp_path / "world" / "coco", tmp_path / "crops", rules=CropRules(padding=0.25))
    places = ["DATASET.ROOT", str(tmp_path / "crops"), "FEATURE_CACHE.FOLDER", str(tmp_path / "cache")]
    Rounds(tmp_path / "rounds", load_cfg(CONFIG, places), load_classes(train), None, RoundRules(1)).run()
    log = tmp_path / "rounds" / "round1" / "run" / "metrics.jsonl"
    losses = [line["loss"] for line in read_metrics(log, "epoch")]
    assert losses[-1] < losses[0] - 0.01  # the first epoch warms up at a rate that changes nothing
