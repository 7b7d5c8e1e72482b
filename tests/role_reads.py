"""Which variables a role reads: every Jinja expression in its YAML files and templates, parsed rather than searched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, TemplateSyntaxError, meta, nodes

# Keys whose text is an expression without braces.
BARE = {"when", "changed_when", "failed_when", "until", "that", "break_when"}
# What Ansible and Jinja give to every template.
BUILT_IN = {
    "ansible_facts", "ansible_check_mode", "ansible_diff_mode", "ansible_managed", "ansible_failed_result",
    "lookup", "query", "q", "now", "undef", "omit", "role_path",
    "range", "dict", "namespace", "lipsum", "cycler", "joiner", "loop", "self", "super", "caller", "varargs", "kwargs", "_",
}  # fmt: skip
# How this controller reaches the host: no part of the inventory's shape, and nobody else can tell a role.
CONNECTION = {
    "ansible_user": "the account that must not lock itself out",
    "ansible_host": "where the second connection goes that proves that the first was not cut",
    "ansible_port": "the port that the firewall must never close",
    "ansible_connection": "no second connection can be tried where there is no SSH",
    "ansible_playbook_python": "the controller's own Python, for tasks that run there",
    "ansible_python_interpreter": "the same",
}


class AnyName(dict[str, Any]):
    """Filters and tests come from collections and roles; here every name is one."""

    def get(self, name: str, default: Any = None) -> Any:
        return str


JINJA = Environment(extensions=["jinja2.ext.do", "jinja2.ext.loopcontrols"])  # those that Ansible has on
JINJA.filters, JINJA.tests = AnyName(), AnyName()


def load_all(path: Path) -> Any:
    """A YAML file with Ansible's own tags taken as plain values."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda loader, suffix, node: getattr(node, "value", None))
    return yaml.load(path.read_text(), Loader)


def expressions(data: Any, bare: bool = False) -> Iterator[str]:
    """Every text of a YAML document that Ansible would evaluate, as a template."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from expressions(key)
            yield from expressions(value, bare=key in BARE)
    elif isinstance(data, list):
        for value in data:
            yield from expressions(value, bare)
    elif isinstance(data, str):
        if "{{" in data or "{%" in data:
            yield data
        elif bare:
            yield f"{{{{ {data} }}}}"


def given(data: Any) -> set[str]:
    """The names that tasks make themselves: registered, set, looped over, or handed to a template or an import."""
    names: set[str] = set()
    if isinstance(data, dict):
        for key, value in data.items():
            if key in ("vars", "ansible.builtin.set_fact", "set_fact") and isinstance(value, dict):
                names |= set(value)
            if key in ("register", "loop_var", "index_var") and isinstance(value, str):
                names.add(value)
            if key in ("loop", "with_items", "until"):
                names |= {"item", "ansible_loop"}
            names |= given(value)
    elif isinstance(data, list):
        for value in data:
            names |= given(value)
    return names


def is_template(path: Path) -> bool:
    return "templates" in path.parts


def files(role: Path) -> list[Path]:
    folders = ("tasks", "handlers", "templates", "defaults", "vars")
    found = (path for folder in folders for path in (role / folder).rglob("*") if path.is_file())
    return sorted(path for path in found if is_template(path) or path.suffix in (".yml", ".yaml"))


def texts(path: Path) -> list[str]:
    """The templates in a file: the file itself, or what its YAML evaluates."""
    return [path.read_text()] if is_template(path) else list(expressions(load_all(path)))


def reads(role: Path) -> dict[str, set[str]]:
    """Per file, the variables it reads that nothing in the role gives; ValueError names a template that is no template."""
    made = {name for path in files(role) if not is_template(path) for name in given(load_all(path))}
    found: dict[str, set[str]] = {}
    for path in files(role):
        for text in texts(path):
            try:
                names = meta.find_undeclared_variables(JINJA.parse(text))
            except TemplateSyntaxError as error:
                raise ValueError(f"{path}: {error}") from error
            found.setdefault(str(path.relative_to(role)), set()).update(names - made - BUILT_IN)
    return found


def makes(role: Path) -> set[str]:
    """The names that the role's tasks register or set."""
    return {name for path in files(role) if not is_template(path) for name in _kept(load_all(path))}


def _kept(data: Any) -> set[str]:
    names: set[str] = set()
    if isinstance(data, dict):
        for key, value in data.items():
            if key in ("ansible.builtin.set_fact", "set_fact") and isinstance(value, dict):
                names |= set(value) - {"cacheable"}
            if key == "register" and isinstance(value, str):
                names.add(value)
            names |= _kept(value)
    elif isinstance(data, list):
        for value in data:
            names |= _kept(value)
    return names


def facts(role: Path) -> set[str]:
    """The names of the facts that the role reads, as ansible_facts.name or ansible_facts['name']."""
    return {name for path in files(role) for text in texts(path) for name in facts_of(text)}


def facts_of(text: str) -> set[str]:
    tree = JINJA.parse(text)
    names = set()
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        if isinstance(node.node, nodes.Name) and node.node.name == "ansible_facts":
            if isinstance(node, nodes.Getattr):
                names.add(node.attr)
            elif isinstance(node.arg, nodes.Const):
                names.add(node.arg.value)
    return names


def foreign(role: Path) -> dict[str, list[str]]:
    """Per file, what the role reads that is neither its own, nor Ansible's, nor the connection's."""
    own = (f"{role.name}_", f"_{role.name}_")
    found = {}
    for file, names in reads(role).items():
        bad = sorted(name for name in names if not name.startswith(own) and name not in CONNECTION)
        if bad:
            found[file] = bad
    return found
