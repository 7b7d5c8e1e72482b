"""SCRAM-SHA-256 verifiers as PostgreSQL stores them (RFC 5803), so that a clear password never travels to the server."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import stringprep
import unicodedata

ITERATIONS = 4096  # PostgreSQL's own number
VERIFIER = re.compile(r"^SCRAM-SHA-256\$(\d+):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)$")
PROHIBITED = (
    stringprep.in_table_c12, stringprep.in_table_c21_c22, stringprep.in_table_c3, stringprep.in_table_c4,
    stringprep.in_table_c5, stringprep.in_table_c6, stringprep.in_table_c7, stringprep.in_table_c8,
    stringprep.in_table_c9, stringprep.in_table_a1,
)  # fmt: skip


def prepared(password: str) -> bytes:
    """The password's bytes after SASLprep (RFC 4013); the raw bytes where it forbids something, as PostgreSQL does."""
    raw = password.encode("utf-8")
    if password.isascii():
        return raw
    mapped = "".join(
        " " if stringprep.in_table_c12(c) else c
        for c in password
        if not stringprep.in_table_b1(c) or stringprep.in_table_c12(c)
    )
    text = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    if not text or any(table(c) for c in text for table in PROHIBITED):
        return raw
    if any(stringprep.in_table_d1(c) for c in text):
        right_to_left = stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])
        if not right_to_left or any(stringprep.in_table_d2(c) for c in text):
            return raw
    return text.encode("utf-8")


def verifier(password: str, salt: bytes | None = None, iterations: int = ITERATIONS) -> str:
    """The text that ALTER ROLE ... PASSWORD takes in place of a clear password."""
    salt = salt or os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", prepared(password), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return "SCRAM-SHA-256$%d:%s$%s:%s" % (iterations, *encoded)


def matches(password: str, stored: str | None) -> bool:
    """Whether a stored verifier is this password's."""
    found = VERIFIER.match(stored or "")
    if not found:
        return False
    return hmac.compare_digest(verifier(password, base64.b64decode(found[2]), int(found[1])), stored)
