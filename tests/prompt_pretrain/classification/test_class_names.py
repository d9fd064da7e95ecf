import pytest

from prompt_pretrain.classification.class_names import names_of_folders, read_class_names, tie_ceiling
from prompt_pretrain.errors import InputError


def write(path, text: str):
    path.write_bytes(text.encode())
    return path


def test_text_files_hold_a_folder_and_a_name_per_line(tmp_path):
    path = write(
        tmp_path / "classnames.txt", "n1 great white shark\r\n\nn2  tench \nn0 black-and-gold (garden) spider\n"
    )
    expected = {"n1": "great white shark", "n2": "tench", "n0": "black-and-gold (garden) spider"}
    assert read_class_names(path) == expected
    assert list(read_class_names(path)) == ["n1", "n2", "n0"]


@pytest.mark.parametrize(
    "text", ['{"n1": "a b", "n2": "c"}', '[["n1", "a b"], ["n2", "c"]]', '{"0": ["n1", "a b"], "1": ["n2", "c"]}']
)
def test_json_files_hold_the_same_in_any_usual_form(tmp_path, text):
    assert read_class_names(write(tmp_path / "names.json", text)) == {"n1": "a b", "n2": "c"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "n1 tench\nn2\n", "a.txt line 2: 'n2' has no class name; expected '<folder> <class name>'"),
        ("a.txt", "n1 tench\nn1 carp\n", "a.txt names folder n1 twice: 'tench' and 'carp'; keep one"),
        ("a.txt", "\n", "a.txt is empty; expected lines"),
        ("a.json", "{", "a.json is not JSON"),
        ("a.json", "3", "a.json holds a int; expected"),
        ("a.json", "[3]", "a.json: unusable entry 3; expected"),
        ("a.json", '{"n1": 3}', r"a.json: unusable entry \('n1', 3\); expected"),
    ],
)
def test_bad_files_are_named(tmp_path, name, text, message):
    with pytest.raises(InputError, match=message):
        read_class_names(write(tmp_path / name, text))


def test_missing_and_binary_files_are_named(tmp_path):
    with pytest.raises(InputError, match="nowhere.txt: No such file or directory; expected lines"):
        read_class_names(tmp_path / "nowhere.txt")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="a.txt: not UTF-8 text"):
        read_class_names(tmp_path / "a.txt")


def test_folders_without_a_name_are_counted_and_named():
    assert names_of_folders(["b", "a"], {"a": "x", "b": "y", "unused": "z"}, "f.txt") == ("y", "x")
    with pytest.raises(InputError, match=r"3 of 4 class folders have no class name in f.txt: c, d, e; add their names"):
        names_of_folders(["a", "c", "d", "e"], {"a": "x", "d": " "}, "f.txt")


def test_images_of_later_equal_names_cannot_be_right():
    names = ["sea_lion", "crane", "Sea  lion", "crane", "crane"]
    assert tie_ceiling(names, [0, 1, 2, 3, 4]) == pytest.approx(40)
    assert tie_ceiling(names, [0, 0, 0, 2]) == pytest.approx(75)
    assert tie_ceiling(["a", "b"], [0, 1]) == 100
    assert tie_ceiling(names, []) == 100
