"""The pages of `docs/clients`: their snippets, and what the settings in them say.

A snippet is run when the line before it is `<!-- run; shows: A | B -->`: it then has to succeed, and A and B have to
be in what it prints. With `run with cl100k` it finds OpenAI's vocabulary on its disk; otherwise it has to do without.
With `run with cohere 5` it runs in the environment of the libraries that want that version.
"""

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ADDRESS", "PAGES", "TEXTS", "Snippet", "read_installs", "read_setting", "read_snippets"]

PAGES = Path(__file__).parents[2] / "docs" / "clients"
ADDRESS = "http://127.0.0.1:8000"
# What every snippet that embeds leaves in `vectors`.
TEXTS = ["The tide follows the moon.", "Yeast makes bread rise."]

_BLOCK = re.compile(
    r"^<!-- run(?: with (?P<extra>cl100k|cohere 5))?; shows: (?P<shows>.+?) -->\n"
    r"```(?P<language>\w+)\n(?P<code>.+?)^```$",
    re.MULTILINE | re.DOTALL,
)
_INSTALL = re.compile(r"^(pip|npm) install (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Snippet:
    """One block of code as it is printed."""

    name: str
    language: str
    code: str
    shows: tuple[str, ...]
    extra: str

    @property
    def needs_vocabulary(self) -> bool:
        return self.extra == "cl100k"

    @property
    def needs_cohere5(self) -> bool:
        return self.extra == "cohere 5"

    @property
    def leaves_vectors(self) -> bool:
        return "vectors = " in self.code


def read_snippets() -> list[Snippet]:
    return [
        Snippet(f"{page.stem}-{number}", m["language"], m["code"], tuple(m["shows"].split(" | ")), m["extra"] or "")
        for page in sorted(PAGES.glob("*.md"))
        for number, m in enumerate(_BLOCK.finditer(page.read_text("utf-8")), 1)
    ]


def read_installs(page: Path) -> list[tuple[str, str]]:
    """Return (pip or npm, package) for all that the page has its reader install."""
    found = _INSTALL.findall(page.read_text("utf-8"))
    return [(tool, package) for tool, packages in found for package in packages.split()]


def read_setting(page: str, name: str) -> str:
    """Return the value of `NAME=value` or of the table row `| NAME | value |` (the last cell that has one)."""
    text = (PAGES / page).read_text("utf-8")
    match = re.search(rf"^{re.escape(name)}=(.+)$", text, re.MULTILINE)
    if match is None:
        match = re.search(rf"^\| {re.escape(name)} \|.* `(.+?)` \|$", text, re.MULTILINE)
    assert match is not None, f"{page} does not say {name}"
    return match[1]
