"""What the role promises, asked through nginx with Django's own interface, and of those who try to get around it."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import testinfra

SCENARIO = Path(__file__).resolve().parents[1]
ROOT = "/srv/shop/shared/media"
TOKEN, OTHER = "the-t0ken-of-the-shop", "the-t0ken-of-tomorrow"
DOOR = "https://127.0.0.1:8443/.stepladder-media"
SOCKET = "/run/media-shop/media.sock"
# Actions that make no remote call.
LOCAL = {
    "include_role",
    "assert",
    "fail",
    "debug",
    "include_tasks",
    "import_tasks",
    "validate_argument_spec",
    "gather_facts",
    "setup",
}


@pytest.fixture(scope="module")
def host(host):
    """The same host without Ansible in between: a command takes a tenth of the time."""
    return testinfra.get_host(host.backend.get_pytest_id().replace("ansible://", "docker://"))


@pytest.fixture(scope="module", autouse=True)
def nothing_from_before(host):
    """So that the tests can be run again on the same host."""
    host.run(f"find {ROOT} -mindepth 1 -maxdepth 1 ! -name .incoming -exec rm -r {{}} +")


def client(host, *words, user="games", **environment):
    """What a site says that runs as somebody else on another host, as far as the keeper knows."""
    given = [f"{name}={value}" for name, value in environment.items()]
    command = ["runuser", "-u", user, "--", "env", "-C", "/opt/client", *given, "./client.py", *words]
    done = host.run(" ".join(["%s"] * len(command)), *command)
    assert done.rc == 0, done.stderr
    return json.loads(done.stdout)


def ask(host, path, *options, token=TOKEN, door=DOOR):
    """The status of one request through the private door."""
    words = ["curl", "-sS", "-m", "10", "--path-as-is", "-o", "/dev/null", "-w", "%{http_code}"]
    words += [
        "--cacert",
        "/etc/stepladder/tls/ca.pem",
        *(["-H", f"Authorization: Bearer {token}"] if token else []),
        *options,
    ]
    done = host.run(" ".join(["%s"] * (len(words) + 1)), *words, f"{door}{path}")
    return int(done.stdout[-3:] or 0)


def files(host):
    return set(host.run(f"cd {ROOT} && find . -type f").stdout.split())


def play(playbook="converge.yml", *words, **variables):
    """Run a play of the scenario again: {rc, changed, calls (remote ones), messages, output}."""
    environment = {**os.environ, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json", "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1"}
    command = ["ansible-playbook", "-i", os.environ["MOLECULE_INVENTORY_FILE"], SCENARIO / playbook]
    command += ["-e", json.dumps(variables), *words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, cwd=SCENARIO.parents[1], env=environment
    )
    report = json.loads(done.stdout[done.stdout.index("{") :])
    results = [
        {**result, "action": result.get("action", "").split(".")[-1], "name": task["task"]["name"]}
        for each in report["plays"]
        for task in each["tasks"]
        for result in task["hosts"].values()
    ]
    return {
        "rc": done.returncode,
        "changed": sum(stats["changed"] for stats in report["stats"].values()),
        "calls": [r["name"] for r in results if r["action"] not in LOCAL and not r.get("skipped")],
        "messages": [str(r.get("msg", "")) for r in results],
        "output": done.stdout + done.stderr,
    }


def parts(*cases):
    """What each of the cases, {part, values}, came to: "well" or the words of its refusal; and the report of the run."""
    report = play("parts.yml", cases=list(cases))
    assert report["rc"] == 0, report["output"]
    said = [words for words in report["messages"] if words.startswith("[case] ")]
    assert len(said) == len(cases)
    return [words.removeprefix("[case] ") for words in said], report


def pid(host):
    return host.run("systemctl show -P MainPID media-shop").stdout.strip()


def test_django_stores_and_finds_files_over_verified_tls(host):
    done = client(host, "round_trip", "products/2026/a b & ü%2F#?.png")
    assert done["name"] == "products/2026/a b & ü%2F#?.png"
    assert (done["same"], done["size"], done["listed"]) == (True, 2_500_000, ["a b & ü%2F#?.png"])
    assert done["age"] < 60
    stored = host.file(f"{ROOT}/products/2026/a b & ü%2F#?.png")
    assert (stored.user, stored.group, stored.mode) == ("shop", "shop", 0o644)
    folder = host.file(f"{ROOT}/products/2026")
    assert (folder.user, folder.mode) == ("shop", 0o755)
    # And visitors of any host get it where Django says that it is.
    assert ask(host, done["url"].removeprefix("/media"), token="", door="https://127.0.0.1:8443/media") == 200


def test_wrong_authority_is_not_believed(host):
    failed = client(host, "save", "tls", CA="/etc/ssl/certs/ca-certificates.crt")
    assert "certificate is not the right one" in failed["error"]
    assert "./tls" not in files(host)


def test_two_hosts_that_store_one_name_at_once_get_two_files(host):
    start, count = time.time() + 2, 20
    script = " & ".join(
        f"runuser -u games -- env -C /opt/client ./client.py race {start} race/p.png {count}" for _ in "abc"
    )
    done = host.run(f"{script} & wait")
    racers = [json.loads(line) for line in done.stdout.splitlines()]
    names = {name: racer["pid"] for racer in racers for name in racer["names"]}
    assert len(racers) == 3 and len(names) == 3 * count and "race/p.png" in names
    for name, owner in names.items():
        assert host.file(f"{ROOT}/{name}").content_string == f"of {owner} "
    noted = host.run(f"journalctl -u media-shop --since @{int(start) - 1} -o cat").stdout
    assert noted.count(" 412 ") >= len(names) - 1, "all but the first found the name taken"


def test_nothing_is_given_or_taken_without_the_token(host):
    host.run(f"echo secret > {ROOT}/guarded")
    for token in ("", "wrong", TOKEN[:-1], f"{TOKEN}x"):
        for options in ((), ("-I",), ("-X", "DELETE"), ("-T", "/etc/hostname", "-H", "If-None-Match: *")):
            assert ask(host, "/guarded", *options, token=token) == 401, (token, options)
        assert ask(host, "/", token=token) == 401
    assert host.file(f"{ROOT}/guarded").content_string == "secret\n"


def test_only_the_hosts_of_the_site_get_to_the_door(host):
    assert ask(host, "/guarded") == 200
    assert ask(host, "/guarded", "--interface", "127.0.0.2") == 403
    own = host.run("hostname -I").stdout.split()[0]
    assert ask(host, "/guarded", "-k", door=DOOR.replace("127.0.0.1", own)) == 403
    front = ("--resolve", "shop.example.com:443:127.0.0.1")
    assert ask(host, "/guarded", *front, door="https://shop.example.com/.stepladder-media") == 404


def test_only_the_web_server_gets_to_the_socket(host):
    probe = f"curl -s -m 5 -o /dev/null -w '%{{http_code}}' --unix-socket {SOCKET} http://x/"
    assert host.run(f"runuser -u www-data -- {probe}").stdout == "401"
    assert host.run(f"runuser -u games -- {probe}").stdout == "000"


@pytest.mark.parametrize(
    "path",
    [
        "/../outside",
        "/%2e%2e/outside",
        "/a/..%2f..%2foutside",
        "/.hidden",
        "/.incoming/x",
        "/a%00b",
        "/a%0ab",
        "/%ff",
    ],
)
def test_names_that_lead_elsewhere_are_refused(host, path):
    host.run(f"echo no > {ROOT}/../outside; echo no > {ROOT}/.hidden")
    before = files(host)
    for options in (("-T", "/etc/hostname", "-H", "If-None-Match: *"), (), ("-X", "DELETE")):
        assert ask(host, path, *options) in (400, 404), options
    assert files(host) == before
    assert host.file(f"{ROOT}/../outside").content_string == "no\n"


def test_link_that_leads_out_leads_nowhere(host):
    host.run(f"ln -sfn /etc {ROOT}/etc; chown -h shop: {ROOT}/etc")
    for options in ((), ("-I",), ("-T", "/etc/hostname", "-H", "If-None-Match: *")):
        assert ask(host, "/etc/passwd", *options) == 400
    assert ask(host, "/etc/") == 400


def test_body_that_ends_early_leaves_nothing(host):
    before = files(host)
    head = (
        f"PUT /.stepladder-media/short HTTP/1.1\\r\\nHost: x\\r\\nAuthorization: Bearer {TOKEN}\\r\\n"
        "If-None-Match: *\\r\\nContent-Length: 1000\\r\\n\\r\\nonly this"
    )
    host.run(f"(printf '{head}'; sleep 1) | timeout 5 openssl s_client -quiet -connect 127.0.0.1:8443")
    host.run(f"(printf '{head}'; sleep 1) | timeout 5 curl -s --unix-socket {SOCKET} telnet://x")
    time.sleep(0.5)
    assert files(host) == before


def test_larger_file_than_the_limit_is_refused_whole(host):
    before = files(host)
    assert "larger than" in client(host, "save", "large", str(3 * 2**20 + 1))["error"]
    assert "larger than" in client(host, "save", "larger", str(5 * 2**20))["error"]
    assert client(host, "save", "fits", str(3 * 2**20))["name"] == "fits"
    assert files(host) - before == {"./fits"}


def test_restart_under_load_fails_no_upload_and_keeps_the_files(host):
    before, first = files(host), pid(host)
    restarts = (
        "for n in 1 2 3; do sleep 1; systemctl restart media-shop; done; sleep 1; systemctl kill -s KILL media-shop"
    )
    done = host.run(f"({restarts}) & runuser -u games -- env -C /opt/client ./client.py many restarts 8; wait")
    report = json.loads(done.stdout)
    assert report["failed"] == report["gone"] == [] and report["stored"] > 50, report
    assert before <= files(host)
    assert pid(host) != first


def test_keeper_that_is_away_is_said_within_seconds(host):
    host.run("systemctl stop media-shop")
    try:
        failed = client(host, "save", "away")
        host.run("systemctl stop nginx")
        refused = client(host, "save", "away")
    finally:
        host.run("systemctl start media-shop nginx")
    for answer in (failed, refused):
        assert "The host that keeps the uploads, 127.0.0.1:8443, could not be used" in answer["error"]
        assert answer["seconds"] < 5
    dropped = client(host, "save", "away", KEEPER="https://198.18.255.254:8443/")
    assert "198.18.255.254" in dropped["error"] and dropped["seconds"] < 6
    assert client(host, "save", "back")["name"] == "back"


def test_full_disk_is_said_and_leaves_nothing(host):
    host.run(
        f"systemctl stop media-shop; mount -t tmpfs -o size=1m,mode=755 none {ROOT} && chown shop: {ROOT}; systemctl start media-shop"
    )
    try:
        full = client(host, "save", "full", "2000000")
        assert "is full" in full["error"]
        assert files(host) == set()
        assert client(host, "save", "small")["name"] == "small"
    finally:
        host.run(f"systemctl stop media-shop; umount {ROOT}; systemctl start media-shop")


def test_service_that_hangs_or_dies_is_started_again(host):
    folder = "/run/systemd/system/media-shop.service.d"
    host.run(f"mkdir -p {folder}; printf '[Service]\\nWatchdogSec=2\\n' > {folder}/quick.conf; systemctl daemon-reload")
    try:
        host.run("systemctl restart media-shop")
        hanging = pid(host)
        time.sleep(3)
        assert pid(host) == hanging, "one that is well is left alone"
        host.run("kill -STOP %s", hanging)
        end = time.monotonic() + 15
        while pid(host) in (hanging, "0") or ask(host, "/") != 200:
            assert time.monotonic() < end
            time.sleep(0.3)
    finally:
        host.run(f"rm -r {folder}; systemctl daemon-reload; systemctl restart media-shop")


def test_tokens_are_seen_by_nobody(host):
    tokens = host.file("/etc/stepladder/media-shop/tokens")
    assert (tokens.user, tokens.group, tokens.mode) == ("root", "shop", 0o640)
    assert host.run("runuser -u games -- cat /etc/stepladder/media-shop/tokens").rc != 0
    assert TOKEN not in host.run("ps -eo args; systemctl show media-shop; journalctl -q --no-pager").stdout
    done = play("converge.yml", "--diff", media_tokens=[OTHER, TOKEN])
    try:
        assert done["rc"] == 0, done["output"]
        assert OTHER not in done["output"] and TOKEN not in done["output"]
        assert client(host, "save", "rotated")["name"] and client(host, "save", "rotated", TOKEN=OTHER)["name"]
        assert OTHER not in host.run("ps -eo args; journalctl -q --no-pager").stdout
    finally:
        assert play()["rc"] == 0
    assert ask(host, "/", token=OTHER) == 401


def test_sandbox_is_tight_and_memory_small(host):
    score = host.run("systemd-analyze security media-shop").stdout.rsplit("exposure level for media-shop.service: ", 1)[
        1
    ]
    assert float(score.split()[0]) < 1.5, score
    resident = host.run(f"awk '/VmRSS/ {{print $2}}' /proc/{pid(host)}/status").stdout
    assert int(resident) < 40_000, resident
    # What the service sees as its own file system, tried from inside.
    inside = f"nsenter -t {pid(host)} -m -- runuser -u shop --"
    assert host.run(f"{inside} touch {ROOT}/from-inside").rc == 0
    assert host.run(f"nsenter -t {pid(host)} -m -- touch /srv/shop/other /etc/other /var/other").rc != 0
    host.run(f"rm {ROOT}/from-inside")


def test_run_without_changes_makes_few_calls_and_restarts_nothing(host):
    before = pid(host)
    for part, calls in (("main", 3), ("agree", 1), ("reach", 2)):
        said, done = parts({"part": part})
        assert (said, done["changed"], len(done["calls"])) == (["well"], 0, calls), done["calls"]
    assert pid(host) == before


def test_change_in_check_mode_changes_nothing(host):
    before = pid(host)
    done = play("converge.yml", "--check", "--diff", media_max_mb=5)
    assert done["rc"] == 0 and done["changed"] >= 1
    assert (
        pid(host) == before and "--most 3145728" in host.file("/etc/systemd/system/media-shop.service").content_string
    )


def test_another_keeper_than_the_one_with_the_files_is_refused(host):
    elsewhere = {"part": "agree", "media_home": "elsewhere", "media_home_here": False}
    said, _ = parts(elsewhere, {**elsewhere, "media_moved": True}, {**elsewhere, "media_moved": "false"})
    assert "elsewhere would keep the uploads of shop" in said[0] and "knows that keeper does" in said[0]
    assert said[1] == "well" and said[2] == said[0]
    # A host that has noted nothing and has files, as every site has that grows from one host to two.
    host.run("mv /var/lib/stepladder/media-shop.home /run/note")
    try:
        said, _ = parts({"part": "agree"}, elsewhere, {**elsewhere, "media_directory": "/srv/shop/none"})
    finally:
        host.run("mv /run/note /var/lib/stepladder/media-shop.home")
    assert said[0] == "well"
    assert f"it has some itself: {ROOT}/" in said[1]
    assert said[2] == "well", "a new host has nothing to lose"


def test_keeper_that_cannot_be_reached_is_refused_before_it_is_noted(host):
    elsewhere = {"part": "reach", "media_home": "elsewhere"}
    wrong = "another-token-than-that"
    said, done = parts(
        {**elsewhere, "media_home_url": "https://127.0.0.1:8444/.stepladder-media/"},
        {**elsewhere, "media_tokens": [wrong]},
        {**elsewhere, "media_home_ca": "/etc/ssl/certs/ca-certificates.crt"},
    )
    for words, reason in zip(said, ("refused", "401", "certificate"), strict=True):
        assert "elsewhere does not give" in words and reason in words.lower()
    assert host.file("/var/lib/stepladder/media-shop.home").content_string == "keeper\n"
    assert TOKEN not in done["output"]


WRONG = {
    "media_name": ("The Shop", "media_name is The Shop"),
    "media_tokens": ([TOKEN, "short"], "2 tokens, 1 of them unfit"),
    "media_directory": ("/home/shop/media", "media_directory is /home/shop/media"),
    "media_user": ("root", "media_user is root"),
    "media_memory_mb": (8, "the service needs 32"),
    "media_max_mb": (0, "media_max_mb is 0"),
}


def test_values_that_cannot_work_are_all_refused_at_once(host):
    before = host.run("cat /etc/systemd/system/media-* /etc/passwd").stdout
    main = {"part": "main"}
    said, _ = parts(
        {**main, **{name: value for name, (value, _) in WRONG.items()}},
        {**main, "media_tokens": []},
        {**main, "media_tokens": [f"{TOKEN}\n{OTHER}"]},
        {**main, "media_directory": "/srv/../etc"},
    )
    for words in (words for _, words in WRONG.values()):
        assert words in said[0]
    assert "0 tokens" in said[1] and "1 tokens, 1 of them unfit" in said[2] and "/srv/../etc" in said[3]
    assert all(words.count("media changed nothing") == 1 for words in said)
    assert host.run("cat /etc/systemd/system/media-* /etc/passwd").stdout == before
