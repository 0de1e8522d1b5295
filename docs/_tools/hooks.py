"""What mkdocs calls: what the pages have that is made while they are built."""

import re

import formulas
import notebooks
import plots
from mkdocs.structure.files import File

from crossent.tools.explain import explain
from crossent.tools.explain.command import worked_example

PLOT = re.compile(r"!\[(.*?)\]\(plots/(\w+)-(light|dark)\.svg")


def on_config(config):
    config.mdx_configs["pymdownx.superfences"] = {
        "custom_fences": [{"name": "math", "class": "math", "format": formulas.fence}]
    }
    return config


def on_files(files, config):
    for name in plots.PLOTS:
        for scheme in plots.COLOURS:
            files.append(File.generated(config, f"plots/{name}-{scheme}.svg", content=plots.svg(name, scheme)))
    files.append(File.generated(config, "plots/explanation.svg", content=plots.explanation()))
    for language, name in {"en": "play.html", "zh": "play.zh.html"}.items():
        files.append(File.generated(config, name, content=explain(*worked_example(), lang=language).to_html()))
    for language, path in notebooks.NOTEBOOKS.items():
        page, images = notebooks.page(language)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page))
        for name, image in images.items():
            files.append(File.generated(config, f"notebooks/{name}", content=image))
    return files


def on_page_markdown(markdown, **_):
    """The numbers of a plot, in words, for those who cannot see it."""
    return PLOT.sub(lambda found: found[0].replace(found[1], f"{found[1]}: {plots.in_words(found[2])}", 1), markdown)


def on_page_content(html, **_):
    """Tables that leave a cell empty where it is the one above get a row of its own for it, and no empty headings."""
    html = re.sub("<table>.*?</table>", lambda found: _grouped(found[0]), html, flags=re.DOTALL)
    return re.sub(r"<th([^>]*)></th>", r"<td\1></td>", html)


def _grouped(table):
    if not re.search(r"<tr>\s*<td></td>", table):
        return table
    columns = len(re.findall(r"<th\b", table))
    table = re.sub(r"<th\b.*?</th>\s*", "", table, count=1)
    head = rf'<tr><th colspan="{columns - 1}" scope="colgroup">\2</th></tr>\n\1'
    return re.sub(r"(<tr>\s*)<td></td>", r"\1", re.sub(r"(<tr>\s*)<td>(.+?)</td>", head, table))


def on_page_context(context, page, config, nav):
    """A page is in one language: its text, the theme's own words and the names in the navigation.

    The names of pages in another language say so.
    """
    config.theme["language"] = language = page.meta.get("language", "en")
    names = config.extra["navigation"].get(language, {})
    for item in _all_of(nav):
        item.english = getattr(item, "english", item.title)
        item.title = names.get(item.english, item.english)
        if item.is_page and item.meta.get("language", "en") != language:
            item.title += config.extra["foreign"].get(language, "")


def on_post_page(output, **_):
    """What the theme has that these pages have not: requests to hosts of repositories, and a dialog without a name."""
    name = re.search(r'placeholder="(.*?)"', output)
    output = output.replace(' data-md-component="source"', "")
    return output.replace(' role="dialog"', f' role="dialog" aria-label="{name[1]}"') if name else output


def _all_of(items):
    for item in items:
        yield item
        yield from _all_of(item.children or ())
