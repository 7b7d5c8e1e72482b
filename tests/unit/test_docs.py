"""Links in the documentation lead somewhere."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")


def test_relative_links_resolve() -> None:
    listed = subprocess.check_output(["git", "ls-files", "-z", "*.md"], cwd=ROOT, text=True)
    pages = [ROOT / name for name in listed.split("\0") if name]
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        if page.exists()
        for target in LINK.findall(page.read_text())
        if not (page.parent / target).exists()
    ]
    assert pages and broken == []
