"""guarded_files changes what can lock one out, and knows the way back: refused, unproved or abandoned, all is as before.

The host's part runs for real, on files in a folder of the test's own. Two programs stand in for systemd, which is not
there without a container: `systemd-run` waits and runs what it was given, `systemctl stop` ends it. The firewall's
scenario has the real ones.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure

ROOT = Path(__file__).resolve().parents[2]
SYSTEMD_RUN = """#!/bin/sh
for word in "$@"; do
  case $word in
    --unit=*) unit=${word#--unit=} ;;
    --on-active=*) seconds=${word#--on-active=} ;;
  esac
done
while [ "${1#--}" != "$1" ]; do shift; done
(sleep "$seconds" && exec "$@") > /dev/null 2>&1 &
echo $! > "$TIMERS/$unit.timer"
"""
SYSTEMCTL = """#!/bin/sh
echo "$@" >> "$TIMERS/../asked"
if [ "$1" = stop ] && [ -f "$TIMERS/$2" ]; then kill "$(cat "$TIMERS/$2")"; rm "$TIMERS/$2"; fi
"""


def load(kind):
    spec = importlib.util.spec_from_file_location("guarded_" + kind, ROOT / f"roles/_common/{kind}/guarded_files.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


library, action = load("library"), load("action_plugins")


class Host:
    """A folder that plays the host: /etc with a file in it, guards, timers, and what "the service" has loaded."""

    def __init__(self, folder):
        self.folder, self.file, self.fresh = folder, folder / "etc/old.conf", folder / "etc/new.d/new.conf"
        self.effect = folder / "effect"  # what is in effect: `apply` and `restore` copy the file there
        for name in ("etc", "bin", "timers"):
            (folder / name).mkdir()
        for name, text in (("systemd-run", SYSTEMD_RUN), ("systemctl", SYSTEMCTL)):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        self.file.write_text("old")
        self.file.chmod(0o640)
        self.effect.write_text("old")

    def payload(self, **more):
        base = {
            "name": "thing", "files": [self.entry(self.file, "new"), self.entry(self.fresh, "fresh")], "seconds": 30,
            "verify": None, "expect": [], "snapshot": f"cp {self.effect} kept", "loaded": f"cat {self.effect}",
            "apply": f"cp {self.file} {self.effect}", "restore": f"cp kept {self.effect}",
        }  # fmt: skip
        return {**base, **more}

    @staticmethod
    def entry(dest, content, mode="0640", validate=None):
        return {"dest": str(dest), "content": content, "mode": mode, "validate": validate}

    def guard(self, **more):
        return library.Guard(self.payload(**more))

    def state(self):
        """Every file but the stand-ins and records, with content and mode."""
        paths = [path for path in self.folder.rglob("*") if path.is_file() and path.parent.name != "bin"]
        left = [path for path in paths if path.name != "asked" and not path.name.endswith(".loaded")]
        return {str(path): (path.read_text(), path.stat().st_mode & 0o777) for path in left}

    def asked(self):
        """What systemctl was asked since this was last called."""
        found = (self.folder / "asked").read_text().splitlines()
        (self.folder / "asked").write_text("")
        return found

    def boot(self):
        """Do what systemd does after a reboot: the timers are gone, and the units that sysinit.target wants run."""
        for timer in (self.folder / "timers").iterdir():
            subprocess.run(["kill", timer.read_text().strip()], check=True)
            timer.unlink()
        for link in (self.folder / "units/sysinit.target.wants").iterdir():
            [line] = [line for line in link.read_text().splitlines() if line.startswith("ExecStart=")]
            subprocess.run(line.removeprefix("ExecStart=").split(), check=True)


@pytest.fixture
def host(tmp_path, monkeypatch):
    found = Host(tmp_path)
    monkeypatch.setattr(library, "GUARDS", str(tmp_path / "guards"))
    monkeypatch.setattr(library, "UNITS", str(tmp_path / "units"))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("TIMERS", str(tmp_path / "timers"))
    yield found
    for timer in (tmp_path / "timers").iterdir():
        subprocess.run(["kill", timer.read_text().strip()], check=False, stderr=subprocess.DEVNULL)


def settled(host, **more):
    """The configuration of payload(**more), applied and confirmed."""
    host.guard(**more).compare()
    host.guard(**more).apply()
    host.guard(**more).confirm()


def test_comparing_tells_what_would_change_and_touches_nothing(host):
    before = host.state()
    found = host.guard().compare()
    assert found["changed"] and found["changed_files"] == [str(host.file), str(host.fresh)]
    assert [(diff["before"], diff["after"]) for diff in found["diff"]] == [("old", "new"), ("", "fresh")]
    assert host.state() == before


def test_second_run_changes_nothing(host):
    settled(host)
    assert (host.file.read_text(), host.fresh.read_text(), host.effect.read_text()) == ("new", "fresh", "new")
    assert host.fresh.stat().st_mode & 0o777 == 0o640
    assert host.guard().compare() == {"changed": False, "changed_files": [], "diff": []}


def test_wrong_mode_alone_is_noticed(host):
    settled(host)
    host.file.chmod(0o666)
    assert host.guard().compare()["changed_files"] == [str(host.file)]


def test_what_was_changed_by_hand_in_effect_is_noticed_and_shown(host):
    settled(host)
    host.effect.write_text("by hand")
    [diff] = host.guard().compare()["diff"]
    assert (diff["before"], diff["after"]) == ("by hand\n", "new\n")
    settled(host)
    assert host.effect.read_text() == "new" and host.guard().compare()["changed"] is False


def test_nothing_in_effect_is_a_difference_too(host):
    settled(host)
    host.effect.unlink()
    assert host.guard().compare()["changed"]


def test_refused_by_its_program_before_anything_changes(host):
    before = host.state()
    files = [host.entry(host.file, "new"), host.entry(host.fresh, "bad", validate="grep -q good %s")]
    with pytest.raises(library.Refused, match=r"new.conf was refused by `grep -q good %s`: .* The old files stay"):
        host.guard(files=files).compare()
    assert host.state() == before


def test_a_program_that_is_not_installed_yet_is_not_asked(host):
    files = [host.entry(host.file, "new", validate="no-such-program -c %s")]
    assert host.guard(files=files).compare()["changed"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"verify": "echo line 3: nonsense; false"}, "refused the new configuration: line 3: nonsense. Everything was"),
        ({"verify": "echo port 22", "expect": ["port 22", "port 2222"]}, "says port 22, not port 2222. Everything was"),
        ({"apply": "echo no such device; false"}, "failed: no such device. Everything was put back as it was"),
        ({"apply": "cp {file} {effect}; false"}, "Everything was put back as it was"),
    ],
)
def test_whatever_refuses_after_the_change_everything_is_put_back(host, more, sentence):
    before = host.state()
    more = {
        key: value.format(file=host.file, effect=host.effect) if key == "apply" else value
        for key, value in more.items()
    }
    with pytest.raises(library.Refused, match=sentence):
        host.guard(**more).apply()
    assert host.state() == before


def test_expected_lines_that_verify_prints_are_enough(host):
    host.guard(verify="echo Port 22; echo other", expect=["port 22"]).apply()
    assert host.effect.read_text() == "new"


def test_rollback_puts_everything_back_and_stops_the_timer(host):
    before = host.state()
    host.guard().apply()
    assert host.effect.read_text() == "new" and list((host.folder / "timers").iterdir())
    assert host.guard().put_back() == {"changed": True, "by_timer": False}
    assert host.state() == before


def test_the_host_puts_everything_back_by_itself(host):
    before = host.state()
    host.guard(seconds=1).apply()
    assert host.effect.read_text() == "new"
    deadline = time.monotonic() + 10
    while host.effect.read_text() != "old" and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.3)
    (host.folder / "timers/stepladder-guard-thing.timer").unlink()
    assert host.state() == before
    with pytest.raises(library.Refused, match="the proof came too late"):
        host.guard(seconds=1).confirm()
    assert host.guard(seconds=1).put_back()["by_timer"]
    assert host.guard().compare()["changed"]


def test_a_reboot_before_anyone_confirmed_brings_the_old_files_back(host):
    before = host.state()
    host.guard().apply()
    host.effect.write_text("what the boot will load")
    host.asked()
    host.boot()
    assert host.asked() == ["daemon-reload"], "a service that waits for this one cannot be reloaded"
    assert host.effect.read_text() == "what the boot will load", "the old configuration is not loaded, it is in place"
    host.effect.write_text("old")
    assert host.state() == before
    host.boot()
    assert host.state() == before and host.guard().compare()["changed"]
    settled(host)
    host.boot()
    assert host.file.read_text() == "new"


def test_the_way_back_at_boot_comes_before_what_reads_the_files(host):
    units = host.folder / "units"
    files = [
        host.entry(host.file, "new"),
        host.entry(units / "a.service", "[Unit]"),
        host.entry(units / "b.socket.d/x.conf", ""),
    ]
    host.guard(files=files).apply()
    unit = (units / "stepladder-guard-thing-boot.service").read_text().splitlines()
    assert "Before=sysinit.target network-pre.target a.service b.socket" in unit
    assert f"ConditionPathExists={host.folder}/guards/thing/put-back.sh" in unit


def test_confirmed_stays(host):
    host.guard(seconds=1).apply()
    host.guard(seconds=1).confirm()
    time.sleep(1.5)
    assert host.effect.read_text() == "new"
    assert sorted(os.listdir(host.folder / "guards")) == ["thing.loaded"]


def test_files_are_removed_and_come_back(host):
    before = host.state()
    gone = {"files": [{**host.entry(host.file, None), "mode": "0644"}], "apply": f"rm -f {host.effect}"}
    host.guard(**gone).apply()
    assert not host.file.exists() and not host.effect.exists()
    host.guard(**gone).put_back()
    assert host.state() == before
    settled(host, **gone)
    assert host.guard(**gone).compare()["changed"] is False


def test_a_run_that_was_cut_short_is_a_change_and_the_next_starts_from_what_worked(host):
    host.guard().apply()
    assert host.guard(loaded=None).compare()["changed"], "the files are right, but nobody confirmed them"
    before_third = [host.entry(host.file, "third")]
    host.guard(files=before_third).apply()
    assert host.effect.read_text() == "third" and not host.fresh.exists()
    host.guard(files=before_third).put_back()
    assert (host.file.read_text(), host.effect.read_text()) == ("old", "old")


def test_no_way_back_no_change(host):
    before = host.state()
    with pytest.raises(library.Refused, match="failed: disk full. The old files stay"):
        host.guard(snapshot="echo disk full; false").apply()
    assert not host.guard().pending()
    (host.folder / "bin/systemd-run").write_text("#!/bin/sh\necho no bus; exit 1\n")
    with pytest.raises(library.Refused, match="no timer could be set .*: no bus. The old files stay"):
        host.guard().apply()
    (host.folder / "bin/systemd-run").write_text(SYSTEMD_RUN)
    settled(host)
    host.guard(files=[host.entry(host.file, "old"), host.entry(host.fresh, None)]).apply()
    host.guard(files=[host.entry(host.file, "old"), host.entry(host.fresh, None)]).confirm()
    assert host.state() == before


def test_odd_names_survive_the_way_back(host):
    odd = host.folder / "etc/it's $odd `name`.conf"
    odd.write_text("old")
    before = host.state()
    host.guard(files=[host.entry(odd, "new")], apply="true").apply()
    assert odd.read_text() == "new"
    host.guard(files=[host.entry(odd, "new")]).put_back()
    assert host.state() == before


class Action(action.ActionModule):
    """The controller's part with the host's in the same process; `answers` are what new connections say, in order."""

    def __init__(self, host, answers, transport="ssh", check=False, lost=(), **args):
        payload = host.payload()
        files = [{key: value for key, value in item.items() if value is not None} for item in payload.pop("files")]
        payload.pop("verify"), payload.pop("expect")
        task = SimpleNamespace(args={**payload, "files": files, **args}, async_val=0, check_mode=check)
        shell = SimpleNamespace(tmpdir=None)
        connection = SimpleNamespace(transport=transport, _shell=shell, get_option=lambda name: "192.0.2.7")
        super().__init__(task, connection, SimpleNamespace(remote_addr="192.0.2.7"), None, None, None)
        self.answers, self.asked, self.stages, self.lost = list(answers), [], [], list(lost)

    def _fresh_connection(self, port, key_only):
        self.asked.append((port, key_only))
        return self.answers.pop(0)

    def _stage(self, stage, **more):
        self.stages.append(stage)
        if stage in self.lost:
            self.lost.remove(stage)
            raise AnsibleConnectionFailure("gone")
        guard = library.Guard({**self._payload, **more})
        step = {"compare": guard.compare, "apply": guard.apply, "confirm": guard.confirm, "rollback": guard.put_back}
        try:
            return step[stage]()
        except library.Refused as refusal:
            return {"failed": True, "msg": f"{guard.name}: {refusal}"}


def test_kept_when_a_new_connection_works_before_and_after(host):
    run = Action(host, ["", ""], port=2222, key_only=True)
    assert run.run()["changed"]
    assert run.asked == [(None, True), (2222, True)]
    assert host.effect.read_text() == "new" and not host.guard().pending()
    again = Action(host, [])
    assert again.run()["changed"] is False and again.stages == ["compare"]


def test_check_mode_compares_only(host):
    before = host.state()
    run = Action(host, [], check=True)
    assert run.run()["changed"] and run.stages == ["compare"]
    assert host.state() == before


def test_without_a_way_in_today_nothing_is_tried(host):
    before = host.state()
    with pytest.raises(AnsibleActionFail, match=r"does not work even now \(refused\).* The old files stay. Do this."):
        Action(host, ["refused"], advice="Do this.").run()
    assert host.state() == before


def test_without_a_way_in_afterwards_the_old_one_is_put_back(host):
    before = host.state()
    sentence = r"no new SSH connection to 192.0.2.7 succeeds \(timed out\). The old one was put back. Do this."
    with pytest.raises(AnsibleActionFail, match=sentence):
        Action(host, ["", "timed out"], advice="Do this.").run()
    assert host.state() == before


def test_when_even_the_standing_connection_is_gone_the_hosts_own_rollback_is_waited_for(host, monkeypatch):
    monkeypatch.setattr(action.time, "sleep", lambda seconds: library.Guard(host.payload()).put_back())
    with pytest.raises(AnsibleActionFail, match="The host put the old one back by itself"):
        Action(host, ["", "timed out"], lost=["rollback"]).run()
    assert host.effect.read_text() == "old"


def test_a_refusal_by_the_host_is_the_tasks_own(host):
    run = Action(host, [""], apply="false")
    result = run.run()
    assert result["failed"] and "Everything was put back" in result["msg"] and not result["changed"]
    assert run.stages == ["compare", "apply"]


def test_without_ssh_it_is_applied_at_once_and_says_so(host):
    result = Action(host, [], transport="docker").run()
    assert result["changed"] and "does not use SSH but docker" in result["msg"]
    assert host.effect.read_text() == "new" and not list((host.folder / "timers").iterdir())
    assert Action(host, [], transport="docker").run()["changed"] is False


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"name": "thing", "files": [{"dest": "/x"}], "apply": "true", "undo": "x"}, "Unknown: undo"),
        ({"name": "thing", "files": [{"dest": "/x", "owner": "me"}], "apply": "true"}, "Unknown: owner"),
        ({"files": [{"dest": "/x"}], "apply": "true"}, "needs name, files and apply"),
        ({"name": "thing", "files": [{"dest": "/x"}], "apply": "true", "seconds": 0}, "too short to prove"),
    ],
)
def test_a_wrong_task_gets_one_clear_sentence(args, sentence):
    words = [Path(sys.executable).with_name("ansible"), "localhost", "-c", "local", "-m", "guarded_files", "-a"]
    done = subprocess.run([*words, json.dumps(args)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and sentence in " ".join(done.stdout.split()), done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
