import pytest

from prompt_pretrain import metadata
from prompt_pretrain.errors import InputError
from prompt_pretrain.metadata import metadata_file, read_columns, read_metadata


def test_folders_are_searched_in_order(tmp_path, monkeypatch):
    (tmp_path / "own.json").write_text('{"columns": ["id", "name"], "rows": [[1, "a"], [2, "b"]]}')
    monkeypatch.setenv("OPENVOCAB_METADATA", str(tmp_path))
    assert metadata_file("own.json") == tmp_path / "own.json"
    assert read_columns("own.json") == {"id": (1, 2), "name": ("a", "b")}
    assert metadata_file("prompt_templates.json").parent.parts[-2:] == ("datasets", "metadata")


def test_installed_without_data_says_what_to_set(tmp_path, monkeypatch):
    monkeypatch.setattr(metadata, "__file__", str(tmp_path / "site-packages" / "prompt_pretrain" / "metadata.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match="x.json not found in .*; set OPENVOCAB_METADATA to the datasets/metadata folder"
    ):
        metadata_file("x.json")


def test_no_sentences_were_copied():
    assert "def" not in read_columns("lvis_v1_categories.json")
    assert set(read_metadata("segmentation_classes.json")["voc_20"]) == {
        "classes", "raw_png_value", "seen_index", "unseen_index",
    }  # fmt: skip
