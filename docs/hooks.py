"""What the site does to pages beyond Markdown.

Docstrings may use Sphinx roles, which are shown as plain code. Notebooks become pages: a link to ``x.ipynb`` leads to
the page, and the page has the notebook to download.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROLE = re.compile(r":(?:func|class|meth|mod):(?=<code>)")
LINK = re.compile(r"(\]\([^)\s:]+)\.ipynb(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook."""
    from mkdocs.structure.files import File

    for file in [each for each in files if each.src_uri.endswith(".ipynb")]:
        page = notebook_page(json.loads(file.content_string), file.src_uri.rpartition("/")[2])
        files.append(File.generated(config, f"{file.src_uri.removesuffix('.ipynb')}.md", content=page))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links to notebooks lead to their pages."""
    return LINK.sub(r"\1.md", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Drop the role in front of the code it marks."""
    return ROLE.sub("", html)


def notebook_page(notebook: dict[str, Any], name: str) -> str:
    """Return a notebook as Markdown, with what its cells print and show."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [_shown(output) for output in cell["outputs"]]
    parts.insert(1, f'<small><a href="{name}" download>The notebook itself</a></small>')
    return "\n\n".join(parts) + "\n"


def _shown(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        text = "".join(output["text"]).rstrip()
        return f"```text\n{text}\n```"
    if "image/png" in output["data"]:
        return f'![What the cell shows](data:image/png;base64,{output["data"]["image/png"]}){{ width="480" }}'
    return f"```text\n{''.join(output['data']['text/plain'])}\n```"
