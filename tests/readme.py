"""The README's commands, by the heading they stand under."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.serving import ROOT


def sections() -> Iterator[tuple[str, str]]:
    """Every heading of the README and the text below it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for part in text.split("\n## ")[1:]:
        heading, _, body = part.partition("\n")
        yield heading, body


def commands(heading: str) -> list[str]:
    """The shell commands under a heading, each in one line and without what is said of it."""
    blocks = re.findall(r"```bash\n(.*?)```", dict(sections())[heading], re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    lines: list[str] = []
    for line in joined.splitlines():
        open_quote = bool(lines) and lines[-1].count("'") % 2 == 1  # a body of JSON that goes on in the next line
        if open_quote:
            lines[-1] += f" {line.strip()}"
        elif line.strip() and not line.startswith("#"):
            lines.append(line)
    return [re.sub(r"\s+#.*", "", line).strip() for line in lines]


def programs(heading: str) -> list[str]:
    """The Python programs under a heading."""
    return re.findall(r"```python\n(.*?)```", dict(sections())[heading], re.DOTALL)
