FROM @base@
RUN set -eu; \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends apt-cacher-ng; \
    apt-get clean; \
    echo 'ForeGround: 1' >> /etc/apt-cacher-ng/acng.conf
STOPSIGNAL SIGTERM
CMD ["/bin/sh", "-c", "install -d -o apt-cacher-ng -g apt-cacher-ng /run/apt-cacher-ng /var/cache/apt-cacher-ng && exec setpriv --reuid apt-cacher-ng --regid apt-cacher-ng --clear-groups /usr/sbin/apt-cacher-ng -c /etc/apt-cacher-ng"]
