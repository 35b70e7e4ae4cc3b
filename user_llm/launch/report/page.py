"""The report as one HTML file that needs no network: Markdown rendered, figures inside; for phones and paper too."""

import base64
import html
import re
from pathlib import Path

from markdown_it import MarkdownIt

from user_llm.launch.report.document import Document

_STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}</main>
</body>
</html>
"""
_HEADING = re.compile(r"<h2>(.+?)</h2>")
_IMAGE = re.compile(r'<img src="figures/([\w.]+)" alt="([^"]*)" />')


def render(document: Document) -> str:
    """The page."""
    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(document.markdown)
    body = body.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")
    body = _with_contents(body)
    body = _IMAGE.sub(lambda match: _figure(document.figures[match[1]], match[2]), body)
    return _PAGE.format(title=html.escape(document.title), style=_STYLE, body=body)


def _with_contents(body: str) -> str:
    """The body with links to its parts, by what stands before a heading's first full stop, behind the title."""
    names = [heading.split(".")[0] for heading in _HEADING.findall(body)]
    places = {name: f"part-{number}" for number, name in enumerate(names)}
    links = " ".join(f'<a href="#{place}">{name}</a>' for name, place in places.items())
    body = _HEADING.sub(lambda found: f'<h2 id="{places[found[1].split(".")[0]]}">{found[1]}</h2>', body)
    return body.replace("</h1>", f"</h1>\n<nav>{links}</nav>", 1)


def _figure(svg: str, caption: str) -> str:
    data = base64.b64encode(svg.encode()).decode()
    return f'<img src="data:image/svg+xml;base64,{data}" alt="{caption}">'
