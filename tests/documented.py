"""What README.md and the pages of docs/ tell a reader to type, to put into files and to look at."""

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
# In which the pages are read, and their commands run; pages not named here come after these.
ORDER = (
    *(
        "data",
        "training",
        "preferences",
        "ppo",
        "use",
        "faults",
        "search",
        "benchmarks",
        "clusters",
    ),
    "how-it-computes",
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE_NAME = re.compile(r"# (\S+\.toml)\n")


class Block(NamedTuple):
    page: Path
    language: str
    text: str

    @property
    def file_name(self) -> str | None:
        """Of the whole file that it is: its first line says so, as `# NAME.toml`."""
        named = FILE_NAME.match(self.text)
        return named[1] if named else None


def pages() -> list[Path]:
    docs = ROOT / "docs"
    named = [docs / f"{name}.md" for name in ORDER]
    return [ROOT / "README.md", *named, *sorted(set(docs.glob("*.md")) - set(named))]


def blocks(language: str) -> Iterator[Block]:
    for page in pages():
        for found, text in BLOCK.findall(page.read_text()):
            if found == language:
                yield Block(page, found, text)


def lines() -> list[str]:
    """The commands of all sh blocks, each once, where it stands first."""
    texts = "\n".join(block.text for block in blocks("sh")).replace("\\\n", " ")
    commands = (line.split("  #")[0].strip() for line in texts.splitlines())
    return list(dict.fromkeys(filter(None, commands)))


def commands(program: str) -> list[list[str]]:
    """The words after the program's name, of each of its lines."""
    typed = [line.removeprefix(".venv/bin/") for line in lines()]
    return [shlex.split(line)[1:] for line in typed if line.startswith(program + " ")]


def overrides(words: list[str]) -> list[str]:
    """The values of --set."""
    return [value for option, value in pairwise(words) if option == "--set"]


def links(page: Path) -> list[str]:
    """Where its Markdown links lead, but those to the web."""
    text = BLOCK.sub("", page.read_text())
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
