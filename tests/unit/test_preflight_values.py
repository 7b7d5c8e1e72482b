"""Preflight refuses a setting's wrong value in the name that a person wrote, before a role would in the midst of a run."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kit import KEY, ROOT, SITE, Environment, load_plugin
from preflighted import TWO, hosts, inventory_problems, preflight, values

ADA = {"name": "ada", "keys": [KEY]}
SETTINGS = preflight.settings()

# The settings that are set, and how the one sentence about them begins; @ stands for the hosts.
WRONG: list[tuple[dict[str, Any], str]] = [
    # Where the project comes from.
    ({"site_source": "examples/shop"}, "site_source must be a mapping; found 'examples/shop' @. Correct it in"),
    ({"site_source": {"git": "https://g.example.com/x", "path": "examples/shop"}},
     "site_source names git and path @. Set exactly one of git, path and package"),
    ({"site_source": {"subdirectory": "src"}}, "site_source names no source @. Set exactly one of"),
    ({"site_source": {"gti": "https://g.example.com/x"}}, "site_source has the unknown key gti @. Did you mean git?"),
    ({"site_source": {"git": ["https://g.example.com/x"]}}, "site_source.git must be text; found a list on"),
    ({"site_source": {"git": "https://ada:pa55@g.example.com/x"}},
     "site_source.git has a login in the address @, where"),
    ({"site_source": {"git": "git clone x"}}, "site_source.git has a blank in it @."),
    ({"site_source": {"git": "https://g.example.com/x", "deploy_key": 55555}},
     "site_source.deploy_key must be text; found a whole number"),
    ({"site_source": {"path": "nowhere/shop"}},
     "site_source.path is nowhere/shop, which is not there on the controller."),
    ({"site_source": {"path": "README.md"}}, "site_source.path is README.md, which is no folder on the controller."),
    ({"site_source": {"path": "examples/shop", "exclude": "*.log"}},
     "site_source.exclude must be a list; found '*.log' @. Write it in brackets: [*.log]."),
    ({"site_source": {"package": "shop>=2"}}, "site_source.package is shop>=2 @ and leaves the version open"),
    # Names.
    ({"site_hostnames": "shop.example.com"},
     "site_hostnames must be a list; found 'shop.example.com' @. Write it in brackets: [shop.example.com]."),
    ({"site_hostnames": [["a"]]}, "site_hostnames, entry 1, must be text; found a list"),
    ({"site_hostnames": ["a.example.com", ""]}, "site_hostnames, entry 2, is empty @."),
    ({"site_hostnames": ["https://shop.example.com"]},
     "site_hostnames has 'https://shop.example.com', with the scheme before it. Write the name alone: shop.example.com."),
    ({"site_hostnames": ["shop.example.com:8000"]},
     "site_hostnames has 'shop.example.com:8000', with a port. Write the name alone: shop.example.com."),
    ({"site_hostnames": ["shop.example.com/shop"]},
     "site_hostnames has 'shop.example.com/shop', with a path. Write the name alone: shop.example.com."),
    ({"site_hostnames": ["HTTPS://Shop.example.com:443/x"]},
     "site_hostnames has 'HTTPS://Shop.example.com:443/x', with the scheme before it and with a path and with a port and in capitals. "
     "Write the name alone: shop.example.com."),
    ({"site_hostnames": ["shop.example.com "]},
     "site_hostnames has 'shop.example.com ', with a blank in it. Write the name alone: shop"),
    ({"site_hostnames": ["a.example.com, b.example.com"]},
     "site_hostnames has 'a.example.com, b.example.com', with a blank in it. Write the name alone."),
    ({"site_hostnames": ["Shop.example.com"]},
     "site_hostnames has 'Shop.example.com', in capitals. Write the name alone: shop.example.com."),
    ({"site_hostnames": ["shop.example.com", "shop.example.com"]},
     "site_hostnames has shop.example.com twice. Keep it once."),
    ({"site_hostnames": ["shop_1.example.com"]}, "site_hostnames has 'shop_1.example.com', which is no name of a host"),
    ({"site_hostnames": ["münchen.example"]},
     "site_hostnames has 'münchen.example', which DNS writes otherwise. Write xn--mnchen-3ya.example."),
    ({"site_hostnames": ["2001:db8::1"]}, "site_hostnames has '2001:db8::1', an address that nginx takes for no name."),
    ({"site_hostnames": ["192.0.2.1"], "site_tls": "letsencrypt", "site_contact_email": "ada@example.com"},
     "site_hostnames has '192.0.2.1', an address, which Let's Encrypt cannot be asked about."),
    ({"site_hostnames": ["*.example.com", "a.example.com"]},
     "site_hostnames has '*.example.com', a wildcard, and the first is the main name"),
    ({"site_hostnames": ["a.example.com", "*.example.com"], "site_tls": "letsencrypt", "site_contact_email": "ada@example.com"},
     "site_hostnames has '*.example.com', a wildcard, which Let's Encrypt cannot prove"),
    # What Python and Gunicorn import.
    ({"site_settings_module": "shop/settings.py"},
     "site_settings_module must be a module's dotted name as Python imports it (shop.settings); found 'shop/settings.py' on "
     "db1, web1. Did you mean shop.settings?"),
    ({"site_settings_module": "shop.settings "}, "site_settings_module must be a module's dotted name"),
    ({"site_wsgi_application": "shop/wsgi.py"},
     "site_wsgi_application must be a module's dotted name, a colon and the application in it (shop.wsgi:application); found "
     "'shop/wsgi.py' @. Did you mean shop.wsgi?"),
    ({"site_wsgi_application": "shop.wsgi:"},
     "site_wsgi_application must be a module's dotted name, a colon and the application"),
    ({"site_celery_app": "shop/celery.py"},
     "site_celery_app must be a module's dotted name (shop); found 'shop/celery.py' @. Did you mean shop.celery?"),
    # People.
    ({"site_administrators": "ada"}, "site_administrators must be a list; found 'ada' @."),
    ({"site_administrators": ADA}, "site_administrators must be a list; found a mapping on db1"),
    ({"site_administrators": ["ada"]}, "site_administrators, entry 1, must be a mapping; found 'ada' @."),
    ({"site_administrators": [{"name": "ada", "key": KEY}]},
     "site_administrators, entry 1 (ada), has the unknown key key @. Did you mean keys?"),
    ({"site_administrators": [{"keys": [KEY]}]}, "site_administrators, entry 1, has no name @."),
    ({"site_administrators": [ADA, {"name": "bob"}]},
     "site_administrators, entry 2 (bob), has no key, and could not log in."),
    ({"site_administrators": [{"name": "ada", "keys": KEY}]},
     "site_administrators, entry 1 (ada), keys must be a list; found 'ssh-ed25519 AAAA"),
    ({"site_administrators": [{"name": "ada", "keys": [5]}]},
     "site_administrators, entry 1 (ada), keys, entry 1, must be text; found 5 on"),
    ({"site_administrators": [{"name": "ada", "keys": ["ssh-ed25519 AAAA ada@example.com"]}]},
     "site_administrators, entry 1 (ada), has the key 'ssh-ed25519 AAAA ada@example.com', which is cut short or damaged."),
    ({"site_administrators": [{"name": "ada", "keys": ["~/.ssh/id_ed25519.pub"]}]},
     "site_administrators, entry 1 (ada), has the key '~/.ssh/id_ed25519.pub', which is not an OpenSSH public key"),
    ({"site_administrators": [{**ADA, "state": "gone"}]},
     "site_administrators, entry 1 (ada), state must be one of present, absent; found 'gone'"),
    ({"site_administrators": [{**ADA, "groups": "adm"}]},
     "site_administrators, entry 1 (ada), groups must be a list; found 'adm'"),
    ({"site_administrators": [{**ADA, "groups": [["adm"]]}]},
     "site_administrators, entry 1 (ada), groups, entry 1, must be text"),
    ({"site_administrators": [{**ADA, "remove": "yes"}]},
     "site_administrators, entry 1 (ada), remove must be true or false; found 'yes'"),
    ({"site_administrators": [{**ADA, "sudo": "all"}]},
     "site_administrators, entry 1 (ada), has sudo: all; it is true"),
    ({"site_administrators": [{**ADA, "name": "Ada Lovelace"}]},
     "site_administrators, entry 1 (Ada Lovelace), has no name that Linux takes"),
    ({"site_administrators": [ADA, ADA]}, "site_administrators lists ada twice"),
    # Lists of texts.
    ({"site_packages": "sentry-sdk"},
     "site_packages must be a list; found 'sentry-sdk' @. Write it in brackets: [sentry-sdk]."),
    ({"site_packages": [{"sentry-sdk": "2.0"}]}, "site_packages, entry 1, must be text; found a mapping"),
    ({"site_packages": ["sentry-sdk", None]}, "site_packages, entry 2, is empty @. Take it out"),
    ({"site_system_packages": [1.5]},
     'site_system_packages, entry 1, must be text; found 1.5 @. Write it in quotes: "1.5".'),
    ({"site_system_packages": ["libpq-dev libgdal-dev"]},
     "site_system_packages, entry 1, must be one package's name (libpq-dev)"),
    ({"site_database_extensions": [True]},
     "site_database_extensions, entry 1, must be text; found True @. Write it in quotes."),
    ({"site_database_extensions": ["pg_trgm, unaccent"]},
     "site_database_extensions, entry 1, must be one extension's name (pg_trgm)"),
    ({"site_own_variables": [{}]}, "site_own_variables, entry 1, must be text"),
    ({"site_ssh_from": [10]}, "site_ssh_from, entry 1, must be text"),
    ({"site_ssh_from": ["192.0.2.7/24"]},
     "site_ssh_from has the source 192.0.2.7/24, which has bits after its network part; write 192.0.2.0/24."),
    ({"site_ssh_from": ["office"]}, "site_ssh_from has the source office, which is not an address or network"),
    ({"site_gates": ["check", 5]}, "site_gates has 5, which is no command. Write it as text"),
    # Lists of mappings.
    ({"site_gates": ["check", None]}, "site_gates, entry 2, is empty @."),
    ({"site_firewall_allow": [8000]}, "site_firewall_allow, entry 1, must be a mapping; found 8000"),
    ({"site_firewall_allow": [{"prt": 8000}]},
     "site_firewall_allow, entry 1, has the unknown key prt @. Did you mean port?"),
    ({"site_firewall_allow": [{"port": 80000}]},
     "site_firewall_allow, entry 1, has the port 80000; a port is a number"),
    ({"site_firewall_allow": [{"port": 8000, "proto": "icmp"}]},
     "site_firewall_allow, entry 1, proto must be one of tcp, udp, vrrp; found 'icmp'"),
    ({"site_firewall_allow": [{"port": 8000, "from": "192.0.2.1"}]},
     "site_firewall_allow, entry 1, from must be a list; found '192.0.2.1'"),
    ({"site_firewall_allow": [{"port": 8000, "from": [5]}]},
     "site_firewall_allow, entry 1, from, entry 1, must be text"),
    ({"site_firewall_allow": [{"port": 8000, "comment": ["x"]}]}, "site_firewall_allow, entry 1, comment must be text"),
    ({"site_firewall_allow": [{"comment": "x"}]},
     "site_firewall_allow, entry 1 (x), has no port; name the one to open."),
    ({"site_rate_limits": [{"path_prefix": "/login", "requests": 10, "second": 60}]},
     "site_rate_limits, entry 1, has the unknown key second @. Did you mean seconds?"),
    ({"site_rate_limits": ["/login"]}, "site_rate_limits, entry 1, must be a mapping; found '/login'"),
    ({"site_rate_limits": [{"seconds": 60}]}, "site_rate_limits, entry 1, has no requests @. How many requests."),
    ({"site_rate_limits": [{"requests": 5}]}, "site_rate_limits, entry 1, has no seconds @."),
    ({"site_rate_limits": [{"requests": 0, "seconds": 60}]},
     "site_rate_limits, entry 1, requests must be 1 or more; found 0"),
    ({"site_rate_limits": [{"requests": 9, "seconds": 86401}]},
     "site_rate_limits, entry 1, seconds must be from 1 to 86400; found 86401"),
    ({"site_rate_limits": [{"requests": 9, "seconds": 0}]},
     "site_rate_limits, entry 1, seconds must be from 1 to 86400; found 0"),
    ({"site_rate_limits": [{"requests": 9, "seconds": 60, "methods": "POST"}]},
     "site_rate_limits, entry 1, methods must be a list; found 'POST'"),
    ({"site_rate_limits": [{"requests": 9, "seconds": 60, "methods": [1]}]},
     "site_rate_limits, entry 1, methods, entry 1, must be text"),
    ({"site_rate_limits": [{"requests": 9, "seconds": 60, "methods": ["post"]}]},
     "site_rate_limits, entry 1, has the methods ['post']"),
    ({"site_rate_limits": [{"requests": 9, "seconds": 60, "path_prefix": 5}]},
     "site_rate_limits, entry 1, path_prefix must be text"),
    ({"site_rate_limits": [{"path_prefix": "/healthz", "requests": 5, "seconds": 1}]},
     "site_rate_limits, entry 1, is for /healthz, which is what health checks ask (/healthz); they are never limited. "
     "Give it another path_prefix"),
    ({"site_ready_path": "/readyz", "site_rate_limits": [{"path_prefix": "/ready", "requests": 5, "seconds": 1}]},
     "site_rate_limits, entry 1, is for /ready, which is what health checks ask (/readyz)"),
    ({"site_ready_path": "/readyz", "site_rate_limits": [{"path_prefix": "/healthz", "requests": 5, "seconds": 1}]},
     "site_rate_limits, entry 1, is for /healthz, which is what health checks ask (site_health_path is /healthz): whoever watches"),
    ({"site_workers": {"name": "default"}},
     "site_workers must be a list; found a mapping @. Write it as a list: a dash"),
    ({"site_workers": ["default"]}, "site_workers, entry 1, must be a mapping; found 'default'"),
    ({"site_workers": [{"name": "a", "concurency": 4}]},
     "site_workers, entry 1 (a), has the unknown key concurency @. Did you mean concurrency?"),
    ({"site_workers": [{"queues": ["celery"]}]}, "site_workers, entry 1, has no name @. Name of the worker."),
    ({"site_workers": [{"name": "a", "queues": "celery"}]},
     "site_workers, entry 1 (a), queues must be a list; found 'celery'"),
    ({"site_workers": [{"name": "a", "concurrency": "4"}]},
     "site_workers, entry 1 (a), concurrency must be a whole number; found '4' @. Write it without quotes: 4."),
    ({"site_workers": [{"name": "a", "concurrency": 0}]},
     "site_workers, entry 1 (a), has the concurrency 0 @. It is 1 or more."),
    ({"site_workers": [{"name": "a", "pool": "forks"}]},
     "site_workers, entry 1 (a), has the pool forks @, which Celery does not have."),
    ({"site_workers": [{"name": "a", "queues": []}]}, "site_workers, entry 1 (a), has an empty list of queues @."),
    ({"site_workers": [{"name": "a b"}]}, "site_workers, entry 1 (a b), has a name that no unit can carry @."),
    ({"site_workers": [{"name": "a"}, {"name": "a"}]}, "site_workers has two workers called a @. Rename one of them."),
    # Mappings.
    ({"site_queues": ["celery"]}, "site_queues must be a mapping; found a list"),
    ({"site_queues": {"celery": 60}}, "site_queues.celery must be a mapping; found 60"),
    ({"site_queues": {"celery": {"maxwait": 60}}},
     "site_queues.celery has the unknown key maxwait @. Did you mean max_wait?"),
    ({"site_queues": {"celery": {"max_wait": "60"}}},
     "site_queues.celery.max_wait must be a number; found '60' @. Write it without quotes: 60."),
    ({"site_queues": {"celery": {"max_wait": -1}}}, "site_queues.celery.max_wait must be 0 or more; found -1"),
    ({"site_queues": {"e mail": {}}}, "site_queues has the name 'e mail' @; a name there is letters"),
    ({"site_environment": {"2FA": "x"}}, "site_environment has the name '2FA' @; a name there is letters, digits"),
    ({"site_environment": {"A": ["x"]}}, "site_environment.A must be text or a number; found a list"),
    ({"site_environment": {"A": "two\nlines"}},
     "site_environment.A has a line break or another control character in it @"),
    ({"site_environment": {"PYTHONPATH": "/x"}}, "site_environment has PYTHONPATH @, which the kit sets itself."),
    ({"site_secret_environment": {"A": ["hush"]}},
     "site_secret_environment.A must be text or a number; found a list @."),
    ({"site_secret_environment": {"A-B": "hush"}}, "site_secret_environment has the name 'A-B' @;"),
    ({"site_secret_environment": {"A": "hush\nhush"}}, "site_secret_environment.A has a line break or another"),
    ({"site_secret_environment": "hush"}, "site_secret_environment must be a mapping; found text @."),
    ({"site_settings": {"language_code": "de"}},
     "site_settings has the name 'language_code' @; a name there is a setting's name in capitals"),
    ({"site_broker_settings": {"Max Memory": 1}},
     "site_broker_settings has the name 'Max Memory' @; a name there is one of redis.conf's"),
    ({"site_memory_shares": {"postgres": "half"}}, "site_memory_shares.postgres must be a number; found 'half'"),
    ({"site_memory_shares": {"postgres": 50}}, "site_memory_shares.postgres must be from 0 to 1; found 50"),
    ({"site_memory_shares": {"postgers": 0.5, "gunicorn": 0.3}},
     "site_memory_shares has no share for postgres, which runs on db1. Is postgers meant for it?"),
    ({"site_memory_shares": {"postgres": 0.5}},
     "site_memory_shares has no share for gunicorn, which runs on web1. Add one."),
    # Plain values.
    ({"site_name": "Shop"},
     "site_name must be small letters and digits, a letter first, at most 24; found 'Shop' @. Did you mean shop?"),
    ({"site_name": ""}, "site_name is empty @. Set it in group_vars/site.yml: The site's short name"),
    ({"site_hostnames": []}, "site_hostnames is empty @. Set it in group_vars/site.yml: The names that people type"),
    ({"site_source": {}}, "site_source is empty @. Set it in group_vars/site.yml: Where the project comes from"),
    ({"site_settings_module": ""}, "site_settings_module is empty @. Set it in"),
    ({"site_wsgi_application": ""}, "site_wsgi_application is empty @. Set it in"),
    ({"site_administrators": []}, "site_administrators is empty @. Set it in"),
    ({"site_session_store": "redis"}, "site_session_store must be one of cached_db, db, cache; found 'redis'"),
    ({"site_version": 1.0}, 'site_version must be text; found 1.0 @. Write it in quotes: "1.0".'),
    ({"site_version": "v1 v2"}, "site_version must be a version without blanks; found 'v1 v2'"),
    ({"site_contact_email": None}, "site_contact_email must be text; found nothing @."),
    ({"site_contact_email": "ada"}, "site_contact_email must be an address (ada@example.com); found 'ada'"),
    ({"site_timezone": "Central Europe"}, "site_timezone must be a time zone's name"),
    ({"site_tls": "acme"}, "site_tls must be one of internal, files, letsencrypt; found 'acme'"),
    ({"site_tls": "files", "site_tls_certificate": "no.pem", "site_tls_key": "README.md"},
     "site_tls_certificate is no.pem, which is no file on the controller. Correct the path."),
    ({"site_requirements_file": "/etc/requirements.txt"},
     "site_requirements_file must be a path inside the project's folder"),
    ({"site_package_index_url": "https://ada:pa55@pypi.example.com/"},
     "site_package_index_url must be an address without a login (https"),
    ({"site_package_index_password": 55555},
     "site_package_index_password must be text; found a whole number @. Correct it"),
    ({"site_database_password": 55555}, "site_database_password must be text; found a whole number @. Correct it"),
    ({"site_cache_password": 55555}, "site_cache_password must be text; found a whole number"),
    ({"site_broker_password": 55555}, "site_broker_password must be text; found a whole number"),
    ({"site_redis_admin_password": 55555}, "site_redis_admin_password must be text; found a whole number"),
    ({"site_secret_key": 55555}, "site_secret_key must be text; found a whole number"),
    ({"site_media_token": 55555}, "site_media_token must be text; found a whole number"),
    ({"site_broker_url": 55555}, "site_broker_url must be text; found a whole number"),
    ({"site_health_path": "healthz"},
     "site_health_path must be a path that begins with a slash, without a query (/healthz); found 'healthz'"),
    ({"site_ready_path": "/readyz?x=1"}, "site_ready_path must be a path that begins with a slash"),
    ({"site_static_url": "static/"},
     "site_static_url must be a path with a slash at both ends (/static/); found 'static/'"),
    ({"site_media_url": "https://cdn.example.com/"},
     "site_media_url must be a path with a slash at both ends (/media/)"),
    ({"site_media_url": "/static/"}, "site_static_url and site_media_url are both /static/. Give each its own."),
    ({"site_lint_migrations": "yes"}, "site_lint_migrations must be true or false; found 'yes'"),
    ({"site_canary_seconds": -1}, "site_canary_seconds must be 0 or more; found -1"),
    ({"site_max_upload_mb": 0}, "site_max_upload_mb must be 1 or more; found 0"),
    ({"site_max_upload_mb": "20m"}, "site_max_upload_mb must be a whole number; found '20m' @. Correct it in"),
    ({"site_max_upload_mb": True}, "site_max_upload_mb must be a whole number; found True"),
    ({"site_task_time_limit": 0}, "site_task_time_limit must be 1 or more; found 0"),
    ({"site_visibility_timeout": 0}, "site_visibility_timeout must be 1 or more; found 0"),
    ({"site_keep_releases": -1}, "site_keep_releases must be 0 or more; found -1"),
    ({"site_memory_reserve": 20}, "site_memory_reserve must be from 0 to 0.9; found 20"),
    ({"site_memory_reserve": -0.1}, "site_memory_reserve must be from 0 to 0.9; found -0.1"),
    ({"site_clock_tolerance": 0}, "site_clock_tolerance must be 1 or more; found 0"),
    ({"host_memory_mb": 0}, "host_memory_mb must be 1 or more; found 0"),
    ({"host_memory_mb": "4G"}, "host_memory_mb must be a whole number; found '4G'"),
    # Variables of roles that a person sets.
    ({"postgres_roles": {"name": "shop", "password": "hush"}}, "postgres_roles must be a list; found a mapping @."),
    ({"postgres_roles": ["shop"]}, "postgres_roles, entry 1, must be a mapping; found 'shop' @."),
    ({"postgres_roles": [{"name": "shop", "pasword": "hush"}]},
     "postgres_roles, entry 1 (shop), has the unknown key pasword @. Did you mean password?"),
    ({"postgres_roles": [{"name": "shop", "state": "gone"}]},
     "postgres_roles, entry 1 (shop), state must be one of present, absent; found 'gone'"),
    ({"postgres_databases": [{"owner": "shop"}]}, "postgres_databases, entry 1, has no name @. The database's name."),
    ({"postgres_databases": [{"name": "a", "extensions": [{}]}]},
     "postgres_databases, entry 1 (a), extensions, entry 1, must be text; found a mapping"),
    ({"postgres_privileges": [{"role": "a", "database": "b", "privileges": {"SELECT": True}}]},
     "postgres_privileges, entry 1, privileges must be a list; found a mapping"),
    ({"postgres_max_connections": "many"}, "postgres_max_connections must be a whole number; found 'many' @."),
    ({"postgres_repository": "pgdb"}, "postgres_repository must be one of distribution, pgdg; found 'pgdb'"),
    ({"base_upgrades": "maybe"}, "base_upgrades must be true or false; found 'maybe'"),
    # Ansible would take these, and a role would have text where it counts, or asks whether it is true.
    ({"postgres_max_connections": "100"},
     "postgres_max_connections must be a whole number; found '100' @. Write it without quotes: 100."),
    ({"pgbackrest_retention_full": "0"}, "pgbackrest_retention_full must be a whole number; found '0' @."),
    ({"base_upgrades": "yes"}, "base_upgrades must be true or false; found 'yes' @. Write it without quotes: yes."),
    ({"base_packages": "curl,less"},
     "base_packages must be a list; found 'curl,less' @. Write it in brackets: [curl,less]."),
    ({"base_locale": ["C.UTF-8"]}, "base_locale must be text; found a list"),
]  # fmt: skip

RIGHT: list[dict[str, Any]] = [
    {"site_source": {"git": "git@g.example.com:ada/shop.git", "submodules": True, "deploy_key": "-----BEGIN"}},
    {"site_source": {"package": "shop == 2.0"}},
    {"site_source": {"package": "shop"}, "site_version": "2.0"},
    {"site_source": {"path": "{{ inventory_dir }}"}},
    {"site_hostnames": ["shop.example.com", "*.example.com", "xn--mnchen-3ya.example", "localhost"]},
    {"site_hostnames": ["192.0.2.1"]},
    {"site_wsgi_application": "shop.wsgi", "site_celery_app": "shop.celery:app"},
    {"site_wsgi_application": "shop.wsgi:create('x')", "site_settings_module": "settings"},
    {"site_administrators": [{**ADA, "sudo": "password", "groups": ["adm"]}, {"name": "bob", "state": "absent", "remove": True}]},
    {"site_administrators": [ADA, {"name": "bob"}], "base_ssh_passwords": True},
    {"site_environment": {"DEBUG": False, "PORT": 8, "EMPTY": None, "URL": "a b"}, "site_secret_environment": {"KEY": "x"}},
    {"site_gates": ["check --deploy", {"manage": "migrate --check"}]},
    {"site_settings": {"LANGUAGE_CODE": "de", "CACHES": {"a": [1]}}},
    {"site_ssh_from": ["192.0.2.0/24", "2001:db8::1"], "site_firewall_allow": [{"port": [80, "8000-8010"], "from": ["192.0.2.1"]}]},
    {"site_rate_limits": [{"path_prefix": "/login", "methods": ["POST"], "requests": 10, "seconds": 60}]},
    {"site_ready_path": "/readyz", "site_rate_limits": [{"requests": 9, "seconds": 1}, {"path_prefix": "/", "requests": 9, "seconds": 1}]},
    {"site_memory_shares": {"postgres": 0.5, "gunicorn": 0.3, "mine": 0}},
    {"site_queues": {"celery": {}}, "site_workers": [{"name": "a", "queues": None, "env": {"A": "b"}}]},
    {"site_package_index_url": "https://pypi.example.com/@ada/simple"},
    {"site_static_url": "/assets/v1/", "site_health_path": "/", "site_timezone": "America/Argentina/Buenos_Aires"},
    {"site_database_password": "{{ lookup('ansible.builtin.env', 'HOME') }}"},
    # Ansible makes of these what the role wants.
    {"postgres_max_connections": 100, "base_upgrades": True, "postgres_version": 17, "base_packages": ["curl", "less"]},
    {"postgres_roles": [{"name": "shop", "password": "x", "attributes": ["LOGIN"], "connection_limit": 5}]},
    {"postgres_memory_mb": "{{ memory_mb.postgres // 2 }}"},
]  # fmt: skip


def wrong_id(case: Any) -> str:
    return str(case)[:70]


@pytest.mark.parametrize(("settings", "sentence"), WRONG, ids=wrong_id)
def test_wrong_value_is_refused_in_one_sentence_with_the_settings_own_name(
    make_inventory: Callable[..., Path], settings: dict[str, Any], sentence: str
) -> None:
    said = inventory_problems(make_inventory(TWO, {**SITE, **settings}, hosts=hosts()))
    assert len(said) == 1 and said[0].startswith(sentence.replace(" @", " on db1, web1")), said
    words = said[0]
    assert (
        " @" not in words
        and "\n" not in words
        and not re.search(r"\b(django|gunicorn|nginx|haproxy|celery|firewall)_", words)
    )
    for secret in ("hush", "55555", "pa55"):
        assert secret not in words


@pytest.mark.parametrize("settings", RIGHT, ids=wrong_id)
def test_right_value_is_accepted(make_inventory: Callable[..., Path], settings: dict[str, Any]) -> None:
    assert inventory_problems(make_inventory(TWO, {**SITE, **settings}, hosts=hosts())) == []


def test_a_value_that_is_wrong_for_one_host_names_that_host(make_inventory: Callable[..., Path]) -> None:
    own = hosts(web1={"site_max_upload_mb": "20m", "site_administrators": [ADA, ADA], "site_packages": [5]})
    said = inventory_problems(make_inventory(TWO, hosts=own))
    assert len(said) == 3
    assert all("web1" in problem and "db1" not in problem for problem in said), said
    assert any(
        problem.startswith("site_administrators lists ada twice") and problem.endswith("(on web1)") for problem in said
    )


@pytest.mark.parametrize("address", ["https://10.0.0.5", "10.0.0.5:22", "10.0.0.5/24", "web 1"])
def test_a_hosts_address_is_an_address_or_a_name_alone(make_inventory: Callable[..., Path], address: str) -> None:
    [problem] = inventory_problems(make_inventory(TWO, hosts=hosts(web1={"host_address": address})))
    sentence = "host_address must be an address or a host's name, without scheme and port (192.0.2.11)"
    assert problem.startswith(f"{sentence}; found {address!r} on web1.")


@pytest.mark.parametrize("address", ["10.0.0.5", "2001:db8::5", "web1.internal"])
def test_a_hosts_address_may_be_either(make_inventory: Callable[..., Path], address: str) -> None:
    assert inventory_problems(make_inventory(TWO, hosts=hosts(web1={"host_address": address}))) == []


def test_all_wrong_values_are_named_in_one_run(make_inventory: Callable[..., Path]) -> None:
    settings = {"site_settings_module": "shop/settings.py", "site_hostnames": ["A.example.com"], "postgres_roles": [{}],
                "site_source": {"gti": "x", "path": 5}}  # fmt: skip
    said = inventory_problems(make_inventory(TWO, {**SITE, **settings}, hosts=hosts()))
    assert [problem.split()[0].rstrip(",") for problem in said] == [
        "site_hostnames", "site_source", "site_source.path", "site_settings_module", "postgres_roles"]  # fmt: skip


def test_an_address_cannot_be_the_main_name_of_several_web_hosts(make_inventory: Callable[..., Path]) -> None:
    own = {f"h{number}": {"ansible_host": f"127.0.0.{number + 2}"} for number in range(7)}
    groups = {"edge": ["h1"], "web": ["h2", "h3"], "database": ["h4"]}
    settings = {**SITE, "site_hostnames": ["192.0.2.1"]}
    [problem] = inventory_problems(make_inventory(groups, settings, hosts=own))
    assert problem.startswith(
        "site_hostnames has '192.0.2.1', an address, and with several web hosts the first must be a name."
    )


def test_a_source_that_is_not_needed_is_not_looked_for(make_inventory: Callable[..., Path]) -> None:
    gone = make_inventory(TWO, {**SITE, "site_source": {"path": "nowhere"}}, hosts=hosts())
    assert len(inventory_problems(gone)) == len(inventory_problems(gone, version="v1")) == 1
    assert inventory_problems(gone, version="p0123456789ab") == []  # its archive is on the controller
    assert inventory_problems(gone, args={"source": False}) == []


def test_rollback_does_not_ask_for_the_source() -> None:
    [first, *_] = yaml.safe_load((ROOT / "playbooks/rollback.yml").read_text())
    assert first["vars"]["preflight_source"] is False
    assert "preflight_source | default(true)" in (ROOT / "playbooks/layers/preflight.yml").read_text()


def test_a_folder_with_nothing_in_it_is_no_source(make_inventory: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    settings = {**SITE, "site_source": {"path": str(tmp_path / "empty")}}
    [problem] = inventory_problems(make_inventory(TWO, settings, hosts=hosts()))
    assert problem.endswith("a folder with nothing in it. Correct it to the project's folder.")


def test_the_version_of_a_deploy_closes_an_open_package(make_inventory: Callable[..., Path]) -> None:
    settings = {**SITE, "site_source": {"package": "shop"}}
    assert inventory_problems(make_inventory(TWO, settings, hosts=hosts()), version="2.0") == []


# Files that cannot be read.


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("site_name: shop\nsite_hostnames: [a\nsite_tls: internal\n",
         "line 3, is no YAML: expected ',' or ']', but got ':' (while parsing a flow sequence, which begins in line 2)."),
        ("site_name: shop\n\tsite_tls: internal\n", "line 2, is no YAML: found character '\\t' that cannot start any token"),
        ("site_name: 'shop\n", "line 2, is no YAML: found unexpected end of stream (while scanning a quoted scalar, which begins"),
        ("- site_name: shop\n", "line 1, is no mapping of names to values. Write each setting as name: value."),
        ("site_name: shop\nsite_tls: files\nsite_name: pub\n", "line 3, sets site_name again, after line 1. Keep one of them."),
    ],
    ids=["bracket", "tab", "quote", "list", "twice"],
)  # fmt: skip
def test_broken_file_is_named_with_its_line(make_inventory: Callable[..., Path], text: str, sentence: str) -> None:
    inventory = make_inventory(TWO, hosts=hosts())
    (inventory / "group_vars/site.yml").write_text(text)
    [problem] = inventory_problems(inventory)
    assert problem.startswith(f"{inventory}/group_vars/site.yml, {sentence}")


def test_files_that_can_be_read_are_not_blamed(tmp_path: Path) -> None:
    (tmp_path / "group_vars/site").mkdir(parents=True)
    (tmp_path / "host_vars").mkdir()
    (tmp_path / "group_vars/site/vault.yml").write_text("$ANSIBLE_VAULT;1.1;AES256\n6162\n")
    (tmp_path / "group_vars/site/main.yml").write_text("a: !vault x\nb: !unsafe y\n")
    (tmp_path / "group_vars/empty.yml").write_text("---\n")
    (tmp_path / "group_vars/.site.yml.swp").write_text("\t")
    (tmp_path / "host_vars/readme.md").write_text("\t: [")
    assert values.broken_files([tmp_path, ROOT]) == []
    (tmp_path / "host_vars/web1").write_bytes(b"\xff")
    [problem] = values.broken_files([tmp_path])
    assert "host_vars/web1 cannot be read: " in problem


# One truth.


def test_every_description_is_one_that_preflight_understands() -> None:
    understood = {"type", "required", "description", "choices", "elements", "options", "pattern", "words", "min", "max",
                  "values", "names", "names_words", "secret", "like", "generated"}  # fmt: skip

    def look(name: str, spec: dict[str, Any]) -> None:
        assert set(spec) <= understood | {"no_log"}, name
        assert spec["type"] in {*values.KINDS, "raw"}, name
        assert ("pattern" in spec) == ("words" in spec) and ("names" in spec) == ("names_words" in spec), name
        for field, option in (spec.get("options") or {}).items():
            look(f"{name}.{field}", option)
        if "values" in spec:
            look(f"{name}.*", spec["values"])

    for name, spec in SETTINGS.items():
        look(name, spec)
        assert spec["type"] != "list" or spec.get("elements"), f"{name} says nothing of its elements"


def test_every_default_is_right_by_its_own_description() -> None:
    wired = preflight.defaults()
    for name, spec in SETTINGS.items():
        if name in wired and preflight.is_plain(wired[name]):
            assert list(values.problems(name, spec, wired[name])) == []


def test_choices_and_fields_of_a_setting_are_those_of_the_roles_it_goes_to() -> None:
    roles = preflight.role_variables()
    assert SETTINGS["site_tls"]["choices"] == roles["nginx_tls"]["choices"] == roles["haproxy_tls"]["choices"]
    assert SETTINGS["site_source"]["options"] is roles["django_source"]["options"]
    assert SETTINGS["site_workers"]["options"] is roles["celery_workers"]["options"]
    base, firewall = (load_plugin(f"roles/{role}/filter_plugins/{role}.py") for role in ("base", "firewall"))
    haproxy = load_plugin("roles/haproxy/filter_plugins/haproxy_problems.py")
    assert set(SETTINGS["site_administrators"]["options"]) == base.KEYS
    assert set(SETTINGS["site_firewall_allow"]["options"]) == firewall.KEYS
    assert set(SETTINGS["site_rate_limits"]["options"]) == haproxy.LIMIT_KEYS
    for setting in ("site_administrators", "site_firewall_allow", "site_rate_limits", "site_workers"):
        assert SETTINGS[setting]["elements"] == "dict"


def test_a_settings_type_is_the_one_of_the_role_variable_it_becomes() -> None:
    """For the variables of the wiring that are a setting and nothing else."""
    roles, compared = preflight.role_variables(), 0
    for variable, value in preflight.defaults().items():
        if variable in roles and (match := re.fullmatch(r"\{\{ (site_\w+) \}\}", str(value))) and match[1] in SETTINGS:
            setting, role = SETTINGS[match[1]], roles[variable]
            assert setting["type"] == role["type"], (variable, match[1])
            assert role.get("choices") == setting.get("choices"), (variable, match[1])
            if role.get("elements") and setting.get("elements") != "raw":
                assert setting.get("elements") == role["elements"], (variable, match[1])
            compared += 1
    assert compared > 25


def test_patterns_are_those_of_the_roles() -> None:
    base = load_plugin("roles/base/filter_plugins/base.py")
    assert SETTINGS["site_timezone"]["pattern"] == base.VALUES["base_timezone"][0]
    said = {role: (ROOT / f"roles/{role}/tasks/preflight.yml").read_text() for role in ("celery", "django", "nginx")}
    assert f"match('{SETTINGS['site_celery_app']['pattern']}$')" in said["celery"]
    assert f"'{values.WORKER_NAME.pattern}$'" in said["celery"]
    assert f"match', '{SETTINGS['site_queues']['names']}$')" in said["celery"]
    assert f"'^{values.TAKEN.pattern}$'" in said["django"]
    for setting in ("site_static_url", "site_media_url"):
        assert f"'^{SETTINGS[setting]['pattern']}$'" in said["nginx"]
    assert f"'^{SETTINGS['site_health_path']['pattern']}$'" in said["nginx"]
    pools = yaml.safe_load((ROOT / "roles/celery/vars/main.yml").read_text())["_celery_pools"]
    assert list(values.POOLS) == pools


def test_the_key_that_nobody_has_is_the_examples() -> None:
    example = yaml.safe_load((ROOT / "inventories/example/group_vars/site.yml").read_text())
    assert values.EXAMPLE_KEY in example["site_administrators"][0]["keys"][0]


@pytest.mark.parametrize("inventory", sorted((ROOT / "inventories/lab").glob("*.yml")), ids=lambda path: path.stem)
def test_the_labs_settings_are_right(inventory: Path) -> None:
    assert inventory_problems(inventory) == []


def test_looking_at_an_inventory_takes_a_fraction_of_a_second() -> None:
    site = Environment(ROOT / "inventories/lab/stage4.yml")
    gathered = []
    whole = site.hostvars.raw_get
    site.hostvars.raw_get = lambda host: gathered.append(host) or whole(host)
    before = time.process_time()
    preflight.read_yaml.cache_clear()
    action = object.__new__(preflight.ActionModule)
    action._task = type("Task", (), {"args": {"stage": 4}})
    action._inventory({"groups": site.all_groups, "hostvars": site.hostvars})
    assert time.process_time() - before < 1  # a tenth of that where nothing else runs
    # A count says more than a clock: each look gathers all of a host's variables.
    assert len(gathered) <= 6 * len(site.hosts)
