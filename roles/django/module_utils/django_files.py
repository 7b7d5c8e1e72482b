"""A release's static files and the directory that the web server serves: the union of what the releases have."""

from __future__ import annotations

import filecmp
import os
import shutil
import stat


def files_below(folder):
    """Relative paths of the regular files below a folder."""
    found = []
    for here, _folders, names in os.walk(folder):
        for name in names:
            path = os.path.join(here, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                found.append(os.path.relpath(path, folder))
    return found


def place(path, put):
    """Put a file in place atomically; `put` makes it at the path that it is given."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    temporary = path + ".new~"
    if os.path.lexists(temporary):
        os.unlink(temporary)
    put(temporary)
    os.replace(temporary, path)


def copy_regular(source, target):
    """Copy a regular file, never what a symbolic link points at, readable by all."""
    with open(os.open(source, os.O_RDONLY | os.O_NOFOLLOW), "rb") as old, open(target, "wb") as new:
        shutil.copyfileobj(old, new)
        os.fchmod(new.fileno(), 0o644)


def merge(source, target):
    """Bring every file of a folder into another that a running process may read; returns how many differed."""
    changed = 0
    for name in files_below(source):
        old, new = os.path.join(source, name), os.path.join(target, name)
        if os.path.isfile(new) and filecmp.cmp(old, new, shallow=False):
            continue
        place(new, lambda path, old=old: copy_regular(old, path))
        changed += 1
    return changed


def link_union(source, union, replace):
    """Hard-link a release's files into the union; files of the same name and other content only when told to."""
    changed = 0
    for name in files_below(source):
        old, new = os.path.join(source, name), os.path.join(union, name)
        if os.path.lexists(new) and (not replace or os.path.samefile(old, new)):
            continue
        place(new, lambda path, old=old: os.link(old, path))
        changed += 1
    return changed


def drop_orphans(union, folders):
    """Remove the union's files that none of the folders has any more."""
    kept = {name for folder in folders for name in files_below(folder)}
    for name in files_below(union):
        if name not in kept:
            os.unlink(os.path.join(union, name))
    for here, _folders, _names in os.walk(union, topdown=False):
        if here != union and not os.listdir(here):
            os.rmdir(here)
