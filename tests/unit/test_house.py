"""What must not be in the tree is not in it."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME)\b")


def test_no_unfinished_marks_and_no_paths_of_this_checkout() -> None:
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    hits = []
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file() and not path.is_symlink():
            text = path.read_text(errors="replace")
            if UNFINISHED.search(text) or f"{ROOT}/" in text:
                hits.append(name)
    assert hits == []
