"""config_files puts a set of files in place in one call: atomic, validated, honest in check mode, silent about secrets."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OWNER = pwd.getpwuid(os.getuid()).pw_name
GROUP = str(os.getgid())


def load_module():
    spec = importlib.util.spec_from_file_location("config_files", ROOT / "roles/_common/library/config_files.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


config_files = load_module()


def entry(dest, **more):
    base = {
        "dest": str(dest), "state": "present", "owner": OWNER, "group": GROUP, "mode": "0640", "validate": None,
        "secret": False, "effect": None, "once": False, "link": None, "content": None,
    }  # fmt: skip
    return {**base, **more}


def put(*files, directories=(), verify=None, check=False):
    return config_files.put_in_place({"files": files, "directories": directories, "verify": verify}, check)


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".stepladder~")]


def test_second_run_changes_nothing(tmp_path):
    files = [entry(tmp_path / "a", content="one\n"), entry(tmp_path / "b", link="a")]
    assert put(*files)["changed_files"] == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert put(*files) == {"changed": False, "changed_files": [], "effects": [], "diff": []}
    assert (tmp_path / "a").read_text() == "one\n"
    assert os.readlink(tmp_path / "b") == "a"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_effects_are_those_of_changed_files_only(tmp_path):
    put(entry(tmp_path / "a", content="one", effect="restart"), entry(tmp_path / "b", content="one", effect="reload"))
    result = put(
        entry(tmp_path / "a", content="one", effect="restart"), entry(tmp_path / "b", content="two", effect="reload")
    )
    assert result["effects"] == ["reload"]


def test_check_mode_tells_but_touches_nothing(tmp_path):
    (tmp_path / "a").write_text("old\n")
    result = put(entry(tmp_path / "a", content="new\n"), entry(tmp_path / "no" / "b", content="x"), check=True)
    assert result["changed_files"] == [str(tmp_path / "a"), str(tmp_path / "no" / "b")]
    assert result["diff"][0]["before"].endswith("old\n") and result["diff"][0]["after"].endswith("new\n")
    assert (tmp_path / "a").read_text() == "old\n"
    assert os.listdir(tmp_path) == ["a"]


def test_check_mode_bears_a_user_that_does_not_exist_yet_and_a_real_run_names_it(tmp_path):
    file = entry(tmp_path / "a", content="x", owner="nobody-made-me")
    assert put(file, check=True)["changed"]
    with pytest.raises(config_files.Refused, match="user nobody-made-me, which does not exist"):
        put(file)
    assert not (tmp_path / "a").exists()


def test_refused_by_its_program_changes_nothing(tmp_path):
    (tmp_path / "a").write_text("good")
    (tmp_path / "b").write_text("good")
    with pytest.raises(config_files.Refused, match="refused by"):
        put(entry(tmp_path / "a", content="new"), entry(tmp_path / "b", content="bad", validate="grep -q good %s"))
    assert (tmp_path / "a").read_text() == "good" and (tmp_path / "b").read_text() == "good"
    assert leftovers(tmp_path) == []


def test_check_mode_asks_the_program_too(tmp_path):
    (tmp_path / "a").write_text("good")
    with pytest.raises(config_files.Refused):
        put(entry(tmp_path / "a", content="bad", validate="grep -q good %s"), check=True)


def test_failed_verify_puts_the_whole_set_back(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(0o600)
    (tmp_path / "gone").write_text("still wanted")
    (tmp_path / "link").symlink_to("a")
    with pytest.raises(config_files.Refused, match="put back"):
        put(
            entry(tmp_path / "a", content="new"),
            entry(tmp_path / "fresh", content="new"),
            entry(tmp_path / "gone", state="absent"),
            entry(tmp_path / "link", link="fresh"),
            verify="false",
        )
    assert (tmp_path / "a").read_text() == "old"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "gone").read_text() == "still wanted"
    assert os.readlink(tmp_path / "link") == "a"
    assert not (tmp_path / "fresh").exists()
    assert leftovers(tmp_path) == []


def test_a_refusal_shows_the_beginning_of_a_long_command_and_all_of_what_it_said(tmp_path):
    with pytest.raises(config_files.Refused) as refusal:
        put(
            entry(tmp_path / "a", content="new"), verify=f"sh -c 'echo shared_bufers is unknown; {'true; ' * 40} false'"
        )
    assert str(refusal.value).startswith("`sh -c 'echo shared_bufers is unknown; true; true; ")
    assert "...` refused the new configuration: shared_bufers is unknown. Every file" in str(refusal.value)
    assert config_files.shortened("sshd  -T") == "sshd -T"


def test_verify_runs_only_when_something_changed(tmp_path):
    put(entry(tmp_path / "a", content="x"))
    assert put(entry(tmp_path / "a", content="x"), verify="false")["changed"] is False


def test_secret_content_stays_out_of_the_result(tmp_path):
    (tmp_path / "a").write_text("old-password")
    result = put(entry(tmp_path / "a", content="new-password", secret=True))
    assert "password" not in json.dumps(result)
    assert result["changed"]


def test_wrong_mode_alone_is_mended_and_shown(tmp_path):
    put(entry(tmp_path / "a", content="x"))
    (tmp_path / "a").chmod(0o666)
    result = put(entry(tmp_path / "a", content="x"))
    assert result["changed"] and "0666" in result["diff"][0]["before"]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_once_is_never_overwritten(tmp_path):
    (tmp_path / "a").write_text("the user's")
    (tmp_path / "a").chmod(0o640)
    assert put(entry(tmp_path / "a", content="ours", once=True))["changed"] is False
    assert (tmp_path / "a").read_text() == "the user's"


def test_a_directory_in_the_way_is_never_replaced(tmp_path):
    (tmp_path / "a").mkdir()
    for file in (entry(tmp_path / "a", content="x"), entry(tmp_path / "a", state="absent")):
        with pytest.raises(config_files.Refused, match="is a directory"):
            put(file)
    assert (tmp_path / "a").is_dir()


def test_directories_are_made_in_order_and_mended(tmp_path):
    folder = {"path": str(tmp_path / "x" / "y"), "owner": OWNER, "group": GROUP, "mode": "0750", "state": "present"}
    file = entry(tmp_path / "x" / "y" / "a", content="x")
    assert put(file, directories=[folder])["changed"]
    (tmp_path / "x" / "y").chmod(0o777)
    assert put(file, directories=[folder])["changed"]
    assert (tmp_path / "x" / "y").stat().st_mode & 0o777 == 0o750
    assert put(file, directories=[folder])["changed"] is False


def test_a_refusal_takes_directories_back_too(tmp_path):
    (tmp_path / "old").mkdir(mode=0o700)
    entries = [
        {"path": str(tmp_path / name), "owner": OWNER, "group": GROUP, "mode": "0750", "state": "present"}
        for name in ("old", "new/deep", "new/deep/er")
    ]
    for more in ({"validate": "false %s"}, {}):
        with pytest.raises(config_files.Refused):
            put(entry(tmp_path / "new/deep/a", content="x", **more), directories=entries, verify="false")
        assert os.listdir(tmp_path) == ["old"]
        assert (tmp_path / "old").stat().st_mode & 0o777 == 0o700


PLAY = """
- hosts: localhost
  gather_facts: false
  vars: {{who: Zoë, secret: 's3cr3t-%$"\\'}}
  tasks:
    - name: Write
      config_files:
        owner: "{owner}"
        group: "{group}"
        files: {files}
      register: _done
    - name: Tell
      ansible.builtin.debug:
        msg: "RESULT={{{{ _done.changed_files | length }}}}"
"""


def play(tmp_path, files, *options):
    (tmp_path / "templates").mkdir(exist_ok=True)
    (tmp_path / "templates" / "hello.j2").write_text("Hello {{ who }} {{ greeting | default('') }}{{ secret }}\n")
    (tmp_path / "play.yml").write_text(PLAY.format(owner=OWNER, group=GROUP, files=json.dumps(files)))
    return subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", "-c", "local",
         "-e", f"ansible_python_interpreter={sys.executable}", tmp_path / "play.yml", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=60, env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
    )  # fmt: skip


def test_templates_are_rendered_on_the_controller_with_odd_values(tmp_path):
    files = [{"dest": str(tmp_path / "out"), "template": "hello.j2", "vars": {"greeting": "100% "}, "secret": True}]
    done = play(tmp_path, files, "-vvv", "--diff")
    assert "RESULT=1" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "out").read_text() == 'Hello Zoë 100% s3cr3t-%$"\\\n'
    assert "s3cr3t" not in done.stdout + done.stderr
    packed = base64.b64encode(b'{"directories"')[:12].decode()
    assert packed not in done.stdout


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([{"dest": "/x", "content": "x", "mode": 644}], 'Write it as quoted octal, "0644"'),
        ([{"dest": "/x", "contents": "x"}], "unknown key contents"),
        ([{"dest": "/x"}], "needs exactly one of template, content, link; found none"),
        ([{"dest": "/x", "content": "a"}, {"dest": "/x", "content": "b"}], "listed twice"),
        ([{"dest": "/x", "content": "a", "validate": "true"}], "must name the file as %s"),
    ],
)
def test_a_wrong_task_gets_one_clear_sentence(tmp_path, files, sentence):
    done = play(tmp_path, files)
    assert done.returncode != 0
    assert sentence in done.stdout.replace("\\", ""), done.stdout
    assert "Traceback" not in done.stdout + done.stderr
