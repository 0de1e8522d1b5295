"""What mkdocs calls: the plots and the notebooks' pages are made while it builds."""

import notebooks
import plots
from mkdocs.structure.files import File

from crossent.tools.explain import explain
from crossent.tools.explain.command import worked_example


def on_files(files, config):
    for name in plots.PLOTS:
        for scheme in plots.COLOURS:
            files.append(File.generated(config, f"plots/{name}-{scheme}.svg", content=plots.svg(name, scheme)))
    files.append(File.generated(config, "plots/explanation.svg", content=plots.explanation()))
    files.append(File.generated(config, "play.html", content=explain(*worked_example()).to_play()))
    for path in notebooks.NOTEBOOKS.values():
        page, images = notebooks.page(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page))
        for name, image in images.items():
            files.append(File.generated(config, f"notebooks/{name}", content=image))
    return files
