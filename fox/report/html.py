"""The templates of Fox's pages. All that they show of a run, a corpus or a page of the web is foreign text, and is escaped."""

from __future__ import annotations

import base64
from importlib import resources

import jinja2

_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">'
    '<path fill="#c4501b" d="M1 1l4 3h6l4-3v7l-7 7-7-7z"/></svg>'
)


def template(name: str) -> jinja2.Template:
    """A template of this folder, with automatic escaping; what it is not given is an error."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(lambda name: resources.files("fox.report").joinpath(name).read_text("utf-8")),
    )
    return environment.get_template(name)


def icon_address() -> str:
    """The page's icon, as an address that holds it."""
    return "data:image/svg+xml;base64," + base64.b64encode(_ICON.encode()).decode()
