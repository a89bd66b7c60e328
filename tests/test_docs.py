"""The documents: their links lead somewhere, the commands they show exist, and so do the files they name."""

import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fluxbudgetctl.cli
import fluxbudgetd.cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bench/*.md")))
#: The documents that name files of the project in code spans.
MAPS = (ROOT / "CONTRIBUTING.md", ROOT / "docs" / "ARCHITECTURE.md", ROOT / "docs" / "sources.md")
FOLDERS = (".ci", "bench", "client", "config", "daemon", "docs", "requirements", "systemd", "tests")

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
#: A call of one of the programs in a line of shell, up to the end of the command.
CALL = re.compile(r"(?<![\w/.-])(fluxbudgetctl|fluxbudgetd)((?: +[^\s|&;<>()#]+)+)")
FILE = re.compile(r"[\w.-]+(/[\w.-]+)*(/|\.(c|md|py|service|toml|json))")


def prose(document: Path) -> str:
    """Return a document without its code blocks."""
    return FENCE.sub("", document.read_text())


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives a document's headings."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in HEADING.findall(prose(document)):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def broken_links(document: Path) -> Iterator[str]:
    """Yield the relative links of a document that lead to no file, or to no heading of a file."""
    for link in LINK.findall(SPAN.sub("", prose(document))):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if "://" not in link and (not target.exists() or (anchor and anchor not in anchors(target))):
            yield link


def calls(document: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the programs that a document calls, in code blocks and code spans, each with its arguments."""
    text = document.read_text()
    shown = [code for kind, code in FENCE.findall(text) if kind in ("bash", "console", "sh")]
    shown += [" ".join(span.split()) for span in SPAN.findall(prose(document))]
    for code in shown:
        for program, arguments in CALL.findall(code):
            words = arguments.replace('"', " ").replace("'", " ")
            yield program, shlex.split(words)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    assert list(broken_links(document)) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_exist_with_their_flags(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = []
    for program, words in calls(document):
        parser = (fluxbudgetctl if program == "fluxbudgetctl" else fluxbudgetd).cli.parser()
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        help_text = help_of(parser.parse_args, words, capsys)
        if help_text is None or not all(re.search(rf"{flag}\b", help_text) for flag in flags):
            wrong.append(f"{program} {' '.join(words)}")
    assert wrong == []


def help_of(parse: Callable[[list[str]], object], words: list[str], capsys: pytest.CaptureFixture[str]) -> str | None:
    """Return what `--help` prints for the command that the words begin with; None if there is no such command."""
    command = []
    for word in words:
        if not re.fullmatch(r"[a-z]+", word):
            break
        command.append(word)
    with pytest.raises(SystemExit) as ended:
        parse([*command, "--help"])
    shown = capsys.readouterr().out
    return shown if not ended.value.code else None


@pytest.mark.parametrize("document", MAPS, ids=lambda path: path.name)
def test_files_that_are_named_exist(document: Path) -> None:
    """A file may be named by the end of its path. A directory that a command creates is listed in .gitignore."""
    files = [path for folder in FOLDERS for path in (ROOT / folder, *(ROOT / folder).rglob("*"))]
    made = [line for line in (ROOT / ".gitignore").read_text().splitlines() if line.startswith("/")]
    known = [*(f"/{path.relative_to(ROOT)}" for path in (*ROOT.iterdir(), *files)), *(one.rstrip("/") for one in made)]
    named = [span for span in SPAN.findall(prose(document)) if FILE.fullmatch(span)]
    assert len(named) > 1
    assert [name for name in named if not any(one.endswith(f"/{name.rstrip('/')}") for one in known)] == []


def test_pictures_place_text_without_leading_spaces() -> None:
    """Librsvg drops leading spaces, which would make columns touch."""
    texts = re.findall(r"<text[^>]*>([^<]*)", (ROOT / "docs" / "status.svg").read_text())
    assert any("exceeded" in text for text in texts)
    assert not [text for text in texts if text.startswith("&#160;") and text.replace("&#160;", "").strip()]
