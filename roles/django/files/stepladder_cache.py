"""Django's Redis cache, made so that a site goes on without it.

A cache that does not answer counts as empty: what is asked for is not there, what is stored is gone. It is left alone
for some seconds then, so that visitors do not wait for it one by one. What could not be deleted or replaced meanwhile is
deleted when it answers again, before anything is read from it: nothing outdated comes back.
"""

import logging
import threading
import time

from django.core.cache.backends.base import DEFAULT_TIMEOUT
from django.core.cache.backends.redis import RedisCache
from redis.exceptions import RedisError

PAUSE = 2.0  # seconds without the cache after it did not answer
MOST = 1000  # keys remembered for deletion; with more, the whole cache is emptied

log = logging.getLogger("stepladder.cache")


class Outage:
    """What one process knows of a cache that does not answer."""

    def __init__(self):
        self.lock = threading.Lock()
        self.until = 0.0
        self.outdated = set()

    def begin(self, error):
        with self.lock:
            known = time.monotonic() < self.until
            self.until = time.monotonic() + PAUSE
        if not known:
            log.warning("The cache does not answer (%s: %s); the site goes on without it.", type(error).__name__, error)

    def remember(self, keys):
        with self.lock:
            if len(self.outdated) <= MOST:
                self.outdated.update(keys)

    def take(self):
        """The keys to delete first, now that the cache is tried again."""
        with self.lock:
            keys, self.outdated = self.outdated, set()
        return keys


_outages = {}  # by address: the threads of a process share what they know


class Redis(RedisCache):
    """See the module; everything else is as in django.core.cache.backends.redis.RedisCache."""

    def __init__(self, server, params):
        super().__init__(server, params)
        self._outage = _outages.setdefault(str(server), Outage())

    def _try(self, work, otherwise, outdated=()):
        """The result of `work`, or `otherwise` while the cache does not answer."""
        outage = self._outage
        if time.monotonic() < outage.until:
            outage.remember(outdated)
            return otherwise
        first = outage.take()
        try:
            if len(first) > MOST:
                self._cache.clear()
            elif first:
                self._cache.delete_many(first)
            first = ()
            return work()
        except RedisError as error:
            outage.begin(error)
            outage.remember((*first, *outdated))
            return otherwise

    def _made(self, keys, version):
        return [self.make_and_validate_key(key, version=version) for key in keys]

    def add(self, key, value, timeout=DEFAULT_TIMEOUT, version=None):
        return self._try(lambda: super(Redis, self).add(key, value, timeout, version), True)

    def get(self, key, default=None, version=None):
        return self._try(lambda: super(Redis, self).get(key, default, version), default)

    def set(self, key, value, timeout=DEFAULT_TIMEOUT, version=None):
        self._try(lambda: super(Redis, self).set(key, value, timeout, version), None, self._made([key], version))

    def touch(self, key, timeout=DEFAULT_TIMEOUT, version=None):
        return self._try(lambda: super(Redis, self).touch(key, timeout, version), False)

    def delete(self, key, version=None):
        return self._try(lambda: super(Redis, self).delete(key, version), False, self._made([key], version))

    def get_many(self, keys, version=None):
        keys = list(keys)
        return self._try(lambda: super(Redis, self).get_many(keys, version), {})

    def set_many(self, data, timeout=DEFAULT_TIMEOUT, version=None):
        work = lambda: super(Redis, self).set_many(data, timeout, version)  # noqa: E731 (as short as its siblings)
        return self._try(work, list(data), self._made(data, version))

    def delete_many(self, keys, version=None):
        keys = list(keys)
        self._try(lambda: super(Redis, self).delete_many(keys, version), None, self._made(keys, version))

    def has_key(self, key, version=None):
        return self._try(lambda: super(Redis, self).has_key(key, version), False)

    def incr(self, key, delta=1, version=None):
        changed = self._try(lambda: super(Redis, self).incr(key, delta, version), None, self._made([key], version))
        if changed is None:
            raise ValueError(f"Key {key!r} not found.")
        return changed

    def clear(self):
        return self._try(super().clear, False, map(str, range(MOST + 2)))
