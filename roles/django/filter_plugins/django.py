"""Plain data as Python literals, as an environment file, and as fingerprints."""

from __future__ import annotations

import hashlib
import json
import pprint
import re
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def plain(value: Any, where: str = "a setting") -> Any:
    """A value with nothing but Python's own types in it. AnsibleFilterError names what has no literal."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return "".join(character for character in value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {plain(key, where): plain(item, f"{where}[{key}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, where) for item in value]
    raise AnsibleFilterError(
        f"django: {where} is of the kind {type(value).__name__}, which has no Python literal. "
        "Write it as text, or set it in django_settings_lines."
    )


def django_literal(value: Any, where: str = "a setting") -> str:
    """The Python literal of plain data."""
    return pprint.pformat(plain(value, where), width=110, sort_dicts=False)


def django_setting_names(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings themselves, once their names can be names in a Python file."""
    for name in settings:
        if not NAME.match(str(name)) or str(name) != str(name).upper():
            raise AnsibleFilterError(
                f"django: django_settings has {name!r}, which is no setting's name. Names are upper-case."
            )
    return settings


def django_environment(values: Mapping[str, Any]) -> str:
    """Lines of an environment file that systemd and a shell read alike.

    AnsibleFilterError names the variable (never its value) that such a file cannot hold.
    """
    lines = []
    for name, value in values.items():
        text = "" if value is None else str(plain(value, str(name)))
        if not NAME.match(str(name)):
            raise AnsibleFilterError(
                f"django: {name!r} is no name of an environment variable. Letters, digits and _ only."
            )
        if CONTROL.search(text):
            raise AnsibleFilterError(
                f"django: the value of {name} has a newline or another control character in it, "
                "which an environment file cannot hold. Encode it (base64, say) or put it into a file."
            )
        escaped = re.sub(r'(["\\$`])', r"\\\1", text)
        lines.append(f'{name}="{escaped}"')
    return "".join(line + "\n" for line in lines)


def django_storage_variable(option: str, alias: str) -> str:
    """The environment variable that has a secret option of a storage."""
    return f"SITE_STORAGE_{alias}_{option}".upper()


def django_storage_environment(secrets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The environment variables of all storages' secret options."""
    return {
        django_storage_variable(option, alias): value
        for alias, options in secrets.items()
        for option, value in options.items()
    }


def django_fingerprint(value: Any, length: int = 12) -> str:
    """The first hex digits of a SHA-256 over plain data."""
    text = json.dumps(plain(value), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def django_source_kind(source: Mapping[str, Any]) -> list[str]:
    """Which of the kinds of source a source names."""
    return [kind for kind in ("git", "path", "package") if source.get(kind)]


def django_package_version(source: Mapping[str, Any], version: str) -> str:
    """The one version that a requirement and django_version ask for, "" when they leave it open."""
    found = re.search(r"==\s*([A-Za-z0-9.+!_-]+)\s*(?:;.*)?$", str(source.get("package") or ""))
    return str(version) or (found.group(1) if found else "")


def django_package_requirement(source: Mapping[str, Any], version: str) -> str:
    """The requirement with its version pinned, whatever it said about versions before."""
    name = re.match(r"\s*[A-Za-z0-9._-]+(\s*\[[^\]]*\])?", str(source.get("package") or ""))
    return f"{name.group().strip() if name else ''}=={version}"


def django_command(command: Any) -> dict[str, Any]:
    """A gate or hook as the module takes it: plain text is a management command. AnsibleFilterError otherwise."""
    if isinstance(command, str):
        return {"manage": command}
    if isinstance(command, Mapping) and len(command) == 1 and set(command) <= {"manage", "shell"}:
        return dict(command)
    raise AnsibleFilterError(
        f"django: a gate or hook is a management command, or one of manage: and shell:, found {command!r}."
    )


def django_odd_commands(hooks: Mapping[str, Any], gates: Any, names: list[str]) -> list[str]:
    """What of the hooks and gates would not run as it is written, each named with the reason."""
    found = [f"there is no step for the hook {name}" for name in hooks if name not in names]
    listed = {"django_gates": gates, **{f"django_hooks.{name}": hooks[name] for name in hooks if name in names}}
    for place, commands in listed.items():
        if not isinstance(commands, list):
            found.append(f"{place} is no list")
            continue
        for command in commands:
            shell_line = place.endswith("_build")
            try:
                good = isinstance(command, str) if shell_line else bool(django_command(command))
            except AnsibleFilterError:
                good = False
            if not good:
                found.append(f"{place} has {command!r}")
    return found


def django_odd_replica(
    alias: str, databases: Mapping[str, Any], migrated: list[str], seconds: int, marks: bool
) -> list[str]:
    """Why reads cannot go to that database, or writers not be marked for it, each reason a sentence with what to do."""
    found = []
    if not alias:
        if marks and "default" not in databases:
            found.append(
                "django_read_marks is on, and django_databases has no default whose writers could be marked. "
                "Name it there, or leave the marks off."
            )
    elif alias == "default" or not {alias, "default"} <= set(databases):
        found.append(
            f"django_read_replica is {alias}, django_databases has {', '.join(databases) or 'none'}. "
            "Name one of them other than default, which must be there too, or leave it empty."
        )
    if alias and alias in migrated:
        found.append(f"django_migrate_databases names {alias}, which is only read from. Remove it there.")
    if (alias or marks) and seconds < 1:
        found.append(
            f"django_read_sticky_seconds is {seconds}, and nobody would find what he has just written. "
            "Set more seconds than a replica may be behind."
        )
    return found


class FilterModule:
    """The filters of the django role."""

    def filters(self) -> dict[str, Any]:
        return {
            "django_command": django_command,
            "django_odd_commands": django_odd_commands,
            "django_odd_replica": django_odd_replica,
            "django_literal": django_literal,
            "django_setting_names": django_setting_names,
            "django_environment": django_environment,
            "django_fingerprint": django_fingerprint,
            "django_source_kind": django_source_kind,
            "django_storage_environment": django_storage_environment,
            "django_storage_variable": django_storage_variable,
            "django_package_version": django_package_version,
            "django_package_requirement": django_package_requirement,
        }
