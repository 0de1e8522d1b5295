"""The lesson's notebooks are their source, in both languages, and say what their code says when it is run."""

import base64
import re
import struct

import nbformat
import notebooks
import pytest

COMMITTED = {language: nbformat.read(path, as_version=4) for language, path in notebooks.NOTEBOOKS.items()}


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("language", COMMITTED)
def test_cells_are_those_of_the_source(language):
    made, committed = notebooks.unexecuted(language), COMMITTED[language]
    nbformat.validate(committed)
    assert [(c.cell_type, c.id, c.source, c.metadata) for c in made.cells] == [
        (c.cell_type, c.id, c.source, c.metadata) for c in committed.cells
    ]


@pytest.mark.parametrize("language", COMMITTED)
def test_every_picture_has_a_text(language):
    """In its language, and the texts of its pages name what the pictures show."""
    pictures = [
        cell for cell in code(COMMITTED[language]) if any("image/png" in o.get("data", ()) for o in cell.outputs)
    ]
    assert len(pictures) == 5 and all(len(cell.metadata["alt"]) > 30 for cell in pictures)
    assert sum("alt" in cell.metadata for cell in COMMITTED[language].cells) == 5
    text, _ = notebooks.page(language)
    assert all(f"![{cell.metadata['alt']}](" in text for cell in pictures) and "![png]" not in text
    assert all(bool(re.search(r"[\u4e00-\u9fff]", cell.metadata["alt"])) == (language == "zh") for cell in pictures)


def test_the_languages_differ_in_their_text_alone():
    english, chinese = COMMITTED["en"], COMMITTED["zh"]
    assert [c.cell_type for c in english.cells] == [c.cell_type for c in chinese.cells]
    for one, other in zip(english.cells, chinese.cells):
        if one.cell_type == "code":
            assert one.source == other.source
        else:
            # headings, lists, tables, formulas and paragraphs
            lines = re.compile(r"^(#+|- |\d\.|\||\$\$\n.*|$)", re.MULTILINE)
            assert lines.findall(one.source) == lines.findall(other.source)
            assert not re.search(r"[\u4e00-\u9fff]", one.source) and re.search(r"[\u4e00-\u9fff]", other.source)


def said(cell):
    """What a cell put out: text as it is, of images the size, of what varies from run to run only the kind."""
    for output in cell.outputs:
        assert output.output_type in ("stream", "display_data") and output.get("name") != "stderr", output
        if "varies" in cell.metadata.get("tags", ()):
            yield output.output_type
        elif output.output_type == "stream":
            yield output.text
        else:
            yield struct.unpack(">II", base64.b64decode(output.data["image/png"])[16:24])


def test_outputs_are_those_of_a_run():
    """One run for both: their code is the same."""
    ran = [[*said(cell)] for cell in code(notebooks.execute(notebooks.unexecuted("en")))]
    assert sum(map(len, ran)) > 20
    for language, committed in COMMITTED.items():
        assert [[*said(cell)] for cell in code(committed)] == ran, language


def test_the_worked_example():
    (five,) = [cell for cell in code(COMMITTED["en"]) if cell.source.startswith("five = {")]
    assert re.findall(r"[\d.]+$", five.outputs[0].text, re.MULTILINE) == 5 * ["2.1275"]


def test_the_fused_head_takes_less_memory():
    for notebook in COMMITTED.values():
        (measured,) = [cell for cell in code(notebook) if "def megabytes" in cell.source]
        theirs, ours = map(int, re.findall(r"(\d+) MB", measured.outputs[0].text))
        assert 2 * ours < theirs


def test_page_has_text_code_outputs_and_images():
    text, images = notebooks.page("zh")
    assert text.startswith("---\ntitle: 从 softmax 到交叉熵\nlanguage: zh\n---\n")
    assert "# 从 softmax 到交叉熵" in text and "```python" in text and "2.1275" in text
    assert len(images) == 5 and all(f"({name})" in text for name in images)
