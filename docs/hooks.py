"""What mkdocs adds to the folder docs/: a page per package from the docstrings, and files from the repository's root.

Documents link to files of the repository by relative paths, so that they can be read without the site. On the site, a
link to a module leads to its place in the reference, and a link to a file that is on no page becomes plain text.
"""

import ast
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PACKAGES = ("model", "data_prep", "captioning", "pipelines", "jobs")
# Page → file of the repository that it shows.
COPIED = {
    "index.md": "README.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "benchmarks/RESULTS.md": "benchmarks/RESULTS.md",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
# Code blocks hold no links.
_CODE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for page, source in COPIED.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for package in PACKAGES:
        files.append(File.generated(config, f"reference/{package}.md", content=_reference(package)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links to files of the repository."""
    source = page.file.src_uri
    origin = COPIED.get(source, f"docs/{source}")

    def rewrite(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        if "://" in target or target.startswith(("#", "mailto:")):
            return match[0]
        path, _, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
        if not (ROOT / path).exists():
            raise PluginError(f"{origin}: the link {target} leads to no file")
        found = _page_of(path)
        if found is None:
            return text
        link, own_anchor = found
        link = posixpath.relpath(link, posixpath.dirname(source) or ".")
        anchor = anchor or own_anchor
        return f"{image}[{text}]({link}{'#' + anchor if anchor else ''})"

    if source.startswith("reference/"):
        return markdown
    pieces = _CODE.split(markdown)  # text and code blocks in turn
    return "".join(piece if number % 2 else _LINK.sub(rewrite, piece) for number, piece in enumerate(pieces))


def _page_of(path: str) -> tuple[str, str] | None:
    """Return the page that shows a file of the repository, and the anchor on it; None when no page does."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/"), ""
    for page, source in COPIED.items():
        if path == source:
            return page, ""
    package = path.split("/")[0]
    if package in PACKAGES and path.endswith(".py"):
        return f"reference/{package}.md", _module(path)
    return None


def _module(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def _reference(package: str) -> str:
    """Return the page of a package: each module with its public members, in the order of their paths."""
    parts = [f"# {package}", ""]
    for path in sorted((ROOT / package).rglob("*.py")):
        if path.name == "__init__.py" and ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is None:
            continue
        members = "\n    options: {members: false}" if path.name == "__init__.py" else ""
        parts += [f"::: {_module(path.relative_to(ROOT).as_posix())}{members}", ""]
    return "\n".join(parts)
