import base64
import re

from prompt_pretrain.report import Commands, Facts, Picture, Pictures, Report, Table, Text


def example():
    report = Report("Shapes & stars", footer="Made by `make`.")
    report.add(Text("Three <b>numbers</b> first.", lead=True), Facts([("91.2 %", "accuracy")]))
    report.section("Results")
    report.add(
        Table(["prompt", "top-1"], [["hard", "20.0"], ["a|b", "30.0"]], caption="In `percent`.", strong=[1]),
        Pictures([Picture("curve", b"\x89PNG not really", "The loss.", 'a "falling" line')]),
        Commands(["make quickstart", 'echo "<>"']),
    )
    return report


def test_page_stands_alone_and_escapes_what_it_shows():
    page = example().html()
    assert "<title>Shapes &amp; stars</title>" in page
    assert "Three &lt;b&gt;numbers&lt;/b&gt; first." in page
    assert "<tr class=strong><td>a|b</td><td>30.0</td></tr>" in page
    assert "In <code>percent</code>." in page
    assert 'alt="a &quot;falling&quot; line"' in page
    assert base64.b64encode(b"\x89PNG not really").decode() in page
    assert 'name="viewport"' in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing is fetched
    assert "<script" not in page


def test_markdown_says_the_same_with_pictures_beside_it():
    text = example().markdown()
    assert text.startswith("# Shapes & stars\n\nThree <b>numbers</b> first.\n\n- **91.2 %** accuracy\n\n## Results\n")
    assert "| prompt | top-1 |\n| :-- | --: |\n| hard | 20.0 |\n| **a\\|b** | **30.0** |" in text
    assert '![a "falling" line](figures/curve.png)' in text
    assert '```bash\nmake quickstart\necho "<>"\n```' in text


def test_saving_writes_page_text_and_pictures(tmp_path):
    page = example().save(tmp_path / "run")
    assert page == tmp_path / "run" / "report.html"
    assert page.read_text() == example().html()
    assert (tmp_path / "run" / "report.md").read_text() == example().markdown()
    assert (tmp_path / "run" / "figures" / "curve.png").read_bytes() == b"\x89PNG not really"


def test_a_jpeg_is_called_one():
    report = Report("Photos")
    report.add(Pictures([Picture("street", b"\xff\xd8\xff not really", "A street.", "a street")]))
    assert 'src="data:image/jpeg;base64,' in report.html()
    assert "](figures/street.jpg)" in report.markdown()
