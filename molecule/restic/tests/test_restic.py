"""What the role promises, asked of a host with uploads and of the one that keeps their backups."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import testinfra

HERE = Path(__file__).resolve().parents[1]
TLS = "/etc/stepladder/tls"
CONTROL = "/etc/restic-uploads/control"
LIVE = "/srv/shop/media"
REPOSITORY = "/var/lib/restic-uploads/repository"
PASSPHRASE = "passphrase-of-the-scenario"
DAY = 86400


@pytest.fixture
def source(host: Any) -> Any:
    if "repository" in host.backend.get_hostname():
        pytest.skip("asked from the host with the uploads")
    return host


@pytest.fixture
def keeper(source: Any) -> Any:
    return testinfra.get_host("docker://" + name_of_keeper(source))


@pytest.fixture
def live(source: Any) -> Iterator[Any]:
    """Uploads as a site makes them, and a backup of them."""
    made = (
        f"rm -rf {LIVE}", f"mkdir -p {LIVE}/a/.incoming", f"cd {LIVE}/a", "head -c 3000000 /dev/urandom > large", "echo one > 'b [1]*.txt'",
        "echo secret > private", "chown www-data private", "chmod 600 private", "echo part > .incoming/p", "ln -s large link",
    )  # fmt: skip
    source.check_output(" && ".join(made))
    source.check_output(f"{CONTROL} backup")
    yield source
    source.run("rm -rf /var/tmp/restored")


def name_of_keeper(source: Any) -> str:
    return str(source.backend.get_hostname()).replace("-debian", "-repository-debian")


def play(only: str = "all", playbook: str = "again.yml", words: tuple[str, ...] = (), **values: Any) -> dict[str, Any]:
    """Run the role again: {rc, changed, words, output}."""
    environment = {
        **os.environ, "ANSIBLE_CONFIG": str(HERE.parents[1] / "ansible.cfg"), "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1", "ANSIBLE_ROLES_PATH": str(HERE.parents[1] / "roles"),
    }  # fmt: skip
    extra = json.dumps({**values, "only": only})
    command = ["ansible-playbook", "-i", os.environ["MOLECULE_INVENTORY_FILE"], str(HERE / playbook), "-e", extra]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=300, env=environment)
    report = json.loads(done.stdout[done.stdout.index("{") :])
    results = [r for play in report["plays"] for task in play["tasks"] for r in task["hosts"].values()]
    return {
        "rc": done.returncode,
        "changed": sum(stats["changed"] for stats in report["stats"].values()),
        "words": [str(r.get("msg", "")) for r in results if not r.get("skipped")],
        "output": done.stdout + done.stderr,
    }


def door_of(source: Any) -> str:
    """The word that the server asks for."""
    return str(source.check_output("cat /etc/restic-uploads/url").split(":")[3].split("@")[0])


def status(machine: Any) -> dict[str, Any]:
    return dict(json.loads(machine.run(f"{CONTROL} status").stdout))


def ids(keeper: Any) -> set[str]:
    return {one["id"] for one in status(keeper)["snapshots"]}


def fails(machine: Any, command: str, *sentences: str) -> str:
    """A command that must fail with these words, and not with a traceback; gives its output."""
    done = machine.run(command)
    assert done.rc != 0, f"{command} did not fail"
    assert "Traceback" not in done.stderr
    missing = [sentence for sentence in sentences if sentence not in done.stderr]
    assert missing == [], done.stderr
    return str(done.stdout)


# --- backup and restore


def test_what_is_restored_is_what_was_backed_up(live: Any, keeper: Any) -> None:
    told = json.loads(live.check_output(f"{CONTROL} restore latest /var/tmp/restored"))
    assert (told["files"], told["bytes"]) == (4, 3000011)
    live.check_output(f"diff -r --no-dereference --exclude=.incoming {LIVE} /var/tmp/restored{LIVE}")
    assert live.check_output(f"stat -c '%U %a' /var/tmp/restored{LIVE}/a/private") == "www-data 600"
    assert not live.file(f"/var/tmp/restored{LIVE}/a/.incoming/p").exists
    fails(live, f"{CONTROL} restore latest /var/tmp/restored", "/var/tmp/restored is not empty. Nothing was restored")
    fails(live, f"{CONTROL} restore latest {LIVE}/new", f"{LIVE}/new is in the way of {LIVE}")
    fails(live, f"{CONTROL} restore 4711 /var/tmp/other", "there is no one backup 4711")
    assert told["snapshot"] in ids(keeper)


def test_one_file_is_restored_alone(live: Any) -> None:
    live.check_output(f"{CONTROL} restore latest /var/tmp/restored --path '{LIVE}/a/b [1]*.txt'")
    assert live.check_output("find /var/tmp/restored -type f") == f"/var/tmp/restored{LIVE}/a/b [1]*.txt"


def test_the_host_that_keeps_the_backups_can_restore_them_too(live: Any, keeper: Any) -> None:
    keeper.check_output(f"{CONTROL} restore latest /var/tmp/restored")
    large = f"{LIVE}/a/large"
    assert keeper.file("/var/tmp/restored" + large).sha256sum == live.file(large).sha256sum
    keeper.check_output("rm -r /var/tmp/restored")
    assert keeper.check_output(f"find {REPOSITORY} -not -user restic-uploads") == ""


def test_what_is_missing_is_put_back_and_nothing_is_overwritten(live: Any) -> None:
    live.check_output(f"cd {LIVE}/a && rm private && echo newer > 'b [1]*.txt' && echo new > new")
    told = json.loads(live.check_output(f"{CONTROL} put-back latest"))
    assert told["put_back"] == 1
    assert live.check_output(f"cd {LIVE}/a && cat private 'b [1]*.txt' new").split() == ["secret", "newer", "new"]
    assert live.check_output(f"stat -c '%U %a' {LIVE}/a/private") == "www-data 600"
    assert live.check_output(f"find {LIVE} -name '.restic-*'") == ""
    live.check_output(f"rm -r {LIVE}/a")
    assert json.loads(live.check_output(f"{CONTROL} put-back latest"))["put_back"] == 4


def test_nothing_is_backed_up_over_what_was_lost(live: Any, keeper: Any) -> None:
    before = ids(keeper)
    live.check_output(f"rm -r {LIVE}/a")
    fails(live, f"{CONTROL} backup", f"there is no file any more in {LIVE}", "Put them back with")
    live.check_output(f"rm -r {LIVE}")
    fails(live, f"{CONTROL} backup", f"{LIVE} is not there, so no backup was made")
    assert ids(keeper) == before
    assert live.run("systemctl start restic-uploads-alarm").rc != 0
    assert "is not there" in live.file("/var/lib/restic-uploads/status.json").content_string


# --- who may do what


def test_the_source_can_neither_delete_nor_replace_a_backup(live: Any, keeper: Any) -> None:
    name = live.backend.get_hostname()
    door = door_of(live)
    asked = f"python3 /usr/local/bin/ask.py {name_of_keeper(live)} %s %s {TLS}/{name}.pem {TLS}/ca.pem {door}"
    before, contents = (
        ids(keeper),
        f"cd {REPOSITORY} && find . -path ./locks -prune -o -type f -exec sha256sum {{}} + | sort",
    )
    digest = keeper.check_output(contents)
    snapshot = keeper.check_output(f"ls {REPOSITORY}/snapshots | tail -1")
    pack = keeper.check_output(f"ls {REPOSITORY}/data/* | grep -E '^[0-9a-f]{{64}}$' | head -1")
    assert live.check_output(asked, "HEAD", "/config") == "200"
    for path in ("/config", f"/snapshots/{snapshot}", f"/data/{pack}"):
        for method in ("DELETE", "POST"):
            assert live.check_output(asked, method, path) == "403", (method, path)
    live.run(f"timeout 10 {CONTROL} restic forget {snapshot}")
    assert ids(keeper) == before
    assert keeper.check_output(contents) == digest


def test_strangers_are_refused_and_refuse(source: Any) -> None:
    name, server = source.backend.get_hostname(), name_of_keeper(source)
    door = door_of(source)

    def ask(certificate: str, ca: str, *password: str) -> str:
        command = f"python3 /usr/local/bin/ask.py {server} HEAD /config {certificate} {ca} {' '.join(password)}"
        return str(source.check_output(command))

    assert ask(f"{TLS}/{name}.pem", f"{TLS}/ca.pem", door) == "200"
    # A host of the environment that has not the passphrase; a certificate of another CA; none; a server of another CA.
    assert ask(f"{TLS}/{name}.pem", f"{TLS}/ca.pem", "guessed") == ask(f"{TLS}/{name}.pem", f"{TLS}/ca.pem") == "401"
    for certificate in (f"{TLS}/{name}.other.pem", "-"):
        assert not ask(certificate, f"{TLS}/ca.pem", door).isdigit()
    assert "CERTIFICATE_VERIFY_FAILED" in ask(f"{TLS}/{name}.pem", f"{TLS}/other.pem", door)


def test_a_source_with_a_certificate_of_another_ca_says_so(live: Any) -> None:
    name = live.backend.get_hostname()
    live.check_output(f"cp -a {TLS}/{name}.pem /root/kept.pem && cat {TLS}/{name}.other.pem > {TLS}/{name}.pem")
    try:
        fails(live, f"{CONTROL} backup", "cannot be reached", "its CA is not the one of this host's certificate")
    finally:
        live.check_output(f"cat /root/kept.pem > {TLS}/{name}.pem")
    live.check_output(f"cp -a {TLS}/ca.pem /root/ca.pem && cat {TLS}/other.pem > {TLS}/ca.pem")
    try:
        fails(live, f"{CONTROL} backup", "cannot be reached", "certificate verify failed")
    finally:
        live.check_output(f"cat /root/ca.pem > {TLS}/ca.pem")
    live.check_output(f"{CONTROL} backup")


def test_passphrase_is_in_one_file_and_in_no_process_or_log(live: Any, keeper: Any) -> None:
    watched = f"{CONTROL} backup & for n in $(seq 60); do ps axww -o args; sleep 0.05; done; wait"
    seen = live.check_output(watched)
    assert "/usr/bin/restic" in seen and PASSPHRASE not in seen
    for machine in (live, keeper):
        found = machine.run(
            "grep -rlF %s /etc /var/log /var/lib/restic-uploads /run 2>/dev/null", PASSPHRASE
        ).stdout.split()
        assert found == ["/etc/restic-uploads/passphrase"]
        assert machine.check_output(f"stat -c '%U %G %a' {found[0]}") == "root restic-uploads 640"
        assert PASSPHRASE not in machine.check_output("journalctl -o cat")
    door = door_of(live)
    assert len(door) == 64 and door not in seen + keeper.check_output("ps axww -o args")


def test_server_is_nobody_who_could_read_what_it_stores(live: Any, keeper: Any) -> None:
    assert keeper.check_output("ps -o user:20= -C rclone") == "restic-uploads"
    pid = keeper.check_output("systemctl show -p MainPID --value restic-uploads-server")
    seen = "nsenter -t %s -m -S $(id -u restic-uploads) -G $(id -g restic-uploads) cat /etc/restic-uploads/passphrase"
    assert "Permission denied" in keeper.run(seen, pid).stderr
    heads = keeper.check_output(f"grep -rlaF secret {REPOSITORY} || true")
    assert heads == ""


# --- upkeep


def test_prune_keeps_what_retention_says_and_doubts_times_that_cannot_be(live: Any, keeper: Any) -> None:
    now = int(time.time())
    [mine] = json.loads(live.check_output(f"{CONTROL} restic snapshots --json --latest 1 --host web.test"))
    keeper.check_output(f"{CONTROL} restic forget --keep-last 1 --group-by ''")

    def made(days: int, arrived: bool = True) -> str:
        """A backup of some days ago, as it would lie there."""
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now - days * DAY))
        out = keeper.check_output(f"{CONTROL} restic backup --json --time '{when}' /etc/hostname")
        [told] = [json.loads(line) for line in out.splitlines() if '"summary"' in line]
        [path] = keeper.check_output(f"ls {REPOSITORY}/snapshots/{told['snapshot_id']}*").split()
        if arrived:
            keeper.check_output(f"touch -d @{now - days * DAY} {path}")
        return path.rsplit("/", 1)[1][:8]

    days = {number: made(number) for number in (1, 2, 100, 101)}
    false = made(3, arrived=False)
    fails(
        keeper,
        f"{CONTROL} prune",
        "1 backups have a time that does not go with their arrival",
        false,
        "nothing is removed",
    )
    told = fails(keeper, f"{CONTROL} status", "1 backups have a time that does not go")
    assert len(json.loads(told)["snapshots"]) == 6
    keeper.check_output(f"{CONTROL} restic forget {false}")
    keeper.check_output(f"{CONTROL} prune")
    # Two days (today and yesterday) and two months: this one, and that of a hundred days ago with its last one.
    assert ids(keeper) == {mine["short_id"], days[1], days[100]}
    assert status(keeper)["last_prune"]["removed"] == 2
    keeper.check_output(f"{CONTROL} restic forget {days[1]} {days[100]}")


def test_a_lock_whose_process_is_dead_is_in_nobodys_way(live: Any, keeper: Any) -> None:
    begun = f"(sleep 300 | {CONTROL} restic backup --stdin) > /dev/null 2>&1 &"
    locked = f"for n in $(seq 100); do ls {REPOSITORY}/locks/* && break; sleep 0.2; done"
    keeper.run(f"{begun} {locked}; pkill -9 -x restic; pkill -x sleep")
    assert len(keeper.check_output(f"ls {REPOSITORY}/locks").split()) == 1
    keeper.check_output(f"timeout 60 {CONTROL} prune")
    live.check_output(f"timeout 60 {CONTROL} backup")
    assert keeper.check_output(f"ls {REPOSITORY}/locks") == ""


def test_status_says_when_backups_are_old_and_the_alarm_rises(live: Any, keeper: Any) -> None:
    assert keeper.run(f"{CONTROL} status").rc == 0
    assert keeper.run("systemctl start restic-uploads-alarm").rc == 0
    snapshots = f"find {REPOSITORY}/snapshots -type f -exec touch -d '{{}}' {{}} +".replace("{}", "2 days ago", 1)
    keeper.check_output(snapshots)
    try:
        fails(keeper, f"{CONTROL} status", "restic: the last backup is 48 hours old.")
        assert keeper.run("systemctl start restic-uploads-alarm").rc != 0
        assert json.loads(keeper.file("/var/lib/restic-uploads/status.json").content_string)["ok"] is False
    finally:
        keeper.check_output(snapshots.replace("2 days ago", "now"))
    keeper.check_output(f"touch -d '11 days ago' {REPOSITORY}/config")
    keeper.check_output("mv /var/lib/restic-uploads/log.jsonl /root/log.jsonl; true")
    fails(
        keeper,
        f"{CONTROL} status",
        "restic: the last good prune is 11 days ago.\nrestic: the last good check is 11 days ago.",
    )
    for kind in ("prune", "check"):
        keeper.check_output(f"{CONTROL} {kind}")
    assert keeper.run(f"{CONTROL} status").rc == 0


def test_drill_proves_a_restore_and_finds_what_is_spoilt(live: Any, keeper: Any) -> None:
    live.check_output(f"echo later > {LIVE}/a/later")
    proof = json.loads(live.check_output(f"{CONTROL} drill"))
    assert (proof["ok"], proof["files"], proof["files_equal"], proof["files_changed_since"]) == (True, 4, 4, 0)
    assert status(live)["last_drill"]["time"] == proof["time"]
    assert live.check_output("ls -A /var/lib/restored-uploads") == ""
    few = json.loads(live.check_output(f"{CONTROL} drill --most 1"))
    assert few["ok"] and few["files"] == 3 and few["files_in_backup"] == 4

    pack = keeper.check_output(f"find {REPOSITORY}/data -type f -size +200k | head -1")
    keeper.check_output(f"for pack in $(find {REPOSITORY}/data -type f -size +200k); do cp -a $pack /root/; done")
    keeper.check_output(
        f"for pack in $(find {REPOSITORY}/data -type f -size +200k); do printf XXXX | dd of=$pack bs=1 seek=5000 conv=notrunc; done"
    )
    try:
        fails(live, f"{CONTROL} drill", "the drill failed", "could not be restored")
        fails(live, f"{CONTROL} status", "the last drill failed")
        fails(keeper, f"{CONTROL} check", "the repository is damaged")
        fails(keeper, f"{CONTROL} status", "the last check failed")
    finally:
        keeper.check_output(
            f"for pack in $(find {REPOSITORY}/data -type f -size +200k); do cp -a /root/${{pack##*/}} $pack; done"
        )
    assert pack
    assert status(live)["last_drill"]["time"] == few["time"]
    keeper.check_output(f"{CONTROL} check")
    live.check_output(f"{CONTROL} drill")


def test_drill_finds_files_that_no_backup_took_along(live: Any) -> None:
    """As when the backups are of another directory: what was there before the last one began is not in it."""
    live.check_output(f'sleep 1.1; sed -i \'s/"exclude": \\[/"exclude": ["private", /\' {CONTROL} && {CONTROL} backup')
    try:
        live.check_output(f"sed -i 's/\"private\", //' {CONTROL}")
        fails(live, f"{CONTROL} drill", f"1 files of before the backup are not in it ({LIVE}/a/private the first)")
    finally:
        live.check_output(f"{CONTROL} backup && {CONTROL} drill")


def test_a_new_certificate_is_taken_by_a_reload(live: Any, keeper: Any) -> None:
    asked = "systemctl show -p MainPID --value restic-uploads-server"
    before = keeper.check_output(asked)
    keeper.check_output("systemctl reload restic-uploads-server")
    for _ in range(50):
        if keeper.check_output(asked) not in (before, "0"):
            break
        time.sleep(0.2)
    assert keeper.check_output(asked) not in (before, "0")
    time.sleep(1)
    live.check_output(f"{CONTROL} backup")


def test_everything_is_scheduled_at_boot(host: Any) -> None:
    keeps = "repository" in host.backend.get_hostname()
    wanted = ["server.service", "prune.timer", "check.timer"] if keeps else ["backup.timer"]
    for unit in ("alarm.timer", *wanted):
        assert host.service(f"restic-uploads-{unit}").is_enabled and host.service(f"restic-uploads-{unit}").is_running
    assert host.file("/etc/systemd/system/restic-uploads-backup.timer").exists is not keeps


# --- refusals


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": "Up"}, 'restic_name is "Up"'),
    ({"passphrase": ""}, "restic_passphrase is not set, shorter"),
    ({"passphrase": "nineteen-characters"}, "shorter than 20 characters"),
    ({"passphrase": "a passphrase of many words"}, "something else than letters"),
    ({"directories": []}, "restic_directories is empty"),
    ({"directories": ["srv", "/tmp/x", "/srv/"]}, "restic_directories has srv, /srv/, /tmp/x"),
    ({"repository_host": ""}, "restic_repository_host is empty"),
    ({"host_role": "both"}, "would lie on the machine that they are to protect"),
    ({"host_role": "both", "same_machine": True}, ""),
    (
        {"host_role": "both", "same_machine": True, "repository_path": "/srv/shop/media/r"},
        "restic_repository_path is /srv",
    ),
    ({"tls_key": ""}, "restic_tls_key or restic_tls_ca is empty"),
    ({"tls_key": "/nowhere.key"}, "/nowhere.key is not there"),
    ({"keep_daily": 0}, "Keep 1 day or more"),
    ({"check_percent": 0}, "restic_check_percent is 0"),
    ({}, ""),
]


def test_impossible_input_is_refused_and_nothing_changes(source: Any) -> None:
    run = play(playbook="refusals.yml", cases=[values for values, _ in REFUSED])
    assert run["rc"] == 0 and run["changed"] == 0, run["output"][-3000:]
    for number, (values, sentence) in enumerate(REFUSED):
        said = [words for words in run["words"] if words.startswith(f"{number} ")]
        if sentence:
            assert len(said) == 1 and sentence in said[0] and "restic changed nothing" in said[0], (values, said)
        else:
            assert said == [], values


def test_another_passphrase_is_refused_and_in_no_diff(live: Any, keeper: Any) -> None:
    other = "another-passphrase-4711-of-the-scenario"
    looked = play("source", words=("--check", "--diff", "-vvv"), restic_passphrase=other)
    assert looked["rc"] == 0 and "/etc/restic-uploads/passphrase" in looked["output"]
    run = play("repository", words=("--diff", "-vvv"), restic_passphrase=other)
    assert run["rc"] != 0 and "was made with another passphrase. It was not touched" in run["output"]
    assert other not in looked["output"] + run["output"] and PASSPHRASE not in looked["output"] + run["output"]
    assert play("repository")["rc"] == 0
    live.check_output(f"{CONTROL} backup")
