"""What the bundled configuration does beyond detectron2's: safe YAML and errors that say what to do."""

import pytest

from detectron2.config import CfgNode, get_cfg, upgrade_config
from detectron2.config.yaml_loading import evaluate_arithmetic


@pytest.fixture
def merge(tmp_path):
    """Merges a text as a file over the defaults."""

    def merge(text, **options):
        (tmp_path / "c.yaml").write_text(text)
        cfg = get_cfg()
        cfg.merge_from_file(str(tmp_path / "c.yaml"), **options)
        return cfg

    return merge


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("MODEL.WEIGHT", "MODEL.WEIGHTS"),
        ("SOLVER.BASELR", "SOLVER.BASE_LR"),
        ("BASE_LR", "SOLVER.BASE_LR"),
        ("MODEL.WEIGHTS.X", "MODEL.WEIGHTS"),
        ("MODEL.ROI_HEAD.NUM_CLASSES", "MODEL.ROI_HEADS.NUM_CLASSES"),
    ],
)
def test_unknown_keys_name_the_nearest_known_one(key, nearest):
    with pytest.raises(AssertionError) as caught:
        get_cfg().merge_from_list([key, "1"])
    assert str(caught.value) == f"Non-existent key: {key}; the nearest known key is {nearest}"


def test_unknown_keys_in_files_name_the_nearest_known_one(merge):
    with pytest.raises(
        KeyError, match=r"Non-existent config key: SOLVER\.BASELR; the nearest known key is SOLVER\.BASE_LR"
    ):
        merge("VERSION: 2\nSOLVER: {BASELR: 0.1}")
    with pytest.raises(KeyError, match="Non-existent config key: A'"):
        empty = CfgNode()
        empty.merge_from_other_cfg(CfgNode({"A": 1}))


@pytest.mark.parametrize(
    ("pair", "cure"),
    [
        (["SOLVER.BASE_LR", "1"], "; write it with a point, such as 1.0"),
        (["SOLVER.MAX_ITER", "1e4"], "; write a whole number without point or exponent"),
        (["MODEL.WEIGHTS", "123"], "; quote it twice, as in '\"123\"'"),
        (["DATASETS.TRAIN", "name"], "; write a list, such as ['a', 'b'] or ('a',)"),
        (["SOLVER", "1"], "for config key: SOLVER"),
    ],
)
def test_wrong_types_come_with_the_cure(pair, cure):
    with pytest.raises(ValueError) as caught:
        get_cfg().merge_from_list(pair)
    assert str(caught.value).endswith(cure)


def test_arithmetic_in_files_is_evaluated_without_running_code(merge):
    text = 'INPUT:\n  MIN_SIZE_TRAIN: !!python/object/apply:eval ["[int(x * 0.1 * 640) for x in range(5, 21)]"]'
    assert tuple(int(x * 0.1 * 640) for x in range(5, 21)) == merge(text).INPUT.MIN_SIZE_TRAIN
    assert merge("DATASETS:\n  TRAIN: !!python/tuple [a, b]").DATASETS.TRAIN == ("a", "b")


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("[round(x / 3) for x in range(4)]", [0, 0, 1, 1]),
        ("[-x // 2 % 5 + 1.5 for x in range(2)]", [1.5, 5.5]),
        ("[(x, [x]) for x in range(1, 9, 4)]", [(1, [1]), (5, [5])]),
        ("'text'", "text"),
    ],
)
def test_arithmetic(expression, value):
    assert evaluate_arithmetic(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "[x for x in ().__class__.__bases__]",
        "[x for x in range(9) if x]",
        "[[y for y in range(x)] for x in range(9)]",
        "[x for x in range(10 ** 9)]",
        "9 ** 9 ** 9",
        "'a' * 1000000000",
        "[1] * 1000000000",
        "range(3)",
        "x",
        "(lambda: 1)()",
        "int('1')",
    ],
)
def test_anything_else_is_refused(expression):
    with pytest.raises(ValueError, match="not allowed in a configuration file|is not a number"):
        evaluate_arithmetic(expression)


def test_long_ranges_are_refused():
    with pytest.raises(ValueError, match="has 1000000000 elements, at most 10000 are allowed"):
        evaluate_arithmetic("[x for x in range(1000000000)]")


def test_code_in_files_runs_only_on_request(merge):
    text = "OUTPUT_DIR: !!python/object/apply:eval [\"str('out') + 'put'\"]"
    with pytest.raises(ValueError, match=r"c\.yaml, line 1: not allowed in a configuration file.*allow_unsafe=True"):
        merge(text)
    assert merge(text, allow_unsafe=True).OUTPUT_DIR == "output"
    for tag in ("object/apply:os.system ['true']", "name:os.system", 'object/apply:eval ["1 / 0"]'):
        with pytest.raises(ValueError, match=r"c\.yaml, line 1: .*allow_unsafe=True"):
            merge(f"OUTPUT_DIR: !!python/{tag}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A: [1", r"c\.yaml, line \d: not valid YAML: "),
        ("- 1", r"c\.yaml holds a list, expected a mapping"),
        ("_BASE_: 3", r"c\.yaml: _BASE_ is 3, expected the name of a file or a list of names"),
        ("_BASE_: c.yaml", r"c\.yaml -> .*c\.yaml: _BASE_ leads back to where it started"),
        ("VERSION: new", r"c\.yaml: VERSION is 'new', expected a whole number"),
    ],
)
def test_bad_files_are_named(merge, text, message):
    with pytest.raises(ValueError, match=message):
        merge(text)


def test_a_missing_base_names_its_heir(merge, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"c\.yaml: no file .*nowhere\.yaml, which _BASE_ names"):
        merge("_BASE_: nowhere.yaml")
    (tmp_path / "mid.yaml").write_text("_BASE_: nowhere.yaml")
    with pytest.raises(FileNotFoundError, match=r"mid\.yaml: no file .*nowhere\.yaml, which _BASE_ names"):
        merge("_BASE_: mid.yaml")


def test_an_empty_file_changes_nothing(merge):
    assert merge("# nothing\n") == get_cfg()


def test_upgrade_needs_a_known_version():
    assert upgrade_config(CfgNode({"VERSION": 1, "MODEL": {"WEIGHT": "a"}})).MODEL.WEIGHTS == "a"
    with pytest.raises(ValueError, match="VERSION 2 cannot become VERSION 1"):
        upgrade_config(get_cfg(), to_version=1)
