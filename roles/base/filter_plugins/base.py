"""Read the role's data: say what is wrong with it."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from typing import Any

KEYS = {"name", "keys", "groups", "sudo", "state", "remove"}
ACCOUNT = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
# Seconds; what guarded_files takes at least.
SHORTEST_PROOF = 5
OWN_KEYWORDS = {
    "port": "base_ssh_port",
    "passwordauthentication": "base_ssh_passwords",
    "kbdinteractiveauthentication": "base_ssh_passwords",
    "permitrootlogin": "base_ssh_root_with_key",
    "authorizedkeysfile": "base_administrators",
}


def _fields(blob: bytes) -> list[bytes]:
    """The fields of a public key, each with its length before it (RFC 4251); ValueError when it ends too early."""
    found = []
    while blob:
        length = int.from_bytes(blob[:4], "big")
        if len(blob) < 4 + length:
            raise ValueError
        found.append(blob[4 : 4 + length])
        blob = blob[4 + length :]
    return found


def _key_problem(key: Any) -> str:
    """What is wrong with a public key's line; options before the type are allowed, a private key is not."""
    text = str(key)
    if "PRIVATE KEY" in text:
        return "a private key; give the public one, the line in the .pub file"
    if "\n" in text.strip():
        return "a key of more than one line; give one key per entry of the list"
    match = re.search(r"(?:^|\s)((?:sk-)?(?:ssh|ecdsa)-[a-z0-9@.-]+) ([A-Za-z0-9+/]+={0,2})(?:\s|$)", text)
    shown = text if len(text) <= 40 else f"{text[:37]}..."
    if not match:
        return f"the key {shown!r}, which is not an OpenSSH public key (ssh-ed25519 AAAA... ada@example.com)"
    try:
        fields = _fields(base64.b64decode(match.group(2) + "=" * (-len(match.group(2)) % 4), validate=True))
    except (ValueError, binascii.Error):
        fields = []
    if len(fields) < 2 or fields[0] != match.group(1).encode():
        return f"the key {shown!r}, which is cut short or damaged"
    return ""


def _administrator_problem(entry: dict[str, Any]) -> str:
    unknown = sorted(set(entry) - KEYS)
    if unknown:
        return f"the unknown key {', '.join(unknown)}; it knows {', '.join(sorted(KEYS))}"
    if not ACCOUNT.fullmatch(str(entry.get("name", ""))):
        return "no name that Linux takes (lower-case letters, digits, - and _, at most 32)"
    state = entry.get("state", "present")
    if state not in ("present", "absent"):
        return f"the state {state}; it is present or absent"
    if entry.get("remove") and state == "present":
        return "remove: true, which needs state: absent"
    if entry.get("sudo", True) not in (True, False, "password"):
        return f"sudo: {entry['sudo']}; it is true (without a password), password, or false"
    if entry.get("sudo", True) is False and "sudo" in entry.get("groups", []):
        return "sudo: false, and the group sudo, which may use it; keep one of the two"
    for name in ("keys", "groups"):
        if not isinstance(entry.get(name, []), list):
            return f"{name} that is not a list; write {name}: [...]"
    for group in entry.get("groups", []):
        if not ACCOUNT.fullmatch(str(group)):
            return f"the group {group!r}, which Linux does not take"
    return next(filter(None, map(_key_problem, entry.get("keys", []))), "")


def base_administrator_problems(administrators: list[dict[str, Any]], passwords: bool) -> list[str]:
    """One sentence per thing that is wrong with the administrators; empty when nothing is."""
    problems = []
    for number, entry in enumerate(administrators, 1):
        problem = _administrator_problem(entry)
        if problem:
            problems.append(
                f"base_administrators, entry {number} ({entry.get('name', 'without a name')}), has {problem}."
            )
    names = [str(entry.get("name")) for entry in administrators]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        problems.append(f"base_administrators lists {', '.join(twice)} twice; keep one of the entries.")
    staying = [entry for entry in administrators if entry.get("state", "present") == "present"]
    if staying and not passwords and not any(entry.get("keys") for entry in staying):
        who = ", ".join(str(entry.get("name")) for entry in staying)
        problems.append(
            f"base_administrators gives no key to any of those who stay ({who}), and base_ssh_passwords is false: none "
            "of them could log in. Give one of them keys: [...], the line in their .pub file."
        )
    return problems


def base_ssh_problems(settings: dict[str, Any], port: int, confirm_seconds: int) -> list[str]:
    """One sentence per thing that is wrong with sshd's settings."""
    problems = []
    for keyword, value in settings.items():
        word = str(keyword).lower()
        if word in OWN_KEYWORDS:
            problems.append(f"base_ssh_settings has {keyword}; set {OWN_KEYWORDS[word]} instead.")
        elif isinstance(value, bool):
            problems.append(f'base_ssh_settings has {keyword}: {value}; write "yes" or "no" in quotes, as sshd does.')
        elif word in ("match", "include") or not re.fullmatch(r"[a-z0-9]+", word) or not _is_one_line(value):
            problems.append(f"base_ssh_settings has {keyword!r}, which is not a keyword with a value of one line.")
    if not 1 <= port <= 65535:
        problems.append(f"base_ssh_port is {port}; a port is a number from 1 to 65535.")
    if confirm_seconds < SHORTEST_PROOF:
        problems.append(
            f"base_ssh_confirm_seconds is {confirm_seconds}, too short to prove a way back in; "
            f"allow {SHORTEST_PROOF} at least."
        )
    return problems


def _is_one_line(value: Any) -> bool:
    return isinstance(value, (str, int)) and bool(re.fullmatch(r"[^\n\r]*\S[^\n\r]*", str(value)))


def _address_or_name(value: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z0-9._:-]+", value))


def _network(value: str) -> bool:
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        return False
    return True


def _pattern(value: str) -> bool:
    """What apt can carry in quotes and Python can search for."""
    try:
        re.compile(value)
    except re.error:
        return False
    return not re.search(r'["\n;{}]', value)


# What a value must be, and the words for it.
VALUES: dict[str, tuple[Any, str]] = {
    "base_timezone": (r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*", "a name such as Etc/UTC or Europe/Berlin"),
    "base_locale": (
        r"C|POSIX|[A-Za-z]+(_[A-Z]+)?\.[A-Za-z0-9-]+(@[a-z]+)?",
        "a locale with its character set, C.UTF-8 or de_DE.UTF-8",
    ),
    "base_journal_max": (r"[1-9][0-9]*[KMGT]?", "a size in systemd's words, 500M or 2G"),
    "base_upgrades_reboot_time": (r"([01][0-9]|2[0-3]):[0-5][0-9]", 'a time of day in quotes, "04:00"'),
    "base_upgrades_hold": (_pattern, "a regular expression without quotes, braces and semicolons"),
    "base_time_servers": (_address_or_name, "a host's name or address"),
    "base_fail2ban_ignore": (_network, "an address or network, 192.0.2.7 or 192.0.2.0/24"),
}


def base_value_problems(values: dict[str, Any]) -> list[str]:
    """One sentence per plain value that its program would not take; each item of a list is judged."""
    problems = []
    for name, (judge, words) in VALUES.items():
        fits = judge if callable(judge) else re.compile(judge).fullmatch
        items = values[name] if isinstance(values[name], list) else [values[name]]
        problems += [f"{name} has {str(item)!r}; write {words}." for item in items if not fits(str(item))]
    for keyword, value in values["base_sysctl"].items():
        if not re.fullmatch(r"[A-Za-z0-9_./*-]+", str(keyword)) or isinstance(value, bool) or not _is_one_line(value):
            problems.append(f"base_sysctl has {keyword}: {value}; write a kernel setting and a value such as 1.")
    return problems


def base_account_files(administrators: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The files that say who logs in with which keys, and who may use sudo, for config_files."""
    files = []
    for entry in administrators:
        name, stays = entry["name"], entry.get("state", "present") == "present"
        keys = [str(key).strip() for key in entry.get("keys", [])] if stays else []
        files.append(_file(f"/etc/stepladder/authorized_keys/{name}", "".join(f"{key}\n" for key in keys), mode="0644"))
        sudo = entry.get("sudo", True) if stays else False
        rule = f"{name} ALL=(ALL:ALL) {'ALL' if sudo == 'password' else 'NOPASSWD: ALL'}\n" if sudo else ""
        files.append(_file(f"/etc/sudoers.d/stepladder-{name}", rule, mode="0440", validate="visudo -cf %s"))
    return files


def _file(dest: str, content: str, **more: str) -> dict[str, Any]:
    """An entry that writes the file, or removes it when nothing would be in it."""
    return {"dest": dest, "content": content, **more} if content else {"dest": dest, "state": "absent"}


def base_locale_parts(locale: str) -> dict[str, str]:
    """de_DE.UTF-8@euro as localedef wants it: the source de_DE@euro and the charset UTF-8."""
    name, _, modifier = locale.partition("@")
    language, _, charset = name.partition(".")
    return {"source": f"{language}@{modifier}" if modifier else language, "charset": charset}


class FilterModule:
    """The role's filters."""

    def filters(self) -> dict[str, Any]:
        return {
            "base_administrator_problems": base_administrator_problems,
            "base_ssh_problems": base_ssh_problems,
            "base_value_problems": base_value_problems,
            "base_account_files": base_account_files,
            "base_locale_parts": base_locale_parts,
        }
