"""Documents: every link to a file of the repository leads somewhere."""

import re
import subprocess

import pytest

LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")

PASTED = {"docs/results/notes.md"}  # into docs/results.md, whose links count


def broken_links(folder, names):
    """Pairs (document, target) of links to files that are not there."""
    for name in names:
        for target in LINK.findall((folder / name).read_text()):
            if not (folder / name).parent.joinpath(target).exists():
                yield name, target


def test_links_lead_somewhere(repository):
    if not (repository / ".git").exists():
        pytest.skip("lists the documents by git")
    listed = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=repository, check=True, capture_output=True, text=True
    )
    names = sorted({*listed.stdout.split()} - PASTED)
    assert list(broken_links(repository, names)) == []


def test_broken_links_are_seen(tmp_path):
    (tmp_path / "a.md").write_text("[b](b.md#part) [c](a.md) [d](https://x.org/d.md) ![e](e.png)")
    assert list(broken_links(tmp_path, ["a.md"])) == [("a.md", "b.md"), ("a.md", "e.png")]
