"""Filters of the role redis: values as redis.conf takes them."""

from __future__ import annotations

import re
from typing import Any

from ansible.errors import AnsibleFilterError

PLAIN = re.compile(r"[A-Za-z0-9_./:%*+-]+")


def redis_value(value: Any) -> str:
    """A setting's value: yes and no for booleans, words for a list, quoted as one argument where it is not plain.

    The server itself takes the one argument of such settings as `save` or `bind` apart.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    if re.search(r"[\r\n\0]", text):
        raise AnsibleFilterError(f"a setting's value must be one line, found {text!r}")
    if PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def redis_rules(users: list[dict[str, Any]]) -> list[str]:
    """Every pattern and rule that users were given."""
    return [str(word) for user in users for part in ("keys", "channels", "commands") for word in user.get(part) or []]


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"redis_value": redis_value, "redis_rules": redis_rules}
