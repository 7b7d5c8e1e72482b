"""Filters of the role postgres: values as PostgreSQL writes them."""

from __future__ import annotations

import importlib.util
import ipaddress
import re
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

UNITS_KB = {"b": 1 / 1024, "kb": 1, "mb": 1024, "gb": 1024**2, "tb": 1024**3}
WORDS = {"all", "sameuser", "samerole", "replication"}


def _scram() -> Any:
    # The role's module_utils are for modules; a filter runs on the controller and loads the same file.
    path = Path(__file__).resolve().parents[1] / "module_utils/postgres_scram.py"
    spec = importlib.util.spec_from_file_location("postgres_scram", path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def postgres_verifier(password: str) -> str:
    """A fresh SCRAM-SHA-256 verifier of a clear password."""
    return str(_scram().verifier(str(password)))


def postgres_value(value: Any) -> str:
    """A setting's value as postgresql.conf takes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        value = ",".join(str(item) for item in value)
    text = str(value)
    if "\n" in text:
        raise AnsibleFilterError(f"a setting's value must be one line, found {text!r}")
    # postgresql.conf reads backslash escapes inside quotes.
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def postgres_kilobytes(value: Any, unit_kb: int = 1) -> int:
    """A memory setting ("64MB", or a bare number of its own unit) in kB."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?B)?\s*", str(value))
    if not found:
        raise AnsibleFilterError(f"{value!r} is not a size; write it as 64MB or 2GB")
    factor = UNITS_KB[found[2].lower()] if found[2] else unit_kb
    return int(float(found[1]) * factor)


def postgres_hba_name(name: str) -> str:
    """A database or role name for pg_hba.conf: special words bare, everything unusual quoted."""
    if name in WORDS or re.fullmatch(r"\+?[a-z_][a-z0-9_]*", name):
        return name
    return '"' + name.replace('"', '""') + '"'


def postgres_identifier(name: str) -> str:
    """A quoted SQL identifier."""
    return '"' + str(name).replace('"', '""') + '"'


def postgres_conninfo(words: dict[str, Any]) -> str:
    """A connection string of libpq."""
    quoted = {key: str(value).replace("\\", "\\\\").replace("'", "\\'") for key, value in words.items()}
    return " ".join(
        f"{key}={value}" if re.fullmatch(r"[\w./,:-]+", value) else f"{key}='{value}'" for key, value in quoted.items()
    )


def postgres_passfile(user: str, password: str) -> str:
    """The line of a password file by which this user gets in everywhere."""
    escaped = (str(word).replace("\\", "\\\\").replace(":", "\\:") for word in (user, password))
    return "*:*:*:" + ":".join(escaped) + "\n"


def postgres_is_loopback(address: str) -> bool:
    """Whether every address of a network is this host itself."""
    try:
        return ipaddress.ip_network(address, strict=False).is_loopback
    except ValueError:
        return address == "localhost"


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "postgres_verifier": postgres_verifier,
            "postgres_value": postgres_value,
            "postgres_kilobytes": postgres_kilobytes,
            "postgres_hba_name": postgres_hba_name,
            "postgres_identifier": postgres_identifier,
            "postgres_conninfo": postgres_conninfo,
            "postgres_passfile": postgres_passfile,
            "postgres_is_loopback": postgres_is_loopback,
        }
