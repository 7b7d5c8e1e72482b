"""Judge the values of settings by their descriptions, each problem a sentence in the names that a person wrote.

A description is what plugins/settings.yml and the roles' argument specs have: `type`, `required`, `choices`, `elements`
(of a list) and `options` (the fields of a mapping, or of each entry of a list). plugins/settings.yml says more where it is
known: `pattern` and `words` for what it means, `min` and `max`, `values` (of every value of a mapping), `names` and
`names_words` (of its keys) and `secret` (a value that is never shown). In a sentence, "on @" stands for the hosts.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

KINDS: dict[str, Any] = {
    "str": str, "path": str, "list": list, "dict": Mapping, "int": int, "float": (int, float), "bool": bool,
    "scalar": (str, int, float),
}  # fmt: skip
KIND_WORDS = {"str": "text", "path": "a path", "list": "a list", "dict": "a mapping", "int": "a whole number",
              "float": "a number", "bool": "true or false", "scalar": "text or a number"}  # fmt: skip
LONGEST = 60  # characters of a value that a sentence shows
EXAMPLE_KEY = "EXAMPLEONLYreplacethiswithyourown"  # in the key of inventories/example
LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
HOST_NAME = re.compile(rf"(?=.{{1,253}}$){LABEL}(\.{LABEL})*")
LOGIN = re.compile(r"^https?://[^/]*@")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
WORKER_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
POOLS = ("prefork", "threads", "gevent", "eventlet", "solo")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# What the role django sets in the site's environment itself.
TAKEN = re.compile(
    r"(DJANGO_SETTINGS_MODULE|PYTHONPATH|SITE_(RELEASE|NAME|STATIC_ROOT|SECRET_KEY|BROKER_URL|(DATABASE|CACHE)_PASSWORD_.*|STORAGE_.*))"
)


def shown(value: Any, secret: bool = False) -> str:
    """A value for a sentence: cut where it is long; only its kind where it is secret, or may have a secret inside."""
    if value is None:
        return "nothing"
    if secret or isinstance(value, (list, Mapping)):
        return next((word for kind, word in KIND_WORDS.items() if fits(kind, value)), "something else")
    text = repr(str(value)) if isinstance(value, str) else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def fits(kind: str, value: Any) -> bool:
    """Whether a value is of a kind as it stands; true and false are no numbers."""
    if kind in ("raw", "any", "json"):
        return True
    return isinstance(value, KINDS[kind]) and not (isinstance(value, bool) and kind in ("int", "float"))


def converts(kind: str, value: Any) -> bool:
    """Whether a role takes the value as one of the kind: a number is text; text is no number, and no list."""
    return fits(kind, value) or value is None or (kind in ("str", "path") and isinstance(value, (int, float, bool)))


def is_number(text: str) -> bool:
    return bool(re.fullmatch(r"\s*-?[0-9]+(\.[0-9]+)?\s*", text))


def hint(kind: str, value: Any) -> str:
    """What to write instead, where that is plain."""
    if kind in ("str", "path") and isinstance(value, (int, float)):
        return f'Write it in quotes: "{value}".' if not isinstance(value, bool) else "Write it in quotes."
    if kind == "list" and isinstance(value, str) and value and len(value) <= LONGEST:
        return f"Write it in brackets: [{value}]."
    if kind == "list" and isinstance(value, Mapping):
        return "Write it as a list: a dash before the first field, or brackets around all."
    if kind in ("int", "float") and isinstance(value, str) and is_number(value):
        return f"Write it without quotes: {value.strip()}."
    if kind == "bool" and isinstance(value, str) and value.lower() in ("true", "false", "yes", "no", "on", "off"):
        return f"Write it without quotes: {value}."
    return "Correct it in group_vars/site.yml."


def nearest(word: str, words: Iterable[str]) -> str:
    """The one of the words that is written almost like it; empty when none is."""
    return next(iter(difflib.get_close_matches(str(word).lower(), sorted(map(str, words)), n=1, cutoff=0.6)), "")


def meant(value: str, pattern: str) -> str:
    """A question with the value as it should have been written, where only its writing is wrong."""
    dotted = re.sub(r"\.py(?=$|:)", "", value.strip().strip("/")).replace("/", ".")
    for guess in (value.strip(), value.strip().lower(), dotted):
        if guess != value and re.fullmatch(pattern, guess):
            return f" Did you mean {guess}?"
    return ""


def part(place: str, name: str) -> str:
    """The place of a field: site_source.git, or "site_workers, entry 1 (mail), queues"."""
    return f"{place} {name}" if place.endswith(",") else f"{place}.{name}"


def entry_place(place: str, number: int, entry: Any) -> str:
    name = entry.get("name") if isinstance(entry, Mapping) else None
    return f"{place.rstrip(',')}, entry {number}{f' ({name})' if isinstance(name, str) and name else ''},"


def problems(place: str, spec: Mapping[str, Any], value: Any, strict: bool = True) -> Iterator[str]:
    """Every sentence for one value; `strict` is false for a role's own variables, where a number is text as well."""
    kind, secret = spec.get("type", "str"), bool(spec.get("secret") or spec.get("no_log"))
    if not (fits if strict else converts)(kind, value):
        advice = "Correct it in group_vars/site.yml." if secret else hint(kind, value)
        yield f"{place} must be {KIND_WORDS[kind]}; found {shown(value, secret)} on @. {advice}"
        return
    if spec.get("required") and (value is None or value in ("", [], {})):
        yield f"{place} is empty on @. Set it in group_vars/site.yml: {spec['description']}"
        return
    if spec.get("choices") and (value if kind != "str" or value is None else str(value)) not in (
        *spec["choices"],
        None,
    ):
        yield f"{place} must be one of {', '.join(map(str, spec['choices']))}; found {shown(value, secret)} on @."
    elif isinstance(value, str):
        if value and spec.get("pattern") and not re.fullmatch(spec["pattern"], value):
            guess = "" if secret else meant(value, spec["pattern"])
            yield f"{place} must be {spec['words']}; found {shown(value, secret)} on @.{guess}"
    elif isinstance(value, list):
        yield from list_problems(place, spec, value, strict)
    elif isinstance(value, Mapping):
        yield from mapping_problems(place, spec, value, strict)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = spec.get("min"), spec.get("max")
        if (low is not None and value < low) or (high is not None and value > high):
            limits = f"from {low} to {high}" if high is not None else f"{low} or more"
            yield f"{place} must be {limits}; found {value} on @."


def list_problems(place: str, spec: Mapping[str, Any], value: list[Any], strict: bool) -> Iterator[str]:
    elements = spec.get("elements")
    if not elements:
        return
    inner = {key: spec[key] for key in ("options", "pattern", "words", "secret", "no_log") if key in spec}
    for number, entry in enumerate(value, 1):
        where = entry_place(place, number, entry)
        if entry is None or entry == "":
            yield f"{where} is empty on @. Take it out, or write what belongs there."
        else:
            yield from problems(where, {"type": elements, **inner}, entry, strict)


def mapping_problems(place: str, spec: Mapping[str, Any], value: Mapping[str, Any], strict: bool) -> Iterator[str]:
    for name in value:
        if spec.get("names") and not re.fullmatch(spec["names"], str(name)):
            yield f"{place.rstrip(',')} has the name {shown(str(name))} on @; a name there is {spec['names_words']}."
        elif spec.get("values") and value[name] is not None:
            yield from problems(part(place, str(name)), spec["values"], value[name], strict)
    options = spec.get("options")
    if not options:
        return
    meant_for: set[str] = set()  # a misspelt field is not a missing one as well
    for name in value:
        if name not in options:
            near = nearest(name, options)
            meant_for.add(near)
            advice = f"Did you mean {near}?" if near else f"It knows {', '.join(sorted(map(str, options)))}."
            yield f"{place} has the unknown key {name} on @. {advice}"
        elif value[name] is not None or options[name].get("required"):
            yield from problems(part(place, name), {"description": "", **options[name]}, value[name], strict)
    for name, option in options.items():
        if option.get("required") and name not in value and name not in meant_for:
            yield f"{place} has no {name} on @. {option.get('description', '')}".rstrip()


# Files that are no YAML. Ansible's own sentence for those beside an inventory names no file.


def broken_files(folders: Iterable[Path]) -> list[str]:
    """The sentences for variable files (group_vars, host_vars) that cannot be read: file, line and what is wrong."""
    found = []
    for folder in dict.fromkeys(folders):
        for path in sorted([*folder.glob("group_vars/**/*"), *folder.glob("host_vars/**/*")]):
            if path.is_file() and path.suffix in ("", ".yml", ".yaml", ".json") and not path.name.startswith("."):
                found += [f"{short(path)}{problem}" for problem in broken_file(path)]
    return found


def broken_file(path: Path) -> Iterator[str]:
    try:
        text = path.read_text()
        root = None if text.startswith("$ANSIBLE_VAULT") else yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        context = (
            f" ({error.context}, which begins in line {error.context_mark.line + 1})" if error.context_mark else ""
        )
        yield f", line {mark.line + 1 if mark else '?'}, is no YAML: {error.problem}{context}. Correct it there or just before."
        return
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        yield f" cannot be read: {str(error).splitlines()[0]}. Correct it."
        return
    if root and not isinstance(root, yaml.MappingNode) and root.value:
        yield ", line 1, is no mapping of names to values. Write each setting as name: value."
    seen: dict[str, int] = {}
    for key, _ in root.value if isinstance(root, yaml.MappingNode) else []:
        if key.value in seen:
            yield f", line {key.start_mark.line + 1}, sets {key.value} again, after line {seen[key.value]}. Keep one of them."
        seen[key.value] = key.start_mark.line + 1


def short(path: Path) -> str:
    """A path as a person in this folder would write it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


# What a description cannot say.


def host_name_problems(names: list[str], tls: str, one_web: bool) -> Iterator[str]:
    """The sentences for site_hostnames: each a name as DNS has it, once, that the certificate and the site can carry."""
    for number, name in enumerate(names):
        if problem := host_name_problem(str(name), number == 0, tls, one_web):
            yield f"site_hostnames has {str(name)!r}, {problem}"
    listed = [str(name).lower() for name in names]
    for name in sorted({name for name in listed if listed.count(name) > 1}):
        yield f"site_hostnames has {name} twice. Keep it once."


def host_name_problem(name: str, main: bool, tls: str, one_web: bool) -> str:
    """What is wrong with one name, and what to write; empty when nothing is."""
    bare = re.sub(r"^[a-z][a-z0-9+.-]*://", "", name.strip(), flags=re.IGNORECASE)
    alone = re.split(r"[/?#]", bare)[0]
    found = [
        (bare != name.strip(), "with the scheme before it"),
        (alone != bare, "with a path"),
        (bool(re.search(r":[0-9]+$", alone)) and alone.count(":") == 1, "with a port"),
        (name != name.strip() or bool(re.search(r"\s", name.strip())), "with a blank in it"),
        (name != name.lower(), "in capitals"),
    ]
    wrong = [words for holds, words in found if holds]
    clean = re.sub(r":[0-9]+$", "", alone).lower() if alone.count(":") <= 1 else alone.lower()
    if wrong:
        good = HOST_NAME.fullmatch(clean.removeprefix("*."))
        return f"{' and '.join(wrong)}. Write the name alone{f': {clean}' if good else ''}."
    if address := as_address(name):
        if address.version == 6:
            return "an address that nginx takes for no name. Write a name that leads to it."
        if tls == "letsencrypt":
            return "an address, which Let's Encrypt cannot be asked about. Write a name that leads to it, or set another site_tls."
        if main and not one_web:
            return "an address, and with several web hosts the first must be a name. Write one that leads to it."
        return ""
    if name.startswith("*."):
        if main:
            return "a wildcard, and the first is the main name that checks ask for. Write a whole name before it."
        if tls == "letsencrypt":
            return "a wildcard, which Let's Encrypt cannot prove over HTTP. Write each name, or set site_tls: files."
    if not name.isascii():
        return f"which DNS writes otherwise. Write {punycode(name)}."
    if not HOST_NAME.fullmatch(name.removeprefix("*.")):
        return "which is no name of a host: letters, digits and hyphens between dots. Correct it."
    return ""


def as_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None


def punycode(name: str) -> str:
    try:
        return name.encode("idna").decode()
    except UnicodeError:
        return "its form that begins with xn--"


def source_problems(source: Mapping[str, Any], version: str, look: bool) -> Iterator[str]:
    """The sentences for site_source; `look` asks whether a folder is there, which only a run that builds needs."""
    kinds = [kind for kind in ("git", "path", "package") if source.get(kind)]
    if len(kinds) != 1:
        found = f"names {' and '.join(kinds)}" if kinds else "names no source"
        yield f"site_source {found} on @. Set exactly one of git, path and package in it."
        return
    if kinds == ["path"]:
        folder = Path(str(source["path"])).expanduser()
        if look and not folder.is_dir():
            what = "is no folder" if folder.exists() else "is not there"
            yield f"site_source.path is {source['path']}, which {what} on the controller. Correct it to the project's folder."
        elif look and not any(folder.iterdir()):
            yield f"site_source.path is {source['path']}, a folder with nothing in it. Correct it to the project's folder."
    elif kinds == ["git"]:
        if LOGIN.match(source["git"]):
            yield (
                "site_source.git has a login in the address on @, where others would see it. Set site_source.user and "
                "site_source.password, or deploy_key."
            )
        elif re.search(r"\s", source["git"]):
            yield "site_source.git has a blank in it on @. Write the repository's address alone."
    elif not version and not re.search(r"==\s*[A-Za-z0-9.+!_-]+\s*(;.*)?$", source["package"]):
        yield (
            f"site_source.package is {source['package']} on @ and leaves the version open: every host could get another "
            f'one. Write package: "{source["package"].split()[0]}==1.2", or set site_version.'
        )


def administrator_problems(people: list[Mapping[str, Any]], passwords: bool) -> Iterator[str]:
    """The sentences for site_administrators that the role base does not have."""
    for number, person in enumerate(people, 1):
        where = entry_place("site_administrators", number, person)
        if person.get("state", "present") == "present" and not person.get("keys") and not passwords:
            yield f"{where} has no key, and could not log in. Give it keys: [...], the line in a .pub file, or state: absent."
        if any(EXAMPLE_KEY in key for key in person.get("keys") or []):
            yield (
                f"{where} has the key of inventories/example, which belongs to nobody. Put your own in its place: the line "
                "in your .pub file (~/.ssh/id_ed25519.pub)."
            )


def health_limit_problems(limits: list[dict[str, Any]], path: str) -> Iterator[str]:
    """The sentences for limits that are for the page by which whoever watches the site judges it."""
    for number, limit in enumerate(limits, 1):
        prefix = limit.get("path_prefix", "/")
        if prefix.strip("/") and path.startswith(prefix):
            yield (
                f"site_rate_limits, entry {number}, is for {prefix}, which is what health checks ask (site_health_path is {path}): "
                "whoever watches the site would be told 429. Give it another path_prefix."
            )


def environment_problems(place: str, values: Mapping[str, Any]) -> Iterator[str]:
    """The sentences for environment variables, which are named and never shown."""
    for name, value in values.items():
        if TAKEN.fullmatch(str(name)):
            yield f"{place} has {name} on @, which the kit sets itself. Take it out."
        elif CONTROL.search(str(value)):
            yield (
                f"{place}.{name} has a line break or another control character in it on @, which an environment file "
                "cannot hold. Encode it (base64, say) or put it into a file."
            )


def worker_problems(workers: list[Mapping[str, Any]]) -> Iterator[str]:
    """The sentences for workers that no unit could be made of."""
    names = [str(worker["name"]) for worker in workers]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"site_workers has two workers called {name} on @. Rename one of them."
    for number, worker in enumerate(workers, 1):
        where = entry_place("site_workers", number, worker)
        if not WORKER_NAME.fullmatch(str(worker["name"])):
            yield f"{where} has a name that no unit can carry on @. Use small letters, digits, underscores and hyphens."
        if str(worker.get("pool") or "prefork") not in POOLS:
            yield f"{where} has the pool {worker['pool']} on @, which Celery does not have. Use one of {', '.join(POOLS)}."
        if worker.get("queues") == []:
            yield f"{where} has an empty list of queues on @. Name one, or leave queues out for [celery]."
        for name in ("concurrency", "time_limit", "soft_time_limit", "memory_mb"):
            if isinstance(worker.get(name), int) and worker[name] < 1:
                yield f"{where} has the {name} {worker[name]} on @. It is 1 or more."


def url_problems(static: str, media: str) -> list[str]:
    """The sentence for static files and uploads under one address."""
    if static != media:
        return []
    return [f"site_static_url and site_media_url are both {static}. Give each its own."]


def share_problems(shares: Mapping[str, Any], claims: Iterable[str]) -> Iterator[str]:
    """The sentences for services of a host that its own division of the memory forgets."""
    if not shares:
        return
    for service in sorted(set(claims) - set(shares)):
        near = nearest(service, set(shares) - set(claims))
        advice = f"Is {near} meant for it?" if near else "Add one."
        yield f"site_memory_shares has no share for {service}, which runs on @. {advice}"
