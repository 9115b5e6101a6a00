"""Render the HTML templates of this package to pages that open from disk and need no network."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def render(template: str, **values: Any) -> bytes:
    """Render a template to an HTML page.

    Args:
        template: the template's file name.
        **values: what the template shows; a name that the template uses and that is missing here raises an error.

    Returns:
        The page, UTF-8.
    """
    environment = Environment(
        loader=PackageLoader("pipelines.report"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(template).render(**values).encode()
