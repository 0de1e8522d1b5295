"""An explanation in the terminal: colours where there are any, plain text elsewhere."""

from rich.console import Console
from rich.text import Text

from crossent.tools.explain.lines import lines, of_finding


def show(explanation, console=None):
    console = console or Console(highlight=False)
    for line in lines(explanation):
        console.print(Text.assemble(*line))


def finding_line(finding):
    return Text.assemble("\n", *of_finding(finding))
