"""The lesson's notebooks, made of their one source. Run as a program it executes and writes them."""

import os
import re
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[1] / "notebooks"
# The end of a line in the midst of Chinese text, where a space would show.
BREAK = re.compile(r"(?<=[^\x00-\x7f])\n(?=[^\x00-\x7f])|(?<=[，。；：（、])\n(?=[`A-Za-z])")
NOTEBOOKS = {"en": FOLDER / "lesson.ipynb", "zh": FOLDER / "lesson.zh.ipynb"}


def unexecuted(language: str) -> NotebookNode:
    """The cells in this language: all of the code, and the text of this language alone."""
    import jupytext

    source = jupytext.read(FOLDER / "lesson.py", fmt="py:percent")
    notebook = nbformat.v4.new_notebook()
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    for cell in source.cells[1:]:  # the first is the comment on the file
        text = BREAK.sub("", cell.source)
        if cell.cell_type == "code":
            made = nbformat.v4.new_code_cell(cell.source)
        elif cell.metadata.get("lang") != language:
            continue
        elif "alt" in cell.metadata.get("tags", ()):  # what the picture above shows
            notebook.cells[-1].metadata["alt"] = text.replace("\n", " ")
            continue
        else:
            made = nbformat.v4.new_markdown_cell(text)
        made.id = f"cell-{len(notebook.cells)}"  # the same in every build, for small diffs
        if "tags" in cell.metadata:
            made.metadata["tags"] = cell.metadata["tags"]
        notebook.cells.append(made)
    return notebook


def execute(notebook: NotebookNode) -> NotebookNode:
    from nbclient import NotebookClient

    os.environ["CROSSENT_QUIET"] = "1"  # where kernels were compiled on the way, a page has no word of it
    NotebookClient(notebook, timeout=120, kernel_name="python3", record_timing=False, coalesce_streams=True).execute()
    return notebook


def page(language: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its images by the names that the page has for them."""
    from nbconvert import MarkdownExporter

    path = NOTEBOOKS[language]
    notebook = nbformat.read(path, as_version=4)
    text, resources = MarkdownExporter().from_notebook_node(notebook, {"output_files_dir": f"{path.stem}_files"})
    texts = iter([cell.metadata["alt"] for cell in notebook.cells if "alt" in cell.metadata])
    text = re.sub(r"!\[png\]", lambda _: f"![{next(texts)}]", text)
    text = re.sub(r"^\$\$\n(.*)\n\$\$$", r"```math\n\1\n```", text, flags=re.MULTILINE)
    head = f"---\ntitle: {re.search('^# (.*)', text)[1]}\nlanguage: {language}\n---\n"
    return f"{head}[:material-download: {path.name}]({path.name})\n\n{text}", resources["outputs"]


def main() -> None:
    for language, path in NOTEBOOKS.items():
        nbformat.write(execute(unexecuted(language)), path)
        print(f"Written: {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
