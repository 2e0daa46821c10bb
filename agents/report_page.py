"""A report as one HTML page that needs nothing from outside."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from agents.report_figures import GRID, PALETTE, TEXT


class Figure(NamedTuple):
    """A drawn figure: its file's name, what it shows, and itself as SVG."""

    name: str
    caption: str
    svg: str

    @property
    def inline(self) -> Markup:
        """The SVG as part of a page: it follows the page's colours and width."""
        drawn = self.svg[self.svg.index("<svg") :].replace(TEXT, "currentColor").replace(GRID, "var(--grid)")
        drawn = drawn.replace("fill: #ffffff", "fill: none").replace("#ffffff", "var(--paper)")
        for index, colour in enumerate(PALETTE):
            drawn = drawn.replace(colour.lower(), f"var(--colour{index})")
        drawn = re.sub(r'(<svg[^>]*?) height="[^"]*"([^>]*?) width="[^"]*"|(<svg[^>]*?) width="[^"]*"([^>]*?) height="[^"]*"', r"\1\2\3\4", drawn, count=1)
        return Markup(re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL))


def page(report: Any, figures: Mapping[str, Sequence[Figure]], together: Figure | None) -> str:
    """The page of a report, with the figures of each environment by its name."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("agents", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("report.html.j2").render(report=report, palette=PALETTE, figures=figures, together=together)
