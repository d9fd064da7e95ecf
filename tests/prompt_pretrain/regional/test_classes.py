import json

import pytest

from prompt_pretrain.errors import InputError
from prompt_pretrain.regional.classes import read_descriptions, read_json, regional_classes, safe_folders
from prompt_pretrain.regional.entries import make_entry, split_entry
from tests.prompt_pretrain.regional.tiny_lvis import CATEGORIES


def test_classes_are_in_the_order_of_their_ids_with_entries_as_published():
    classes = regional_classes(CATEGORIES[::-1], "a.json")
    assert [item.id for item in classes] == [1, 2, 4, 7]
    assert [item.base for item in classes] == [True, True, True, False]
    assert classes[0].line == "dog dog_which_is_a_domestic_animal"
    assert classes[1].line == (
        "bow_(decorative_ribbons) bow_(decorative_ribbons)_which_is_a_knot_of_ribbon_with_two_loops"
    )
    assert classes[2].line == "salt-pepper_mill salt/pepper_mill_which_is_a_mill_(for_spices)"


def test_the_published_corrections_of_lvis_names():
    names = ["speaker_(stero_equipment)", "monitor_(computer_equipment) computer_monitor"]
    rows = [{"id": i, "name": name, "def": "x", "frequency": "f"} for i, name in enumerate(names)]
    speaker, monitor = regional_classes(rows, "a.json")
    assert (speaker.name, speaker.folder) == (names[0], "speaker_(stereo_equipment)")
    assert speaker.entry == "speaker_(stereo_equipment)_which_is_x"
    assert monitor.folder == "monitor_(computer_equipment)_computer_monitor"


def test_folders_are_unique_and_safe_everywhere():
    names = ["..", ".hidden", "a/b", "a\\b", "a-b", "A-B", "CON", "nul.txt", "x" * 300, "x" * 301, "tab\tname", "dot."]
    folders = safe_folders(names)
    assert len({folder.casefold() for folder in folders}) == len(names)
    for folder in folders:
        assert folder and len(folder.encode()) <= 120
        assert not set(folder) & set('/\\:*?"<>| \t') and not folder.startswith(".") and not folder.endswith(".")
    assert folders[2:6] == ["a-b", "a-b-2", "a-b-3", "A-B-4"]
    assert safe_folders(["é" * 100])[0].encode()  # not cut within a letter


def test_entries_split_where_they_were_joined():
    assert split_entry(make_entry("sea lion", "a seal which is large")) == ("sea_lion", "a_seal_which_is_large")
    assert split_entry(make_entry("sea lion", "")) == ("sea_lion", "")


@pytest.mark.parametrize(
    "content",
    [
        {"dog": "a pet", "sea lion": "a seal"},
        [{"name": "dog", "description": "a pet"}, {"name": "sea lion", "def": "a seal"}],
        {"categories": [{"name": "dog", "def": "a pet"}, {"name": "sea_lion", "def": "a seal"}]},
        "dog dog_which_is_a_pet\nsea_lion sea lion_which_is_a seal\n",
    ],
)
def test_descriptions_from_a_users_file(tmp_path, content):
    path = tmp_path / ("d.txt" if isinstance(content, str) else "d.json")
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    rows = [{"id": 1, "name": "dog", "def": "unused"}, {"id": 2, "name": "sea_lion"}]
    classes = regional_classes(rows, "a.json", read_descriptions(path))
    assert [item.description for item in classes] == ["a pet", "a seal"]
    assert all(item.base for item in classes)


def test_what_is_wrong_is_named(tmp_path):
    def raises(message):
        return pytest.raises(InputError, match=message)

    with raises("not found; give an annotation file"):
        read_json(tmp_path / "none.json", ("images",))
    (tmp_path / "bad.json").write_text("{")
    with raises("bad.json is no valid JSON"):
        read_json(tmp_path / "bad.json", ("images",))
    with raises("bad.json is no valid JSON .*; expected"):
        read_descriptions(tmp_path / "bad.json")
    (tmp_path / "list.json").write_text('{"images": [3], "a": 1}')
    with raises("entry 0 of 'images' has no 'id'"):
        read_json(tmp_path / "list.json", ("images",))
    with raises("has no list 'annotations'"):
        read_json(tmp_path / "list.json", ("annotations",))
    with raises("holds something else than texts"):
        read_descriptions(tmp_path / "list.json")
    (tmp_path / "rows.json").write_text('[{"name": "dog"}]')
    with raises("an entry lacks 'def'"):
        read_descriptions(tmp_path / "rows.json")
    with raises("none.json not found; give a file of class descriptions"):
        read_descriptions(tmp_path / "none.json")
    (tmp_path / "d.txt").write_text("dog dog\n")
    with raises("dog has no description; expected"):
        read_descriptions(tmp_path / "d.txt")
    with raises("class 'cow' has no description in the file"):
        regional_classes([{"id": 1, "name": "cow"}], "a.json", {"dog": "x"})
    with raises("category 1 has an empty name"):
        regional_classes([{"id": 1, "name": "_"}], "a.json")
    with raises("category ids or names repeat"):
        regional_classes([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "a.json")
    with raises("frequency 'x'; expected r, c or f"):
        regional_classes([{"id": 1, "name": "a", "frequency": "x"}], "a.json")
