#!/bin/sh
# A package index with what two of the sites need, and a package that is nowhere else; its argument is the linter's version.
set -eu
rm -rf /srv/lab/simple && mkdir -p /srv/lab/simple && cd /srv/lab
python3 - <<'PY'
import zipfile

with zipfile.ZipFile("/tmp/ours-1.0-py3-none-any.whl", "w") as wheel:
    info = "ours-1.0.dist-info/"
    wheel.writestr("ours.py", "WORD = 'from our own index'\n")
    wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: ours\nVersion: 1.0\n")
    wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\nGenerator: lab\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr(info + "RECORD", "".join(f"{name},,\n" for name in ("ours.py", info + "METADATA", info + "WHEEL", info + "RECORD")))
PY
/opt/uv/bin/pip download -q -d /srv/lab/wheels Django==5.2.19 gunicorn==23.0.0 'psycopg[binary]==3.3.9' "django-migration-linter==$1"
mv /tmp/ours-1.0-py3-none-any.whl wheels/
for wheel in wheels/*.whl; do
    name=$(basename "$wheel" | cut -d- -f1 | tr 'A-Z_.' 'a-z--')
    mkdir -p "simple/$name" && mv "$wheel" "simple/$name/"
done
