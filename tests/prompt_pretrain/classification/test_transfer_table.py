"""The paper's Table 2: its numbers, what is chosen and missing, averages, text and JSON."""

from pathlib import Path
from statistics import fmean

import pytest

from prompt_pretrain.classification.comparison import Comparison
from prompt_pretrain.classification.evaluation import Evaluation
from prompt_pretrain.classification.paper_results import CROSS_DATASET, CROSS_DOMAIN, TABLE_2
from prompt_pretrain.classification.transfer_table import TransferTable, choose_datasets, source_name
from prompt_pretrain.errors import InputError
from prompt_pretrain.vocabulary import load_vocabulary
from tests.classification_recipes import write_aircraft, write_domain_set, write_split_set


def comparison(name, *accuracies, classes=None, clip="ViT-B-16-quickgelu/openai"):
    names = load_vocabulary(name).class_names[:classes]
    rows = [
        Evaluation(f"row {i}", 10, len(names), {"accuracy": value, "perclass_accuracy": value / 2}, ())
        for i, value in enumerate(accuracies)
    ]
    return Comparison(name, "test", names, clip, tuple(rows))


def test_averages_that_the_paper_prints_agree_with_its_numbers():
    assert [row.name for row in TABLE_2] == ["hard prompt", "CoOp", "CoCoOp", "VPT", "MaPLe", "POMP"]
    for row in TABLE_2:
        assert set(row.accuracy) == {*CROSS_DATASET, *CROSS_DOMAIN}
        for group, members in (("cross-dataset", CROSS_DATASET), ("cross-domain", CROSS_DOMAIN)):
            assert fmean(row.accuracy[name] for name in members) == pytest.approx(row.average[group], abs=0.1)
    assert TABLE_2[-1].accuracy["EuroSAT"] == 52.1
    assert TABLE_2[-1].accuracy["ImageNetR"] == 77.9


def test_selections_name_all_that_is_missing_at_once(tmp_path):
    write_split_set(tmp_path, "EuroSAT")
    write_aircraft(tmp_path)
    write_domain_set(tmp_path, "ImageNetR")
    (tmp_path / "dtd").mkdir()  # without images
    with pytest.raises(InputError) as error:
        choose_datasets(["cross-dataset"], tmp_path)
    assert str(error.value).startswith("8 of 10 data sets are not there: Caltech101 (")
    assert f"DescribableTextures ({tmp_path}/dtd/images), UCF101 (" in str(error.value)
    assert "--skip-missing" in str(error.value)
    choice = choose_datasets(["all", "eurosat", "ImageFolder"], tmp_path, skip_missing=True)
    assert choice.names == ("FGVCAircraft", "EuroSAT", "ImageNetR", "ImageFolder")
    assert choice.groups == ("cross-dataset", "cross-domain")
    assert len(choice.missing) == 11
    assert choice.missing["ImageNetV2"] == tmp_path / "imagenetv2/imagenetv2-matched-frequency-format-val"
    # A set that is asked for by its own name is left to its reader, which says what is wrong.
    assert choose_datasets(["caltech101"], tmp_path) == choose_datasets(["Caltech101"], tmp_path)
    assert choose_datasets(["caltech101"], tmp_path).groups == ()
    assert choose_datasets(["caltech101", "eurosat"], tmp_path, skip_missing=True).names == ("EuroSAT",)
    with pytest.raises(InputError, match="none of the data sets is below .*; set --data-root"):
        choose_datasets(["cross-domain"], tmp_path / "dtd", skip_missing=True)
    with pytest.raises(InputError, match="unknown data set 'Pets'"):
        choose_datasets(["Pets"], tmp_path)


def test_the_papers_rows_stand_beside_ours():
    found = [comparison(name, 50.0 + i, 60.0) for i, name in enumerate(CROSS_DOMAIN)]
    table = TransferTable(found, ["ImageNet-21K", ""], ["cross-domain"], {})
    lines = table.text().splitlines()
    assert lines[0] == "cross-domain, top-1 accuracy in percent"
    assert lines[1].split() == ["source", "V2", "Sketch", "A", "R", "average"]
    assert lines[2].split() == ["ours:", "row", "0", "ImageNet-21K", "50.00", "51.00", "52.00", "53.00", "51.50"]
    assert lines[3].split()[3] == "–"
    assert lines[9].split() == ["paper:", "POMP", "ImageNet-21K", "63.8", "49.8", "51.6", "77.9", "60.8"]
    assert lines[11] == "cross-domain, mean per-class accuracy in percent"
    assert lines[13].split()[4:] == ["25.00", "25.50", "26.00", "26.50", "25.75"]
    assert not any("paper" in line for line in lines[12:15])
    assert not any("not comparable" in line for line in lines)
    content = table.as_json()
    assert content["ours"][0]["accuracy_average"] == {"cross-domain": 51.5}
    assert content["ours"][0]["perclass_accuracy"]["ImageNetR"] == 26.5
    assert content["paper"][-1]["accuracy_average"] == {"cross-domain": 60.8}
    assert content["paper"][1]["source"] == "ImageNet-1K"


def test_without_some_sets_both_averages_leave_them_out():
    found = [comparison("ImageNetV2", 60.0), comparison("ImageNetA", 50.0), comparison("Food101", 1.0)]
    missing = {"ImageNetSketch": Path("/data/s"), "ImageNetR": Path("/data/r")}
    table = TransferTable(found, [""], ["cross-domain"], missing)
    lines = table.text().splitlines()
    assert lines[1].split()[-3:] == ["avg", "of", "2"]
    assert lines[2].split()[-5:] == ["60.00", "–", "50.00", "–", "55.00"]
    assert lines[8].split()[-1] == "57.7"  # of 63.8 and 51.6
    assert "missing: ImageNetSketch, expected in /data/s; averages leave it out, the paper's too" in lines
    content = table.as_json()
    assert content["missing"][1] == {"data_set": "ImageNetR", "expected_in": "/data/r"}
    assert content["paper"][-1]["accuracy_average"]["cross-domain"] == pytest.approx(57.7)
    assert "Food101" not in content["ours"][0]["accuracy"]


def test_what_is_not_comparable_is_said():
    found = [comparison(name, 1.0, classes=3, clip="ViT-B-32/openai") for name in CROSS_DOMAIN]
    notes = TransferTable(found, [""], ["cross-domain"], {}).notes()
    assert "ours: of ViT-B-32/openai; the paper's numbers are of ViT-B/16" in notes
    assert "ImageNetA: 3 classes here, 200 in the published set: not comparable" in notes
    without = TransferTable(found, [""], ["cross-domain"], {}, with_paper=False)
    assert "paper" not in without.text()
    assert without.as_json()["paper"] == []


def test_sources_are_called_as_in_the_paper():
    assert [source_name(name) for name in ("ImageNet21K", "ImageNet", "ShapeWorld", "")] == [
        "ImageNet-21K",
        "ImageNet-1K",
        "ShapeWorld",
        "",
    ]
