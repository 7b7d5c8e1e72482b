"""What each host ends up with, for every inventory of the kit and for shapes that people have."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from ansible.template import trust_as_template

from kit import FACTS, ROOT, SITE, Environment, run_playbook

SHAPES = {
    "one host": {"web": ["one"], "database": ["one"]},
    "two hosts": {"web": ["web1"], "database": ["db1"]},
    "two web hosts": {"web": ["web1", "web2"], "database": ["db1"]},
    "one host with a cache": {"web": ["one"], "database": ["one"], "cache": ["one"]},
    "a cache of its own": {"web": ["web1"], "database": ["db1"], "cache": ["cache1"]},
    "behind an edge": {"edge": ["edge1"], "web": ["web1", "web2"], "database": ["db1"]},
    "two edges": {"edge": ["edge1", "edge2"], "web": ["web1", "web2"], "database": ["db1"]},
    "one host behind an edge": {"edge": ["edge1"], "web": ["one"], "database": ["one"]},
    "one host with everything": {"web": ["one"], "database": ["one"], "cache": ["one"], "worker": ["one"]},
    "a backup host": {"backup": ["backup1"], "web": ["web1"], "database": ["db1"]},
    "a backup host that is the database's": {"backup": ["db1"], "web": ["web1"], "database": ["db1"]},
    "a replica": {
        "edge": ["edge1"],
        "web": ["web1", "web2"],
        "database": ["db1", "db2"],
        "worker": ["worker1"],
        "cache": ["cache1"],
        "backup": ["backup1"],
    },
    "a replica beside one web host": {"web": ["web1"], "database": ["db1", "db2"]},
    "two workers": {"web": ["web1"], "database": ["db1"], "cache": ["cache1"], "worker": ["web1", "worker1"]},
}
HOSTS = {
    name: {"ansible_host": f"198.18.9.{n}"}
    for n, name in enumerate(
        ("one", "web1", "web2", "db1", "cache1", "worker1", "edge1", "edge2", "backup1", "db2"), start=1
    )
}
KIT = sorted({path.parent if path.name == "hosts.yml" else path for path in ROOT.glob("inventories/*/*.yml")})
BUILT = {"release": "20260101-abc", "code": "/srv/shop/releases/x/code", "venv": "/srv/shop/releases/x/venv",
         "user": "shop", "directory": "/srv/shop", "environment_file": "/srv/shop/config/y/env"}  # fmt: skip


@pytest.fixture(params=[*SHAPES, *(str(path.relative_to(ROOT)) for path in KIT)])
def site(request: pytest.FixtureRequest, make_inventory: Callable[..., Path], tmp_path: Path) -> Environment:
    """Every inventory that there is; those of the kit are read from a copy, so that no secrets appear in the tree."""
    if request.param in SHAPES:
        return Environment(make_inventory(SHAPES[request.param], hosts=HOSTS))
    return Environment(copied(ROOT / request.param, tmp_path))


def copied(inventory: Path, to: Path) -> Path:
    folder = inventory if inventory.is_dir() else inventory.parent
    (to / "copy").mkdir()
    (to / "copy/group_vars").symlink_to(folder / "group_vars")
    hosts = inventory / "hosts.yml" if inventory.is_dir() else inventory
    (to / "copy/hosts.yml").write_text(hosts.read_text())
    return to / "copy"


def one(make_inventory: Callable[..., Path], shape: str = "two hosts", **settings: Any) -> Environment:
    return Environment(make_inventory(SHAPES[shape], {**SITE, **settings}, hosts=HOSTS))


def wired(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / f"group_vars/all/{name}.yml").read_text())


def app_addresses(site: Environment) -> list[str]:
    """Of the hosts that run the site's code: first those of web, then those of worker."""
    named = [host for group in ("web", "worker") for host in site.all_groups.get(group, [])]
    return [site.value(host, "host_address") for host in dict.fromkeys(named)]


def has_workers(site: Environment) -> bool:
    return bool(site.all_groups.get("worker"))


def edge_addresses(site: Environment) -> list[str]:
    return [site.value(host, "host_address") for host in site.hosts if "edge" in site.groups(host)]


def keeper_of_backups(site: Environment) -> str:
    """The host in backup, else a web host that is not the database's, else the database's own."""
    apart = [host for host in site.all_groups["web"] if host not in site.all_groups["database"]]
    return [*site.all_groups.get("backup", []), *apart, *site.all_groups["database"]][0]


def databases(site: Environment) -> list[str]:
    return site.all_groups["database"]


def backed_up_with(site: Environment, host: str) -> list[str]:
    """The hosts at the other end of the backups: the repository's of a database, and the databases of the repository's."""
    keeper = keeper_of_backups(site)
    if host == keeper:
        return [one for one in databases(site) if one != keeper]
    return [keeper] if host in databases(site) else []


def uploads_ends(site: Environment) -> set[str]:
    """The hosts that have a certificate for the backups of the uploads: none when it is one host that does both."""
    ends = set(uploads_backed_up(site))
    return ends if len(ends) > 1 else set()


def test_the_kit_has_inventories() -> None:
    assert ROOT / "inventories/example" in KIT


def test_every_wired_variable_of_a_hosts_layers_can_be_read(site: Environment) -> None:
    for host in site.hosts:
        files = [
            "site",
            "hosts",
            "base",
            "backup",
            "uploads",
            *({"web", "database", "cache", "edge"} & site.groups(host)),
        ]
        files += ["media"] if "web" in site.groups(host) else []
        files += ["workers"] if "worker" in site.groups(host) else []
        for name in (name for file in files for name in wired(file)):
            value = site.value(host, name, django_built=BUILT)
            assert "{{" not in str(value) and "{%" not in str(value), (host, name, value)


def test_memory_shares_fill_what_the_system_leaves_and_no_more(site: Environment) -> None:
    for host in site.hosts:
        shares, parts = site.value(host, "memory_shares"), site.value(host, "memory_mb")
        reserve, memory = site.value(host, "site_memory_reserve"), int(site.value(host, "host_memory_mb"))
        if site.groups(host) <= {"all", "site", "backup"}:
            assert shares == parts == {}  # what keeps backups takes little, and has no size of its own
            continue
        assert sum(shares.values()) == pytest.approx(1 - reserve)
        assert 0 < sum(parts.values()) <= (1 - reserve) * memory
        services = {
            "web": {"gunicorn"},
            "database": {"postgres"},
            "cache": {"redis_cache"},
            "worker": {"celery"},
            "edge": {"haproxy"},
        }
        if has_workers(site):
            services["cache"].add("redis_broker")
        assert set(parts) == set().union(*(services[group] for group in services if group in site.groups(host)))


def test_postgres_admits_exactly_the_hosts_that_run_the_code_over_tls(site: Environment) -> None:
    for host in site.hosts:
        if "database" in site.groups(host):
            rules = site.value(host, "postgres_access")
            wanted = [
                (f"{address}/32", site.value(host, "site_database_name"), "shop", "scram-sha-256")
                for address in app_addresses(site)
            ]
            if len(databases(site)) > 1:
                for address in app_addresses(site):
                    wanted += [(f"{address}/32", "postgres", "pgbouncer_auth", "scram-sha-256"),
                               (f"{address}/32", "postgres", "haproxy", "cert")]  # fmt: skip
            assert {rule["type"] for rule in rules} == {"hostssl"}
            assert [(rule["address"], rule["database"], rule["user"], rule["method"]) for rule in rules] == wanted


def test_firewall_opens_what_the_hosts_groups_serve_and_nothing_else(site: Environment) -> None:
    for host in site.hosts:
        opened: list[tuple[Any, Any]] = []
        if "edge" in site.groups(host) or ("web" in site.groups(host) and site.value(host, "nginx_public")):
            opened.append(([80, 443], None))
        if "web" in site.groups(host) and edge_addresses(site):
            opened.append((8444, edge_addresses(site)))
        if "database" in site.groups(host):
            opened.append((5432, app_addresses(site)))
            others = [site.value(one, "host_address") for one in databases(site) if one != host]
            opened += [(5432, others)] if others else []
        if "cache" in site.groups(host):
            opened.append((6379, app_addresses(site)))
            opened += [(6380, app_addresses(site))] if has_workers(site) else []
        if len(site.all_groups["web"]) > 1 and "web" in site.groups(host):
            opened.append((8443, app_addresses(site)))
        if others := backed_up_with(site, host):
            opened.append((8432, [site.value(other, "host_address") for other in others]))
        home, keeper = uploads_backed_up(site)
        if host == keeper != home:
            opened.append((8433, [site.value(home, "host_address")]))
        rules = site.value(host, "firewall_allow")
        assert sorted(((rule["port"], rule.get("from")) for rule in rules), key=str) == sorted(opened, key=str)


def test_a_host_gets_a_certificate_for_each_service_it_runs(site: Environment) -> None:
    for host in site.hosts:
        leaves = {leaf["name"]: leaf for leaf in site.value(host, "certificates_leaves")}
        assert set(leaves) == {leaf for group, leaf in (("web", "nginx"), ("database", "postgres"), ("cache", "redis"),
                                                     ("edge", "haproxy"))
                               if group in site.groups(host)} | ({"pgbackrest"} if backed_up_with(site, host) else set()) | (
                                   {"database"} if site.value(host, "pooler_here") else set()) | (
                                   {"restic"} if host in uploads_ends(site) else set())  # fmt: skip
        # A client's has no address: its first name is the user that it is in the database.
        assert leaves.pop("database", {"names": ["haproxy"]})["names"] == ["haproxy"]
        for leaf in leaves.values():
            assert site.value(host, "host_address") in leaf["names"]


def test_backups_go_to_another_host_wherever_there_is_one_and_each_end_knows_the_other(site: Environment) -> None:
    keeper = keeper_of_backups(site)
    alone = databases(site) == [keeper]
    assert site.value(keeper, "pgbackrest_host_role") == ("both" if keeper in databases(site) else "repository")
    assert site.value(keeper, "pgbackrest_same_machine") is (keeper in databases(site))
    assert len(site.value(keeper, "pgbackrest_passphrase")) == 40
    [stanza] = site.value(keeper, "pgbackrest_stanzas")
    assert [host["address"] for host in stanza["hosts"]] == [
        site.value(one, "pgbackrest_address") for one in databases(site)
    ]
    for database in databases(site):
        assert f"--stanza={stanza['name']} " in site.value(database, "postgres_archive_command")
        if alone:
            return
        assert site.value(database, "pgbackrest_host_role") == "database"
        assert site.value(database, "pgbackrest_passphrase") == ""
        # Who asks is known by the first name of its certificate, and the other side must call it so.
        first = {host: leaf["names"][0] for host in (database, keeper) for leaf in site.value(host, "certificates_leaves")
                 if leaf["name"] == "pgbackrest"}  # fmt: skip
        assert site.value(database, "pgbackrest_repository_host") == first[keeper]
        assert first[database] == site.value(database, "pgbackrest_address")


def test_the_plays_of_the_backups_meet_the_host_that_the_wiring_means(site: Environment) -> None:
    database, keeper = databases(site)[0], keeper_of_backups(site)
    [_, play, *_] = yaml.safe_load((ROOT / "playbooks/layers/backup.yml").read_text())
    assert site.value(database, "met", met=trust_as_template(play["hosts"])) == ([] if keeper == database else [keeper])
    for name, meant in (
        ("backup", "Backup"),
        ("backup-status", "Backups"),
        ("restore", "Restore"),
        ("restore-drill", "The drill"),
    ):
        plays = yaml.safe_load((ROOT / f"playbooks/{name}.yml").read_text())
        [play] = [play for play in plays if play["name"] == meant]
        assert site.value(database, "met", met=trust_as_template(play["hosts"])) == [keeper]


def test_both_ends_of_the_backups_find_the_data_by_the_version_of_the_databases_host(
    make_inventory: Callable[..., Path],
) -> None:
    site = one(make_inventory, postgres_version="18")
    for host in (databases(site)[0], keeper_of_backups(site)):
        [stanza] = site.value(host, "pgbackrest_stanzas")
        assert [source["path"] for source in stanza["hosts"]] == ["/var/lib/postgresql/18/main"]


def uploads_backed_up(site: Environment) -> tuple[str, str]:
    """Who has the uploads, and who keeps their backups: not the same host wherever there is another one that may."""
    home = site.all_groups["web"][0]
    others = [host for host in [keeper_of_backups(site), *site.all_groups["database"]] if host != home]
    return home, [*others, home][0]


@pytest.mark.parametrize(
    ("shape", "pair"),
    [
        ("one host", ("one", "one")),
        ("two hosts", ("web1", "db1")),
        ("two web hosts", ("web1", "db1")),
        ("two edges", ("web1", "db1")),
        ("one host behind an edge", ("one", "one")),
        ("a backup host", ("web1", "backup1")),
        ("a backup host that is the database's", ("web1", "db1")),
    ],
)
def test_uploads_are_backed_up_to_another_host_where_there_is_one(
    make_inventory: Callable[..., Path], shape: str, pair: tuple[str, str]
) -> None:
    site = one(make_inventory, shape)
    assert uploads_backed_up(site) == pair
    assert {site.value(host, "uploads_backup_host") for host in site.hosts} == {pair[1]}


def test_uploads_that_another_web_host_keeps_are_backed_up_from_there(make_inventory: Callable[..., Path]) -> None:
    site = one(make_inventory, "two web hosts", site_media_host="web2")
    # web1 keeps the database's backups, and has no uploads of its own.
    assert [site.value(host, "restic_host_role") for host in ("web1", "web2")] == ["repository", "source"]
    assert site.value("web2", "restic_repository_host") == site.value("web1", "host_address")


def test_both_ends_of_the_backups_of_the_uploads_know_each_other_and_nobody_else_does(site: Environment) -> None:
    home, keeper = uploads_backed_up(site)
    role = {host: site.value(host, "restic_host_role") for host in (home, keeper)}
    assert role == ({home: "both"} if home == keeper else {home: "source", keeper: "repository"})
    assert site.value(home, "restic_directories") == [site.value(home, "nginx_media_directory")]
    assert len({site.value(host, "restic_passphrase") for host in (home, keeper)}) == 1
    assert site.value(home, "restic_passphrase") != site.value(home, "site_backup_passphrase")
    for host in site.hosts:
        leaves = {leaf["name"]: leaf for leaf in site.value(host, "certificates_leaves")}
        doors = [
            rule
            for rule in site.value(host, "firewall_allow")
            if rule["port"] == site.value(host, "uploads_backup_port")
        ]
        assert bool(doors) is (host == keeper != home)
        assert ("restic" in leaves) is (host in (home, keeper) and home != keeper)
        if host not in (home, keeper):
            assert site.value(host, "restic_passphrase") == ""
    if home != keeper:
        [door] = [rule for rule in site.value(keeper, "firewall_allow") if rule["port"] == 8433]
        assert door["from"] == [site.value(home, "host_address")]
        leaves = {leaf["name"]: leaf for leaf in site.value(keeper, "certificates_leaves")}
        assert site.value(home, "restic_repository_host") in leaves["restic"]["names"]
        assert leaves["restic"]["reload"] == ["restic-shop-server.service"]


def test_the_plays_of_the_uploads_meet_both_ends_once(site: Environment) -> None:
    home, keeper = uploads_backed_up(site)
    [*_, takes, gives, retired] = yaml.safe_load((ROOT / "playbooks/layers/backup.yml").read_text())
    assert keeper in site.value(home, "met", met=trust_as_template(takes["hosts"])) and gives["hosts"] == "web"

    def met(task: dict[str, Any]) -> list[str]:
        asked = trust_as_template("{{ " + task["when"] + " }}")
        return [host for host in site.hosts if site.value(host, "asked", asked=asked)]

    [[take], [give]] = takes["tasks"], gives["tasks"]
    assert met(take) == [keeper]
    assert met(give) == ([] if home == keeper else [home])
    # Who has no part stops what it did before, and nobody else does.
    [database, uploads] = retired["tasks"]
    part = {site.value(home, "backup_host"), *site.value(home, "database_hosts")}
    assert set(met(database)) == set(site.hosts) - part
    assert set(met(uploads)) == set(site.hosts) - {keeper, home}


def test_django_finds_the_database_under_a_name_of_its_certificate(site: Environment) -> None:
    database = next(host for host in site.hosts if "database" in site.groups(host))
    names = next(leaf["names"] for leaf in site.value(database, "certificates_leaves") if leaf["name"] == "postgres")
    for host in site.hosts:
        if "web" in site.groups(host):
            # Where there is a pooler, management commands go to the proxy on their own host.
            pooled = site.value(host, "site_pooler")
            settings = site.value(host, "django_databases_direct" if pooled else "django_databases")["default"]
            assert settings["host"] in names and settings["options"]["sslmode"] == "verify-full"


def test_django_uses_the_cache_where_there_is_one_and_knows_of_none_elsewhere(site: Environment) -> None:
    caches = [host for host in site.hosts if "cache" in site.groups(host)]
    for host in site.hosts:
        if "web" in site.groups(host):
            found, packages = site.value(host, "django_caches"), " ".join(site.value(host, "django_packages"))
            assert (
                bool(found)
                == bool(caches)
                == ("redis[hiredis]" in packages)
                == bool(site.value(host, "django_session_engine"))
            )
        if "web" in site.groups(host) and caches:
            address = site.value(caches[0], "host_address")
            assert found["default"]["location"] == f"rediss://{address}:6379/0"
            [leaf] = [leaf for leaf in site.value(caches[0], "certificates_leaves") if leaf["name"] == "redis"]
            assert address in leaf["names"]
            assert (
                site.value(host, "django_cache_passwords")["default"]
                == site.value(caches[0], "cache_users")[0]["password"]
            )


def test_web_and_worker_hosts_send_to_the_broker_that_is_there_and_to_none_elsewhere(site: Environment) -> None:
    for host in site.hosts:
        if not {"web", "worker"} & site.groups(host):
            continue
        url, settings = site.value(host, "django_broker_url"), site.value(host, "django_default_settings")
        packages = " ".join(site.value(host, "django_packages"))
        assert bool(url) == bool(settings) == ("celery" in packages) == has_workers(site)
        if has_workers(site):
            broker = site.all_groups["cache"][0]
            password = site.value(broker, "broker_users")[0]["password"]
            address = site.value(broker, "host_address")
            assert url.startswith(f"rediss://shop:{password}@{address}:6380/0?ssl_cert_reqs=required&ssl_ca_certs=/")
            options = settings["CELERY_BROKER_TRANSPORT_OPTIONS"]
            assert options["visibility_timeout"] == site.value(host, "celery_visibility_timeout")


def test_time_limit_is_the_roles_and_in_no_setting_that_messages_would_carry(
    make_inventory: Callable[..., Path],
) -> None:
    site = one(make_inventory, "two workers", site_task_time_limit=90)
    assert site.value("worker1", "celery_task_time_limit") == 90
    assert not [name for name in site.value("web1", "django_default_settings") if name.endswith("TIME_LIMIT")]


def test_beat_runs_on_one_host_and_the_first_if_nobody_says(make_inventory: Callable[..., Path]) -> None:
    site = one(make_inventory, "two workers")
    assert [site.value(host, "celery_beat") for host in ("web1", "worker1")] == [True, False]


def test_beat_runs_where_a_person_says(make_inventory: Callable[..., Path]) -> None:
    site = one(make_inventory, "two workers", site_beat_host="worker1")
    assert [site.value(host, "celery_beat") for host in ("web1", "worker1")] == [False, True]


def test_a_broker_of_ones_own_is_used_and_none_is_made(make_inventory: Callable[..., Path]) -> None:
    url = "amqps://shop:it's@rabbit.example.com/shop"
    site = one(make_inventory, "two workers", site_broker_url=url)
    assert site.value("web1", "django_broker_url") == site.value("worker1", "django_broker_url") == url
    assert site.value("cache1", "broker_is_ours") is False
    assert [rule["port"] for rule in site.value("cache1", "firewall_allow")] == [6379]
    assert set(site.value("cache1", "memory_mb")) == {"redis_cache"}
    settings = site.value("web1", "django_default_settings")
    assert "visibility_timeout" not in settings["CELERY_BROKER_TRANSPORT_OPTIONS"]
    assert settings["CELERY_BROKER_USE_SSL"] == {"server_hostname": None}
    assert site.value("worker1", "celery_visibility_timeout") == 0, "there is none to check"


def test_any_password_of_the_broker_survives_the_address(make_inventory: Callable[..., Path]) -> None:
    site = one(make_inventory, "two workers", site_broker_password="a/b@c:d%e f?ü")
    found = urlsplit(site.value("web1", "django_broker_url"))
    assert (unquote(found.password), found.hostname, found.port) == ("a/b@c:d%e f?ü", "198.18.9.5", 6380)


def test_one_host_alone_gives_all_its_memory_to_its_own_services(make_inventory: Callable[..., Path]) -> None:
    site = one(make_inventory)
    assert site.value("db1", "memory_mb") == {"postgres": 3200}
    assert site.value("web1", "memory_mb") == {"gunicorn": 3200}


def test_services_on_one_host_divide_its_memory(make_inventory: Callable[..., Path]) -> None:
    site = one(make_inventory, "one host")
    assert site.value("one", "memory_mb") == {"postgres": 1920, "gunicorn": 1280}


def test_ones_own_division_of_the_memory_wins(make_inventory: Callable[..., Path]) -> None:
    shares = {"postgres": 0.5, "gunicorn": 0.2}
    site = one(make_inventory, "one host", site_memory_shares=shares)
    assert site.value("one", "memory_mb") == {"postgres": 2000, "gunicorn": 800}
    assert site.value("one", "postgres_memory_mb") == 2000


def test_memory_of_a_container_is_what_it_is_told(make_inventory: Callable[..., Path]) -> None:
    site = one(make_inventory, host_memory_mb=1000)
    assert site.value("db1", "postgres_memory_mb") == 800 != FACTS["memtotal_mb"]


def test_only_the_first_web_host_migrates(make_inventory: Callable[..., Path]) -> None:
    site = one(make_inventory, "two web hosts")
    assert [site.value(host, "django_migrate") for host in ("web1", "web2")] == [True, False]


def test_linter_of_migrations_comes_with_its_package_its_app_and_its_gate_when_it_is_asked_for(
    make_inventory: Callable[..., Path],
) -> None:
    site = one(make_inventory, "two hosts", site_lint_migrations=True, site_gates=["check_ledger"])
    [package] = linters(site)
    assert re.fullmatch(r"django-migration-linter==\d+\.\d+\.\d+", package), "a stage run must not change it"
    assert site.value("web1", "django_apps") == ["django_migration_linter"]
    assert site.value("web1", "django_gates") == ["lintmigrations --unapplied-migrations --no-cache", "check_ledger"]


def test_nothing_of_the_linter_is_there_unless_it_is_asked_for(make_inventory: Callable[..., Path]) -> None:
    site = one(make_inventory, "two hosts")
    assert [linters(site), site.value("web1", "django_apps"), site.value("web1", "django_gates")] == [[], [], []]


def linters(site: Environment) -> list[str]:
    return [name for name in site.value("web1", "django_packages") if "linter" in name]


def test_one_web_host_has_its_uploads_as_plain_files(make_inventory: Callable[..., Path]) -> None:
    inventory = make_inventory(SHAPES["two hosts"], hosts=HOSTS)
    site = Environment(inventory)
    for name in ("nginx_private", "nginx_media_proxy", "django_storages", "django_storage_secrets", "media_tokens"):
        assert not site.value("web1", name), name
    assert site.value("web1", "uploads_shared") is site.value("web1", "uploads_here") is False
    assert site.value("web1", "uploads_firewall") == [] == site.value("db1", "uploads_firewall")
    assert not (inventory / "secrets").exists(), "no secret is made for what is not there"


def test_first_of_several_web_hosts_keeps_the_uploads_of_all(make_inventory: Callable[..., Path]) -> None:
    site = one(make_inventory, "two web hosts")
    home, other = "198.18.9.2", "198.18.9.3"
    assert [site.value(host, "uploads_here") for host in ("web1", "web2", "db1")] == [True, False, False]
    door = site.value("web1", "nginx_private")
    assert (door["port"], door["from"]) == (8443, [home, other])
    assert door["locations"][0]["socket"] == "/run/media-shop/media.sock"
    assert site.value("web1", "nginx_media_proxy") == site.value("web2", "nginx_private") == {}
    proxy = site.value("web2", "nginx_media_proxy")
    assert proxy["url"] == f"https://{home}:8443/media/"
    [leaf] = [leaf for leaf in site.value("web1", "certificates_leaves") if leaf["name"] == "nginx"]
    assert {proxy["name"], home} <= set(leaf["names"]), "nginx compares the name, Python the address"
    for host in ("web1", "web2"):
        storage = site.value(host, "django_storages")["default"]
        assert (
            storage["options"]["url"] == site.value(host, "media_home_url") == f"https://{home}:8443/.stepladder-media/"
        )
        assert storage["options"]["url"].endswith(door["locations"][0]["path"])
        assert site.value(host, "django_storage_secrets") == {
            "default": {"token": site.value("web1", "media_tokens")[0]}
        }
        assert site.value(host, "media_home") == "web1"
    assert [len(site.value(host, "uploads_firewall")) for host in ("web1", "web2", "db1")] == [1, 1, 0]


def test_keeper_of_the_uploads_is_the_one_that_is_named(make_inventory: Callable[..., Path]) -> None:
    site = one(make_inventory, "two web hosts", site_media_host="web2")
    assert [site.value(host, "uploads_here") for host in ("web1", "web2")] == [False, True]
    assert site.value("web1", "nginx_media_proxy")["url"] == "https://198.18.9.3:8443/media/"


def test_workers_reach_the_uploads_too(make_inventory: Callable[..., Path]) -> None:
    shape = {**SHAPES["two web hosts"], "worker": ["worker1", "web2"]}
    site = Environment(make_inventory(shape, hosts={**HOSTS, "worker1": {"ansible_host": "198.18.9.9"}}))
    addresses = ["198.18.9.2", "198.18.9.3", "198.18.9.9"]
    assert site.value("web1", "nginx_private")["from"] == addresses
    assert site.value("web1", "uploads_firewall")[0]["from"] == addresses
    assert site.value("worker1", "django_storages") == site.value("web1", "django_storages")
    assert site.value("worker1", "uploads_firewall") == []


def test_keeper_may_have_an_ipv6_address(make_inventory: Callable[..., Path]) -> None:
    hosts = {**HOSTS, "web1": {"ansible_host": "2001:db8::1"}}
    site = Environment(make_inventory(SHAPES["two web hosts"], hosts=hosts))
    assert site.value("web2", "nginx_media_proxy")["url"] == "https://[2001:db8::1]:8443/media/"


def test_version_of_a_deploy_wins_over_the_first_one(make_inventory: Callable[..., Path]) -> None:
    site = one(make_inventory, site_version="v1")
    assert site.value("web1", "django_version") == "v1"
    assert site.value("web1", "django_version", version="v2") == "v2"
    assert site.value("web1", "django_keep_live_version") is True
    assert site.value("web1", "django_keep_live_version", deploy_new_version=True) is False


def test_front_door_uses_ones_own_certificate_when_told_so(make_inventory: Callable[..., Path]) -> None:
    site = one(make_inventory, site_tls="files", site_tls_certificate="/c.pem", site_tls_key="/k.pem")
    assert [site.value("web1", f"nginx_tls_{what}") for what in ("certificate", "key")] == ["/c.pem", "/k.pem"]


def test_rules_of_ones_own_are_added(make_inventory: Callable[..., Path]) -> None:
    site = one(make_inventory, site_firewall_allow=[{"port": 8000}])
    rules = site.value("web1", "firewall_allow")
    assert rules[-1] == {"port": 8000} and rules[0] == {"port": [80, 443], "comment": "The site"}


def test_ipv6_addresses_get_their_own_mask(make_inventory: Callable[..., Path]) -> None:
    hosts = {**HOSTS, "web1": {"ansible_host": "2001:db8::1"}}
    site = Environment(make_inventory(SHAPES["two hosts"], hosts=hosts))
    assert [rule["address"] for rule in site.value("db1", "postgres_access")] == ["2001:db8::1/128"]


def test_private_address_is_the_one_the_hosts_use_among_themselves(make_inventory: Callable[..., Path]) -> None:
    hosts = {"web1": {"ansible_host": "203.0.113.1", "host_address": "10.0.0.1"}, "db1": {"host_address": "10.0.0.2"}}
    site = Environment(make_inventory(SHAPES["two hosts"], hosts=hosts))
    assert site.value("db1", "firewall_allow")[0]["from"] == ["10.0.0.1"]
    assert site.value("web1", "django_databases")["default"]["host"] == "10.0.0.2"


@pytest.mark.parametrize(("major", "version"), [("12", "15"), ("13", "17")])
def test_postgres_is_the_distributions(make_inventory: Callable[..., Path], major: str, version: str) -> None:
    site = Environment(make_inventory(SHAPES["two hosts"]), facts={"distribution_major_version": major})
    leaf = next(leaf for leaf in site.value("db1", "certificates_leaves") if leaf["name"] == "postgres")
    assert leaf["reload"] == [f"postgresql@{version}-main.service"]
    [stanza] = site.value("web1", "pgbackrest_stanzas")
    assert [host["path"] for host in stanza["hosts"]] == [f"/var/lib/postgresql/{version}/main"]


@pytest.mark.parametrize("beside", ["playbooks", "playbooks/layers"])
def test_what_a_person_sets_wins_over_the_kit(make_inventory: Callable[..., Path], beside: str) -> None:
    """From every folder that playbooks are run from; `all` beside a playbook would win over `all` of the inventory."""
    inventory = make_inventory(
        SHAPES["two hosts"], {**SITE, "site_keep_releases": 9, "nginx_client_max_body_size": "1g"}
    )
    site = Environment(inventory, beside)
    assert site.value("web1", "site_keep_releases") == site.value("web1", "django_keep_releases") == 9
    assert site.value("web1", "nginx_client_max_body_size") == "1g"
    assert site.value("web1", "site_clock_tolerance") == 30


def test_playbooks_that_import_each_other_see_the_same_wiring() -> None:
    for folder in ("playbooks", "playbooks/layers"):
        assert (ROOT / folder / "group_vars").resolve() == ROOT / "group_vars"


def test_secrets_are_made_once_and_only_their_owner_reads_them(make_inventory: Callable[..., Path]) -> None:
    inventory = make_inventory(SHAPES["two hosts"])
    names = ("site_database_password", "site_secret_key")
    first = [Environment(inventory).value("web1", name) for name in names]
    assert [Environment(inventory).value("db1", name) for name in names] == first
    assert [len(secret) for secret in first] == [40, 64] and all(re.fullmatch(r"[A-Za-z0-9]+", s) for s in first)
    files = list((inventory / "secrets").iterdir())
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600} and len(files) == 2
    assert stat.S_IMODE((inventory / "secrets").stat().st_mode) & 0o077 == 0


def test_a_secret_that_a_person_sets_wins_and_none_is_made(make_inventory: Callable[..., Path]) -> None:
    inventory = make_inventory(SHAPES["two hosts"], {**SITE, "site_database_password": 'it\'s "100%" $ecret\\ü'})
    site = Environment(inventory)
    assert site.value("web1", "django_database_passwords")["default"] == 'it\'s "100%" $ecret\\ü'
    assert site.value("db1", "postgres_roles")[0]["password"] == 'it\'s "100%" $ecret\\ü'
    assert not (inventory / "secrets/database_password").exists()


def test_every_setting_is_described_and_every_described_one_exists() -> None:
    described = yaml.safe_load((ROOT / "plugins/settings.yml").read_text())
    required = {name for name, spec in described.items() if spec.get("required")}
    known = {name for name in {**wired("site"), **wired("hosts")} if name.startswith(("site_", "host_"))}
    assert set(described) - required == known
    assert required == set(SITE)


def test_wiring_sets_only_what_a_role_or_a_setting_knows() -> None:
    """A role variable that the wiring sets and the role does not know would do nothing, silently."""
    specs = {path.parents[1].name: yaml.safe_load(path.read_text())["argument_specs"]
             for path in ROOT.glob("roles/*/meta/argument_specs.yml")}  # fmt: skip
    unknown = []
    for name in {**wired("base"), **wired("database"), **wired("cache"), **wired("media"), **wired("web"), **wired("edge"),
                 **wired("workers"), **wired("backup"), **wired("uploads"), **wired("etcd"), **wired("patroni")}:  # fmt: skip
        owner = next((role for role in specs if name.startswith(f"{role}_")), None)
        options = {option for entry in specs.get(owner, {}).values() for option in entry.get("options") or {}}
        if owner and name not in options and not name.endswith("_by_group"):
            unknown.append(name)
    assert unknown == []


def test_wiring_gives_every_required_variable_of_the_roles_that_layers_use() -> None:
    given = {**wired("base"), **wired("database"), **wired("backup"), **wired("cache"), **wired("media"), **wired("web"), **wired("edge"),
             **wired("workers"), **wired("pooler"), **wired("uploads"), **wired("etcd"), **wired("patroni")}  # fmt: skip
    # An instance of a role that can be applied twice on a host gets its own variables where it is applied.
    given_by_layers = {
        name
        for path in (ROOT / "playbooks/layers").glob("*.yml")
        for play in yaml.safe_load(path.read_text())
        for task in play.get("tasks") or []
        for name in task.get("vars") or {}
    }
    used = set(re.findall(r"(?:role|name): ([a-z_]+)$", "\n".join(
        path.read_text() for path in (ROOT / "playbooks/layers").glob("*.yml")), re.M))  # fmt: skip
    assert {"base", "postgres", "django", "nginx"} <= used
    missing = [
        name
        for path in ROOT.glob("roles/*/meta/argument_specs.yml")
        if path.parents[1].name in used
        for name, spec in (yaml.safe_load(path.read_text())["argument_specs"]["main"].get("options") or {}).items()
        if spec.get("required") and name not in given and name not in given_by_layers
    ]
    assert missing == []


def test_playbooks_are_accepted_for_the_example() -> None:
    playbooks = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("playbooks/*.yml"))
    assert "playbooks/stage1.yml" in playbooks
    done = run_playbook(playbooks[0], ROOT / "inventories/example", *playbooks[1:], "--syntax-check")
    assert done.returncode == 0, done.stderr


def test_what_the_kit_keeps_beside_the_inventory_is_not_read_as_hosts(make_inventory: Callable[..., Path]) -> None:
    inventory = make_inventory({"web": ["one"], "database": ["one"]})
    for name, text in (
        ("secrets/database_password", "s3cret"),
        ("secrets/ca/ca.key", "-----BEGIN"),
        ("artifacts/p1", "x"),
        ("secrets.vault", "$ANSIBLE_VAULT;1.1;AES256"),
    ):
        (inventory / name).parent.mkdir(parents=True, exist_ok=True)
        (inventory / name).write_text(f"{text}\n")
    asked = inventory.parent / "asked.yml"
    asked.write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": []}]))
    done = run_playbook(asked, inventory, "--list-hosts")
    assert re.search(r"hosts \(1\):\s+one\s*$", done.stdout), done.stdout
    assert "WARNING" not in done.stderr, done.stderr


def test_edge_sends_requests_to_every_web_host_over_verified_tls(make_inventory: Callable[..., Path]) -> None:
    site = one(make_inventory, "behind an edge")
    backends = site.value("edge1", "haproxy_backends")
    assert [(one["name"], one["address"], one["port"]) for one in backends] == [
        ("web1", "198.18.9.2", 8444), ("web2", "198.18.9.3", 8444)]  # fmt: skip
    assert site.value("edge1", "haproxy_backend_tls") is True
    for host in ("web1", "web2"):
        assert site.value(host, "nginx_proxy_port") == 8444
        assert site.value(host, "nginx_trusted_proxies") == ["198.18.9.7"]
        leaf = next(leaf for leaf in site.value(host, "certificates_leaves") if leaf["name"] == "nginx")
        assert "shop.example.com" in leaf["names"]  # the name that the edge asks for


@pytest.mark.parametrize(
    ("settings", "ports"), [({}, {80, 443, 8432, 8443, 8444}), ({"site_web_direct": False}, {8432, 8443, 8444})]
)
def test_only_the_first_web_host_stays_open_beside_the_edge_and_only_until_told(
    make_inventory: Callable[..., Path], settings: dict[str, Any], ports: set[int]
) -> None:
    def opened(site: Environment, host: str) -> set[Any]:
        ports = [rule["port"] for rule in site.value(host, "firewall_allow")]
        return {port for entry in ports for port in (entry if isinstance(entry, list) else [entry])}

    site = one(make_inventory, "behind an edge", **settings)
    assert opened(site, "web1") == ports and opened(site, "web2") == {8443, 8444}
    assert [site.value(host, "nginx_public") for host in ("web1", "web2")] == [80 in ports, False]


def test_a_closed_web_host_asks_for_no_public_certificate(make_inventory: Callable[..., Path]) -> None:
    settings = {"site_tls": "letsencrypt", "site_contact_email": "ada@example.com"}
    site = one(make_inventory, "behind an edge", **settings)
    assert [site.value(host, "nginx_tls") for host in ("web1", "web2")] == ["letsencrypt", "internal"]
    assert site.value("edge1", "haproxy_tls") == "letsencrypt"
    # The edge proves the names before they lead to it.
    assert site.value("web1", "nginx_acme_forward") == "198.18.9.7"


def test_a_new_host_gets_the_revision_that_the_others_serve(make_inventory: Callable[..., Path]) -> None:
    site = one(make_inventory, "behind an edge", site_version="v1")
    serving = {"web1": {"release": "r2-abc", "revision": "r2"}, "web2": {"release": "", "revision": ""}}
    answered = {"fleet_live": serving}
    assert site.value("web2", "django_version", **answered) == "r2"
    assert site.value("web2", "django_version", **answered, deploy_new_version=True) == "v1"
    assert site.value("web2", "django_version", **answered, deploy_new_version=True, version="v3") == "v3"
    assert site.value("web2", "django_version") == "v1"


def test_edges_that_share_an_address_hear_each_other_and_nobody_else(make_inventory: Callable[..., Path]) -> None:
    site = one(make_inventory, "two edges", site_virtual_address="198.18.9.99/24")
    assert site.value("edge1", "keepalived_peers") == ["198.18.9.8"]
    assert site.value("edge1", "keepalived_priority") > site.value("edge2", "keepalived_priority")
    vrrp = [rule for rule in site.value("edge2", "firewall_allow") if rule.get("proto") == "vrrp"]
    assert [rule["from"] for rule in vrrp] == [["198.18.9.7"]]
    assert not [rule for rule in site.value("web1", "firewall_allow") if rule.get("proto") == "vrrp"]


def test_deploy_does_not_go_back_to_the_first_version_unasked(
    make_inventory: Callable[..., Path], tmp_path: Path
) -> None:
    plays = yaml.safe_load((ROOT / "playbooks/deploy.yml").read_text())
    alone = tmp_path / "which.yml"
    alone.write_text(yaml.safe_dump([play for play in plays if play["name"] == "Which version"]))
    inventory = make_inventory({"web": ["one"], "database": ["one"]})
    source = {"site_version": "v1.0", "site_source": {"git": "https://git.example.com/shop.git"}}
    refused = run_playbook(alone, inventory, "-e", json.dumps(source))
    assert refused.returncode != 0 and "site_version (v1.0) is for the first deploy only" in refused.stdout
    for right in ({"version": "v1.1"}, {"site_version": ""}, {"site_source": {"path": "/srv/shop"}}):
        assert run_playbook(alone, inventory, "-e", json.dumps({**source, **right})).returncode == 0


@pytest.mark.parametrize("wanted", ["", "db2"])
def test_members_of_the_database_agree_and_only_the_primary_copies_nobody(
    make_inventory: Callable[..., Path], wanted: str
) -> None:
    site = one(make_inventory, "a replica", site_database_primary=wanted)
    primary = wanted or "db1"
    for name in (
        "postgres_replication_slots",
        "postgres_primary_hosts",
        "postgres_peer_networks",
        "postgres_replication_password",
    ):
        assert site.value("db1", name) == site.value("db2", name) != [], name
    for host in ("db1", "db2"):
        other = {"db1": "db2", "db2": "db1"}[host]
        address = "" if host == primary else site.value(primary, "host_address")
        assert site.value(host, "postgres_primary_host") == address
        assert site.value(host, "postgres_peers") == [site.value(other, "host_address")]
        assert site.value(host, "postgres_replica_name") in site.value(host, "postgres_replication_slots")


def test_one_database_host_has_nothing_of_replicas(make_inventory: Callable[..., Path]) -> None:
    site = one(make_inventory)
    for name in ("postgres_replication_slots", "postgres_primary_hosts", "postgres_peers", "postgres_peer_networks"):
        assert site.value("db1", name) == []
    assert site.value("db1", "postgres_replication_password") == site.value("db1", "postgres_primary_host") == ""
    assert list(site.value("web1", "django_databases")) == ["default"] and not site.value(
        "web1", "django_databases_direct"
    )


def test_a_site_can_stop_reading_from_its_last_replica_before_the_pooler_forgets_the_way(
    make_inventory: Callable[..., Path],
) -> None:
    still = one(make_inventory, "a replica", django_read_replica="")
    assert still.value("web1", "django_read_replica") == "" and still.value("web1", "pooler_way")["replica_port"] != 0
    assert "shop_replica" in [pool["name"] for pool in still.value("web1", "pgbouncer_databases")]


def test_who_has_written_is_known_to_all_web_hosts_before_the_first_of_them_has_a_replica(site: Environment) -> None:
    for host in site.hosts:
        if "web" in site.groups(host):
            marks = site.value(host, "django_read_marks")
            assert marks or not site.value(host, "django_read_replica")
            assert marks == (len(site.all_groups["web"]) > 1 or site.value(host, "site_pooler"))


def test_poolers_leave_the_database_connections_for_everything_else(make_inventory: Callable[..., Path]) -> None:
    site = one(make_inventory, "a replica", postgres_max_connections=100)
    hosts = app_addresses(site)
    each = site.value("web1", "pgbouncer_server_connections")
    assert len(hosts) == 3 and each * len(hosts) + site.value("web1", "pooler_connections_reserve") <= 100


def test_a_pooler_may_stand_before_one_database_host(make_inventory: Callable[..., Path]) -> None:
    site = one(make_inventory, site_pooler=True)
    [pool] = site.value("web1", "pgbouncer_databases")
    assert pool["host"] == "127.0.0.1" and site.value("web1", "pooler_way")["replica_port"] == 0
    assert list(site.value("web1", "django_databases")) == ["default"]
    assert site.value("web1", "django_databases")["default"]["disable_server_side_cursors"] is True
    [leaf] = [leaf for leaf in site.value("db1", "certificates_leaves") if leaf["name"] == "postgres"]
    assert "127.0.0.1" in leaf["names"]
    # Clients must have left before a process of PgBouncer that restarts sends them away.
    assert site.value("web1", "django_database_max_age") < 60
