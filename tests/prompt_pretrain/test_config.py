from pathlib import Path

import pytest

from prompt_pretrain.config import flatten, get_cfg, load_cfg, parse_bytes
from prompt_pretrain.errors import InputError

CONFIGS = Path(__file__).parents[2] / "configs" / "prompt_pretrain"
PLAIN = ("random_resized_crop", "random_flip", "normalize")
RANDAUG = ("random_resized_crop", "random_flip", "randaugment2", "normalize")
# CLIP, epochs, context vectors, transforms, views, tested while training
PUBLISHED = {
    "imagenet21k_vit_b16_ep5": ("ViT-B/16", 5, 4, PLAIN, 1, True),
    "imagenet21k_vit_b16_ep20": ("ViT-B/16", 20, 16, PLAIN, 1, False),
    "imagenet21k_vit_b16_ep5_randaug2": ("ViT-B/16", 5, 4, RANDAUG, 4, False),
    "imagenet21k_vit_b16_ep20_randaug2": ("ViT-B/16", 20, 16, RANDAUG, 4, False),
    "imagenet21k_vit_b32_ep20_randaug2": ("ViT-B/32", 20, 16, RANDAUG, 4, False),
    "imagenet21k_rn50_ep20_randaug2": ("RN50", 20, 16, RANDAUG, 4, False),
    "imagenet21k_rn50_ep5": ("RN50", 5, 4, PLAIN, 1, True),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_resolve_to_the_published_values(name):
    clip, epochs, n_ctx, transforms, views, tested = PUBLISHED[name]
    found = flatten(load_cfg(CONFIGS / f"{name}.yaml"))
    assert found["MODEL.BACKBONE.NAME"] == clip
    assert found["INPUT.TRANSFORMS"] == transforms
    assert found["TEST.NO_TEST"] is not tested and found["TEST.PER_CLASS_RESULT"] is tested
    wanted = {
        "DATASET.NAME": "ImageNet21K",
        "DATASET.NUM_SHOTS": 16,
        "SEED": 42,
        "DATALOADER.K_TRANSFORMS": views,
        "DATALOADER.NUM_WORKERS": 8,
        "DATALOADER.TRAIN_X.BATCH_SIZE": 32,
        "DATALOADER.TEST.BATCH_SIZE": 100,
        "INPUT.SIZE": (224, 224),
        "INPUT.INTERPOLATION": "bicubic",
        "INPUT.PIXEL_MEAN": (0.48145466, 0.4578275, 0.40821073),
        "INPUT.PIXEL_STD": (0.26862954, 0.26130258, 0.27577711),
        "INPUT.RANDAUGMENT_N": 2,
        "OPTIM.NAME": "sgd",
        "OPTIM.LR": 0.002,
        "OPTIM.MAX_EPOCH": epochs,
        "OPTIM.LR_SCHEDULER": "cosine",
        "OPTIM.MOMENTUM": 0.9,
        "OPTIM.WEIGHT_DECAY": 5e-4,
        "OPTIM.WARMUP_EPOCH": 1,
        "OPTIM.WARMUP_TYPE": "constant",
        "OPTIM.WARMUP_CONS_LR": 1e-5,
        "TRAIN.CHECKPOINT_FREQ": 1,
        "TRAINER.POMP.N_CTX": n_ctx,
        "TRAINER.POMP.CSC": False,
        "TRAINER.POMP.CTX_INIT": "",
        "TRAINER.POMP.CLASS_TOKEN_POSITION": "end",
        "TRAINER.POMP.EPT": True,
        "TRAINER.POMP.UPDATE_CLASS_NUM": 1000,
        "TRAINER.POMP.LOCAL_CORRECTION": True,
        "TRAINER.POMP.MARGIN": "log10",
        "TRAINER.POMP.NEG_SAMPLING_MODE": "random",
        "TRAINER.POMP.NEGATIVES": "per_rank",
    }
    assert wanted.items() <= found.items()


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_config_loads(path):
    assert load_cfg(path).is_frozen()


def test_the_full_vocabulary_config_samples_nothing():
    cfg = load_cfg(CONFIGS / "imagenet21k_vit_b16_ep20_full.yaml")
    assert cfg.TRAINER.POMP.UPDATE_CLASS_NUM == "all" and parse_bytes(cfg.MEMORY_BUDGET) == 8_000_000_000


@pytest.mark.parametrize(
    ("file", "trainer", "wanted"),
    [
        ("coop", "COOP", {"N_CTX": 16, "MAX_EPOCH": 50, "LR": 0.002, "BATCH_SIZE": 32}),
        ("coop_cross_dataset", "COOP", {"N_CTX": 4, "MAX_EPOCH": 50}),
        ("cocoop", "COCOOP", {"N_CTX": 4, "CTX_INIT": "a photo of a", "MAX_EPOCH": 10, "LR": 0.002, "BATCH_SIZE": 1}),
        ("vpt_deep", "VPT", {"N_CTX_VISION": 8, "PROMPT_DEPTH_VISION": 12, "LR": 0.0025, "MAX_EPOCH": 5}),
        ("vpt_shallow", "VPT", {"PROMPT_DEPTH_VISION": 1, "BATCH_SIZE": 4}),
        ("maple", "MAPLE", {"N_CTX": 2, "PROMPT_DEPTH": 9, "LR": 0.0035, "MAX_EPOCH": 5, "BATCH_SIZE": 4}),
        ("maple_cross_dataset", "MAPLE", {"PROMPT_DEPTH": 3, "LR": 0.0026, "MAX_EPOCH": 2}),
        ("linear_probe", "LINEAR_PROBE", {"LR": 0.2, "WARMUP_CONS_LR": 0.001, "MAX_EPOCH": 20, "BATCH_SIZE": 32}),
    ],
)
def test_the_baselines_have_the_published_settings(file, trainer, wanted):
    cfg = load_cfg([CONFIGS / "baselines" / f"{file}.yaml", CONFIGS / "datasets" / "imagenet.yaml"])
    found = {**cfg.OPTIM, **cfg.DATALOADER.TRAIN_X, **cfg.TRAINER[trainer]}
    assert wanted.items() <= found.items()
    assert (cfg.DATASET.NAME, cfg.DATASET.NUM_SHOTS, cfg.TEST.SELECTION) == ("ImageNet", 16, "last")


@pytest.mark.parametrize(("file", "text_width"), [("l14", 768), ("h14", 1024)])
def test_larger_clips_exist_under_the_names_of_their_configs(file, text_width):
    import open_clip

    name = load_cfg(CONFIGS / f"imagenet21k_vit_{file}_ep20_randaug2.yaml").MODEL.BACKBONE.NAME
    architecture, tag = (name.replace("/", "-") + "-quickgelu", "openai") if file == "l14" else name.split("/")
    assert tag in open_clip.list_pretrained_tags_by_model(architecture)
    assert open_clip.get_model_config(architecture)["text_cfg"]["width"] == text_width


def test_published_defaults():
    pomp = get_cfg().TRAINER.POMP
    published = ("N_CTX", "CSC", "CTX_INIT", "CLASS_TOKEN_POSITION", "UPDATE_CLASS_NUM", "EPT", "LOCAL_CORRECTION")
    assert [pomp[key] for key in published] == [4, False, "", "end", 128, False, True]


def test_a_file_in_the_published_style_merges(tmp_path):
    path = tmp_path / "vit_b16.yaml"
    path.write_text(
        "DATALOADER:\n  TRAIN_X:\n    BATCH_SIZE: 32\n    SAMPLER: 'RandomDistributedSampler'\n  K_TRANSFORMS: 4\n"
        "INPUT:\n  SIZE: (224, 224)\n  PIXEL_MEAN: [0.5, 1, 0.25]\n  TRANSFORMS: ['random_flip', 'normalize']\n"
        "OPTIM:\n  NAME: 'sgd'\n  WARMUP_CONS_LR: 1e-5\nTRAIN:\n  PRINT_FREQ: 5\nTRAINER: {NAME: POMP}\n"
    )
    cfg = load_cfg(path)
    assert cfg.INPUT.SIZE == (224, 224) and cfg.INPUT.PIXEL_MEAN == (0.5, 1.0, 0.25)
    assert cfg.OPTIM.WARMUP_CONS_LR == 1e-5 and cfg.DATALOADER.TRAIN_X.SAMPLER == "RandomDistributedSampler"


def test_bases_come_first_in_order_and_overrides_last(tmp_path):
    (tmp_path / "a.yaml").write_text("SEED: 1\nOPTIM: {LR: 0.1, MAX_EPOCH: 7}\n")
    (tmp_path / "b.yaml").write_text("SEED: 2\nOPTIM: {LR: 0.2}\n")
    (tmp_path / "c.yaml").write_text("_BASE_: [a.yaml, b.yaml]\nOPTIM: {MOMENTUM: 0.5}\n")
    cfg = load_cfg(tmp_path / "c.yaml", ["OPTIM.MOMENTUM", "0.25"])
    assert (cfg.SEED, cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.MOMENTUM) == (2, 0.2, 7, 0.25)


def test_numbers_and_words_share_a_key():
    key = "TRAINER.POMP.UPDATE_CLASS_NUM"
    assert load_cfg(None, [key, "all"]).TRAINER.POMP.UPDATE_CLASS_NUM == "all"
    assert load_cfg(None, [key, "300"]).TRAINER.POMP.UPDATE_CLASS_NUM == 300
    assert load_cfg(None, ["TRAINER.POMP.MARGIN", "1"]).TRAINER.POMP.MARGIN == 1.0
    assert load_cfg(None, ["TRAINER.POMP.MARGIN", "ln"]).TRAINER.POMP.MARGIN == "ln"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["OPTIM.LRR", "1"], "the command line: there is no config key OPTIM.LRR; did you mean OPTIM.LR?"),
        (["N_CTX", "1"], "there is no config key N_CTX; did you mean TRAINER.POMP.N_CTX?"),
        (["OPTIM", "1"], "OPTIM is a group of keys; say OPTIM.NAME or another"),
        (["OPTIM.LR", "fast"], "OPTIM.LR is 'fast' (str); expected a number"),
        (["SEED", "1.5"], "SEED is 1.5 (float); expected an integer"),
        (["TRAINER.POMP.CSC", "1"], "TRAINER.POMP.CSC is 1 (int); expected True or False"),
        (["INPUT.SIZE", "224"], "INPUT.SIZE is '224' (str); expected a list"),
        (["INPUT.SIZE", "(3, 4)"], "INPUT.SIZE is (3, 4); expected two equal numbers of pixels"),
        (["INPUT.PIXEL_STD", "(1, 1)"], "INPUT.PIXEL_STD is (1.0, 1.0); expected three numbers"),
        (["INPUT.TRANSFORMS", "['cutout']"], "INPUT.TRANSFORMS names 'cutout'; expected some of random_resized_crop"),
        (
            ["TRAINER.POMP.UPDATE_CLASS_NUM", "most"],
            """UPDATE_CLASS_NUM is 'most' (str); expected an integer or "all\"""",
        ),
        (
            ["TRAINER.POMP.EPT", "True", "TRAINER.POMP.UPDATE_CLASS_NUM", "1"],
            "UPDATE_CLASS_NUM is 1; a softmax needs 3",
        ),
        (["OPTIM.NAME", "adam"], "OPTIM.NAME is 'adam'; expected one of 'sgd'"),
        (["OPTIM.MAX_EPOCH", "0"], "OPTIM.MAX_EPOCH is 0; expected at least 1"),
        (["INPUT.NO_TRANSFORM", "True"], "INPUT.NO_TRANSFORM is True; only False is supported"),
        (["OPTIM.LR", "nan"], "OPTIM.LR is 'nan' (str); expected a number"),
        (["SEED"], "overrides come in pairs KEY VALUE, but the last one, 'SEED', stands alone"),
        (["MEMORY_BUDGET", "8 apples"], "MEMORY_BUDGET is '8 apples'; expected a positive size"),
    ],
)
def test_a_wrong_override_is_named(overrides, message):
    with pytest.raises(InputError) as error:
        load_cfg(None, overrides)
    assert message in str(error.value)


def test_a_wrong_file_is_named(tmp_path):
    path = tmp_path / "a.yaml"
    for text, message in (
        ("OPTIM: {LRR: 1}", f"{path}: there is no config key OPTIM.LRR"),
        ("OPTIM: 3", f"{path}: OPTIM is a group of keys"),
        ("SEED: {A: 1}", f"{path}: SEED is {{'A': 1}} (dict); expected an integer"),
        ("- 1", f"{path} holds a list; expected keys"),
        ("A: [", f"{path} is not plain YAML"),
        ("SEED: !!python/object/apply:os.system ['true']", f"{path} is not plain YAML"),
        ("_BASE_: b.yaml", f"config file {tmp_path / 'b.yaml'} not found, the _BASE_ of"),
        ("_BASE_: a.yaml", "_BASE_ leads back to"),
    ):
        path.write_text(text)
        with pytest.raises(InputError) as error:
            load_cfg(path)
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 8e9), ("500 MB", 5e8), ("1e9", 1e9), ("2GiB", 2 * 2**30), ("64m", 6.4e7), ("", None)]
)
def test_sizes(text, size):
    assert parse_bytes(text) == size
