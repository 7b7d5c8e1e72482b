"""Pack a directory of the controller into an archive that is the same for the same files.

Arguments: path, exclude (patterns), artifacts (directory), name. Result: revision, archive.
With `revision` given, nothing is packed: the archive of that revision is looked up.
"""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import os
import tarfile
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

# What a working copy holds and a server does not want; a leading slash anchors a pattern at the top.
EXCLUDED = (
    ".git", ".hg", ".svn", ".env", ".venv", "venv", "node_modules", "__pycache__", "*.pyc", "*.sqlite3", "*.sqlite3-*",
    ".pytest_cache", ".mypy_cache", ".ruff_cache", ".tox", ".DS_Store", "/media",
)  # fmt: skip


def excluded(relative: str, patterns: list[str]) -> bool:
    """Whether a path below the tree is left out: by its own name, or by an anchored pattern for its whole path."""
    name = os.path.basename(relative)
    return any(
        fnmatch.fnmatch("/" + relative, pattern) if pattern.startswith("/") else fnmatch.fnmatch(name, pattern)
        for pattern in patterns
    )


def tree(root: Path, patterns: list[str]) -> list[str]:
    """Relative paths of the files and links of a tree, sorted."""
    found = []
    for here, folders, names in os.walk(root):
        base = os.path.relpath(here, root)
        below = [os.path.normpath(os.path.join(base, name)) for name in folders]
        links = [path for path in below if (root / path).is_symlink()]
        folders[:] = [os.path.basename(path) for path in below if path not in links and not excluded(path, patterns)]
        files = [os.path.normpath(os.path.join(base, name)) for name in names]
        # A socket or a pipe that a program left there is no source, and reading it would not end.
        found += [path for path in files if (root / path).is_symlink() or (root / path).is_file()]
        found += links
    return sorted(path for path in found if not excluded(path, patterns))


def revision_of(root: Path, files: list[str]) -> str:
    """ "p" and 12 hex digits of a hash over names, kinds, the executable bit and contents."""
    digest = hashlib.sha256()
    for name in files:
        path = root / name
        if path.is_symlink():
            kind, content = "l", os.readlink(path).encode()
        else:
            kind, content = "x" if path.stat().st_mode & 0o100 else "f", path.read_bytes()
        digest.update(f"{kind} {name}\0{len(content)}\0".encode() + content)
    return "p" + digest.hexdigest()[:12]


def pack(root: Path, files: list[str], archive: Path) -> None:
    """Write the archive; the same files give the same bytes."""
    archive.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = archive.with_suffix(f".{os.getpid()}")

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mtime = 0
        member.mode = 0o755 if member.mode & 0o100 else 0o644
        return member

    with (
        open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out,
        gzip.GzipFile(filename="", mode="wb", fileobj=out, mtime=0, compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in files:
            tar.add(root / name, arcname=name, recursive=False, filter=plain)
    os.replace(temporary, archive)


class ActionModule(ActionBase):
    """Works on the controller only."""

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("path", "exclude", "artifacts", "revision"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        args = self._task.args
        artifacts = Path(str(args["artifacts"])).expanduser()
        if args.get("revision"):
            archive = artifacts / f"{args['revision']}.tar.gz"
            if not archive.is_file():
                raise AnsibleActionFail(
                    f"django: the revision {args['revision']} is not among the artifacts in {artifacts}. What is live stays live. "
                    "Leave the version (django_version, -e version=...) away to deploy the directory as it is now."
                )
            return {**result, "changed": False, "revision": str(args["revision"]), "archive": str(archive)}
        root = Path(str(args["path"])).expanduser()
        if not root.is_dir():
            raise AnsibleActionFail(
                f"django: the source directory {root} is not there. What is live stays live. Set django_source.path."
            )
        files = tree(root, [*EXCLUDED, *(str(pattern) for pattern in args.get("exclude") or [])])
        revision = revision_of(root, files)
        archive = artifacts / f"{revision}.tar.gz"
        if not archive.is_file():
            pack(root, files, archive)
        return {**result, "changed": False, "revision": revision, "archive": str(archive)}
