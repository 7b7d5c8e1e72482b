FROM @base@
# No remapping of mirrors: what is asked for is fetched from where it was asked for.
RUN set -eu; \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends apt-cacher-ng; \
    apt-get clean; \
    rm -rf /etc/apt-cacher-ng; mkdir /etc/apt-cacher-ng; \
    printf '%s\n' 'CacheDir: /var/cache/apt-cacher-ng' 'LogDir: /var/log/apt-cacher-ng' \
        'SupportDir: /usr/lib/apt-cacher-ng' 'ExThreshold: 4' 'ForeGround: 1' \
        'DnsCacheSeconds: 30' > /etc/apt-cacher-ng/acng.conf
STOPSIGNAL SIGTERM
CMD ["/bin/sh", "-c", "install -d -o apt-cacher-ng -g apt-cacher-ng /run/apt-cacher-ng /var/cache/apt-cacher-ng && exec setpriv --reuid apt-cacher-ng --regid apt-cacher-ng --clear-groups /usr/sbin/apt-cacher-ng -c /etc/apt-cacher-ng"]
