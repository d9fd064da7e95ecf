from prompt_pretrain.wording import counted


def test_one_thing_is_singular() -> None:
    assert [counted(number, "image") for number in (0, 1, 2, 1200)] == [
        "0 images",
        "1 image",
        "2 images",
        "1,200 images",
    ]
    assert counted(2, "box", "boxes") == "2 boxes"
