"""Judge on the controller which leaves must be made again."""

from __future__ import annotations

import datetime
import ipaddress
import re
from typing import Any

from ansible.errors import AnsibleFilterError
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

LEAF_KEYS = {"name", "names", "group", "reload"}
AS_NAME = "DNS:"  # before an address that is to be in the certificate as a name
DNS_NAME = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}\.?)*")


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def certificates_problems(leaves: list[dict[str, Any]]) -> list[str]:
    """A sentence per wrong entry of certificates_leaves."""
    problems, seen = [], set()
    for leaf in leaves:
        if not isinstance(leaf, dict) or not re.fullmatch(r"[A-Za-z0-9_-]+", str(leaf.get("name", ""))):
            problems.append(f"an entry needs a name of letters, digits, dashes; found {leaf!r}")
            continue
        name = leaf["name"]
        if name in seen:
            problems.append(f"{name} is listed twice; keep one")
        seen.add(name)
        if unknown := sorted(set(leaf) - LEAF_KEYS):
            problems.append(
                f"{name} has the unknown key {', '.join(unknown)}; known are {', '.join(sorted(LEAF_KEYS))}"
            )
        if not leaf.get("names") or isinstance(leaf["names"], str):
            problems.append(f"{name} needs names, a list of DNS names and addresses")
            continue
        wrong = [
            found
            for found in leaf["names"]
            if not is_address(found) and not DNS_NAME.fullmatch(str(found).removeprefix(AS_NAME))
        ]
        if wrong:
            problems.append(f"{name} has {', '.join(map(repr, wrong))} in its names, neither a DNS name nor an address")
    return problems


def certificates_san(names: list[str]) -> list[str]:
    """Names as subjectAltName entries: DNS:... or IP:..., each once, in order."""
    return list(
        dict.fromkeys(
            name if name.startswith(AS_NAME) else f"{'IP' if is_address(name) else 'DNS'}:{name}" for name in names
        )
    )


def _held(certificate: x509.Certificate) -> set[str]:
    """The subjectAltName entries of a certificate."""
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {f"DNS:{name}" for name in san.get_values_for_type(x509.DNSName)} | {
        f"IP:{address}" for address in san.get_values_for_type(x509.IPAddress)
    }


def _signed_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def certificates_due(
    leaves: list[dict[str, Any]],
    found: dict[str, Any],
    ca_text: str,
    renew_days: int,
    now: datetime.datetime | None = None,
) -> list[dict[str, Any]]:
    """The leaves to make again, each with `reason` and `new_key`; `found` is what certificates_state returned.

    Raises AnsibleFilterError when the CA's certificate cannot be read.
    """
    try:
        ca = x509.load_pem_x509_certificates(ca_text.encode())[0]
    except ValueError as error:
        raise AnsibleFilterError(f"certificates: ca.pem on the controller holds no certificate: {error}") from error
    moment = now or datetime.datetime.now(datetime.UTC)
    due = []
    for leaf in leaves:
        state = found.get(leaf["name"]) or {}
        if reason := _reason(leaf, state, ca, renew_days, moment):
            due.append({**leaf, "reason": reason, "new_key": not state.get("readable")})
    return due


def _reason(
    leaf: dict[str, Any], state: dict[str, Any], ca: x509.Certificate, renew_days: int, now: datetime.datetime
) -> str:
    """Why a leaf must be made again; empty when it is right."""
    if not state.get("certificate"):
        return "there is none"
    if not state.get("fits"):
        return "it does not belong to its key"
    try:
        certificate = x509.load_pem_x509_certificate(state["certificate"].encode())
    except ValueError:
        return "it cannot be read"
    left = (certificate.not_valid_after_utc - now).days
    if left < renew_days:
        return f"it has {left} days left, less than {renew_days}"
    if not _signed_by(certificate, ca):
        return "another CA signed it"
    if _held(certificate) != set(certificates_san(leaf["names"])):
        return "its names are others"
    if not isinstance(certificate.public_key(), ec.EllipticCurvePublicKey):
        return "its key is of another type"
    return ""


class FilterModule:
    def filters(self):
        return {
            "certificates_problems": certificates_problems,
            "certificates_san": certificates_san,
            "certificates_due": certificates_due,
        }
