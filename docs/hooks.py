"""What the site does to pages beyond Markdown: docstrings may use Sphinx roles, which are shown as plain code."""

from __future__ import annotations

import re
from typing import Any

ROLE = re.compile(r":(?:func|class|meth|mod):(?=<code>)")


def on_page_content(html: str, **_: Any) -> str:
    """Drop the role in front of the code it marks."""
    return ROLE.sub("", html)
