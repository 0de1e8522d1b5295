"""An explanation as HTML that needs no other file, and takes the light or dark colours of where it stands."""

from jinja2 import Environment

from crossent.tools.explain import words

_STYLE = """
.crossent { font: 14px/1.45 system-ui, sans-serif; max-width: 60em; }
.crossent h3 { font-size: 1.15em; margin: 0 0 .2em; }
.crossent p { margin: .3em 0; }
.crossent code { font: .93em ui-monospace, monospace; background: none; color: inherit; }
.crossent .wide { overflow-x: auto; margin: 1em 0; }
.crossent table { border-collapse: collapse; color: inherit; }
.crossent caption { text-align: left; padding: 0 0 .2em; white-space: nowrap; }
.crossent caption b { margin-right: .8em; }
.crossent caption span { margin-right: .8em; opacity: .8; }
.crossent th, .crossent td { padding: .15em .7em; text-align: right; font-variant-numeric: tabular-nums; }
.crossent th { font-weight: normal; opacity: .65; }
.crossent th:first-child, .crossent td:first-child { text-align: left; white-space: nowrap; padding-left: 0; }
.crossent .picked { font-weight: bold; box-shadow: inset 2px 0 #2a9d6f, inset -2px 0 #2a9d6f; opacity: 1; }
.crossent .checks td, .crossent .checks td:first-child { text-align: left; padding: 0 1em 0 0; }
.crossent .checks td:last-child { white-space: nowrap; }
.crossent .finding { border-left: 4px solid #3b82c4; padding: .1em .7em; margin: .6em 0; }
.crossent .warning { border-color: #d69e00; } .crossent .error { border-color: #d43d3d; }
.crossent pre { font: .85em/1.4 ui-monospace, monospace; opacity: .75; white-space: pre-wrap; background: none; }
"""

_FRAGMENT = """
<div class="crossent"><style>{{ style }}</style>
<h3>{{ words.headline(e) }}</h3>
<p>{% for formula in words.formulas(e) %}<code>{{ formula }}</code>&emsp;{% endfor %}</p>
{% for finding in e.findings %}<p class="finding {{ finding.severity }}"><b>{{ finding.severity }}</b>
{{ finding.sentence }}</p>
{% endfor %}{% for row in e.rows %}{% set index = loop.index0 %}{% set hidden = e.classes - row.classes | length %}
<div class="wide"><table>
<caption>{% for part in words.title(e, index) %}{% if loop.first %}<b>{{ part }}</b>{% else %}<span>{{ part }}</span>
{% endif %}{% endfor %}{% if row.reason %}<span>({{ row.reason }})</span>{% endif %}</caption>
<tr><th>class</th>{% for c in row.classes %}<th{{ mark(row, c) }}>{{ "y = " if picked(row, c) }}{{ c }}</th>{% endfor %}
{% if hidden %}<th>{{ hidden }} others</th>{% endif %}</tr>
{% for step, formula, cells in words.class_lines(e, index) %}
<tr title="{{ step.name }}: {{ step.note }}"><td><code>{{ formula }}</code></td>
{% for c in row.classes %}<td{{ mark(row, c) }}{{ shade(step, cells[loop.index0]) }}>
{{ words.number(cells[loop.index0]) }}</td>{% endfor %}
{% if hidden %}<td>{{ words.number(cells[-1]) }}</td>{% endif %}</tr>
{% endfor %}</table></div>
{% endfor %}{% if words.reduction(e) %}<p><code>{{ words.reduction(e) }}</code></p>{% endif %}
<p>{{ words.summary(e) }}</p>
<table class="checks">{% for check in e.checks %}<tr><td>{{ "ok" if check.passed else "NOT SO" }}</td>
<td>{{ check.name }}</td><td>{{ "%g" | format(check.digits) }} digits</td></tr>{% endfor %}</table>
<pre>{{ e.plan }}</pre></div>
"""

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><title>{{ title }}</title>
<link rel="icon" href="data:,"><style>body { margin: 2em; }</style></head>
<body>{{ fragment }}</body></html>
"""

_environment = Environment(autoescape=True)


def fragment(explanation):
    """For a notebook."""
    template = _environment.from_string(_FRAGMENT)
    return template.render(e=explanation, words=words, style=_safe(_STYLE), mark=_mark, picked=_picked, shade=_shade)


def page(explanation):
    """A whole document."""
    template = _environment.from_string(_PAGE)
    return template.render(title=words.headline(explanation), fragment=_safe(fragment(explanation)))


def _safe(markup):
    return _environment.filters["safe"](markup)


def _picked(row, c):
    return row.state == "counts" and c == row.label


def _mark(row, c):
    return _safe(' class="picked"') if _picked(row, c) else ""


def _shade(step, value):
    """Probabilities have a background as strong as they are large."""
    if step.name != "softmax" or not value > 0.0:
        return ""
    return _safe(f' style="background: rgba(59, 130, 196, {0.75 * min(1.0, value):.3f})"')
