"""What the preload callback loads is there before Ansible forks, for the plugins of all the kit's roles."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from jinja2 import Environment

from kit import ROOT

PLAY = """
- hosts: localhost
  gather_facts: false
  roles: [certificates]
"""
# Stops where the first process would be forked. Says whether what a filter of the role imports is loaded by then, and whether a
# process that is forked there leaves to itself what it is born with, and the first one nothing.
PROBE = """
import gc, os, sys
from ansible.executor.process import worker
def start(self):
    print("LOADED", "cryptography.x509" in sys.modules, flush=True)
    if os.fork() == 0:
        print("FROZEN IN A TASK", gc.get_freeze_count() > 10_000, flush=True)
        os._exit(0)
    os.wait()
    print("FROZEN", gc.get_freeze_count() > 0, flush=True)
    os._exit(0)
worker.WorkerProcess.start = start
from ansible.cli.playbook import main
main()
"""


def said(tmp_path: Path, **environment: str) -> dict[str, bool]:
    play = tmp_path / "play.yml"
    play.write_text(PLAY)
    done = subprocess.run(
        [sys.executable, "-c", PROBE, "-i", "localhost,", "-c", "local", str(play)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "LC_ALL": "C.UTF-8", **environment},
    )  # fmt: skip
    return {
        found[1]: found[2] == "True" for found in re.finditer(r"^([A-Z ]+) (True|False)$", done.stdout, re.MULTILINE)
    }


def test_what_tasks_need_is_loaded_before_the_first_is_forked_and_no_task_searches_it_for_garbage(
    tmp_path: Path,
) -> None:
    assert said(tmp_path) == {"LOADED": True, "FROZEN IN A TASK": True, "FROZEN": False}
    without = {"ANSIBLE_CALLBACK_PLUGINS": str(tmp_path)}
    assert said(tmp_path, **without) == {"LOADED": False, "FROZEN IN A TASK": False, "FROZEN": False}


def test_template_is_compiled_once_and_again_where_its_text_is_meant_otherwise() -> None:
    compiled: list[str] = []

    class Counting(Environment):
        def _generate(self, source: Any, *words: Any, **more: Any) -> str:
            compiled.append(str(words))
            return str(super()._generate(source, *words, **more))

    assert hasattr(Environment.compile, "__wrapped__")
    first, second, other = Counting(), Counting(), Counting(variable_start_string="<<", variable_end_string=">>")
    for environment in (first, second):
        assert environment.from_string("{{ a }}{{ b }}").render(a=1, b=2) == "12"
    assert len(compiled) == 1
    assert other.from_string("{{ a }}{{ b }}").render(a=1, b=2) == "{{ a }}{{ b }}"
    assert Counting(trim_blocks=True).from_string("{{ a }}{{ b }}").render(a=3, b=4) == "34"
    assert len(compiled) == 3
    for _ in range(2):
        assert first.from_string(r"{{ '\\n' }}").render() == "\\n"
    assert len(compiled) == 5


def test_backslashes_of_expressions_and_of_files_stay_apart() -> None:
    from ansible.parsing.dataloader import DataLoader
    from ansible.template import Templar, trust_as_template

    text = trust_as_template(r"{{ '\\1' }}")
    templar = Templar(loader=DataLoader(), variables={})
    for _ in range(2):
        assert [len(templar.template(text, escape_backslashes=escape)) for escape in (True, False)] == [3, 2]


# More than `preload.MANY`, so that what is tested below is what a run's variables get.
OTHERS = {f"other_{number}": number for number in range(200)}


def test_a_variable_that_has_changed_is_seen_by_the_next_template() -> None:
    from ansible.parsing.dataloader import DataLoader
    from ansible.template import Templar, trust_as_template

    variables: dict[str, Any] = {**OTHERS, "item": 1, "twice": trust_as_template("{{ item * 2 }}")}
    templar = Templar(loader=DataLoader(), variables=variables)
    ask = trust_as_template("{{ twice }} {{ extra | default('none') }}")
    seen = [templar.template(ask)]
    variables["item"] = 2
    seen.append(templar.template(ask))
    variables["extra"] = "more"
    seen.append(templar.template(ask))
    del variables["extra"]
    variables["twice"] = trust_as_template("{{ item * 3 }}")
    seen.append(templar.template(ask))
    assert seen == ["2 none", "4 none", "4 more", "6 none"]


def test_a_variable_is_templated_anew_for_each_template() -> None:
    from ansible.parsing.dataloader import DataLoader
    from ansible.template import Templar, trust_as_template

    variables = {**OTHERS, "drawn": trust_as_template("{{ 1000000000000 | random }}")}
    templar = Templar(loader=DataLoader(), variables=variables)
    assert len({templar.template(trust_as_template("{{ drawn }}")) for _ in range(3)}) == 3


def test_variables_are_wrapped_once_as_long_as_they_are_the_same() -> None:
    from ansible._internal._templating._lazy_containers import _AnsibleLazyTemplateDict
    from ansible._internal._templating._utils import LazyOptions, TemplateContext
    from ansible.parsing.dataloader import DataLoader
    from ansible.template import Templar

    variables: dict[str, Any] = dict(OTHERS)
    templar = Templar(loader=DataLoader(), variables=variables)._engine

    def wrapped(values: dict[str, Any]) -> Any:
        with TemplateContext(template_value="", templar=templar, options=None):
            return _AnsibleLazyTemplateDict._lazy_values(values, LazyOptions.DEFAULT)

    first = wrapped(variables)
    assert first.templar is templar
    assert wrapped(variables).source is first.source
    variables["other_7"] = 7.0
    assert wrapped(variables).source is not first.source
    few = {"one": 1}
    assert wrapped(few).source is not wrapped(few).source


def test_a_folder_of_plugins_is_listed_once(tmp_path: Path) -> None:
    from ansible.utils.collection_loader import _collection_finder

    (tmp_path / "one.py").touch()
    plain = _collection_finder._iter_modules_impl.__wrapped__
    first = list(_collection_finder._iter_modules_impl([str(tmp_path)], "plugins."))
    assert [name for name, *_ in first] == ["plugins.one"]
    (tmp_path / "two.py").touch()
    assert list(_collection_finder._iter_modules_impl([str(tmp_path)], "plugins.")) == first
    assert [name for name, *_ in plain([str(tmp_path)], "plugins.")] == ["plugins.one", "plugins.two"]
