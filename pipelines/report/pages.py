"""HTML pages that open from disk and need no network, from the templates beside this file."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def render(template: str, **values: Any) -> bytes:
    """A page; a name that the template has and `values` has not is an error."""
    environment = Environment(
        loader=PackageLoader("pipelines.report"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(template).render(**values).encode()
