import pytest

from prompt_pretrain.config import load_cfg
from prompt_pretrain.errors import InputError
from prompt_pretrain.run_folder import RunFolder, default_run_folder


def test_the_default_folder_is_the_published_one():
    overrides = ["DATASET.NAME", "ImageNet21K", "DATASET.NUM_SHOTS", "16", "TRAINER.POMP.EPT", "True"]
    cfg = load_cfg(None, [*overrides, "TRAINER.POMP.UPDATE_CLASS_NUM", "1000"])
    folder = default_run_folder(cfg, "vit_b16_ep5")
    assert folder.as_posix() == "output/imagenet_21k/POMP/vit_b16_ep5_unc1000_16shots/nctx4_cscFalse_ctpend/seed42"


def test_words_and_full_contrast_show_in_the_default_folder():
    overrides = ["DATASET.NAME", "ShapeWorld", "TRAINER.POMP.CTX_INIT", "a_photo_of", "TRAINER.POMP.EPT", "True"]
    cfg = load_cfg(None, [*overrides, "TRAINER.POMP.UPDATE_CLASS_NUM", "0"])
    assert default_run_folder(cfg, "x").parts[1:5] == (
        "shape_world",
        "POMP",
        "x_uncall_-1shots",
        "nctx3_cscFalse_ctpend",
    )


def test_opening_clears_up_and_locks(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.prompts.mkdir(parents=True)
    (run.prompts / ".model.pth.tar-1.x1.tmp").write_text("half")
    (run.prompts / "model.pth.tar-1").write_text("whole")
    run.open()
    assert [path.name for path in run.prompts.iterdir()] == ["model.pth.tar-1"]
    with pytest.raises(InputError, match="another training is running"):
        RunFolder(tmp_path / "run").open()
    run.close()
    RunFolder(tmp_path / "run").open()


def test_removing_a_run_takes_its_prompts_and_states_only(tmp_path):
    run = RunFolder(tmp_path)
    run.states.save({}, 1)
    for path in (run.epoch_prompt(1), run.epoch_prompt(20), run.best_prompt, run.prompts / "notes.txt"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    run.point_to(run.epoch_prompt(20))
    assert (run.prompts / "checkpoint").read_text() == "model.pth.tar-20\n"
    run.remove_run()
    assert [path.name for path in run.prompts.iterdir()] == ["notes.txt"] and not run.states.exists()


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match=r"OUTPUT_DIR .*run cannot be written to \(File exists\); choose another"):
        RunFolder(tmp_path / "run").check_writable()
