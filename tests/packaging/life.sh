#!/bin/bash
# Run by test_deb.py in a fresh Debian without systemd running: the package's life. Each line tells a step; the first that
# fails ends it. /host holds earlier.deb, this.deb and later.deb; and the engine's of these versions, or not.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
config=/etc/marketprism/unified_data_collection.yaml

step() { echo "== $*"; }
fails() { ! "$@" >/dev/null 2>&1; }
apt() { apt-get -y -qq -o Dpkg::Use-Pty=0 --no-install-recommends "$@" </dev/null; }
traces() { # what a system looks like, for what is ours or may be: paths, modes, owners, users
    find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /host -o -path /tmp -o -path /var/cache \
        -o -path /var/lib/apt -o -path /var/lib/dpkg -o -path /var/log/apt -o -path /run \) -prune -o -printf '%p %M %u %g\n' | sort
    getent passwd | cut -d: -f1,6
}

step 'before'
traces >/tmp/before

step 'installed'
apt install /host/this.deb | tee /tmp/said
grep 'systemctl start marketprism.target' /tmp/said | tail -n 1 | grep 'enable --now'
getent passwd marketprism | grep ':/var/lib/marketprism:'
[ "$(stat -c %U /var/lib/marketprism /var/log/marketprism | sort -u)" = marketprism ]
[ ! -e /etc/systemd/system/multi-user.target.wants/marketprism.target ]
[ "$(which marketprism)" = /usr/bin/marketprism ]
marketprism check-config
marketprism version
dpkg --verify marketprism
find /usr/lib/marketprism -name '*.so' -printf '%P\n' | sed -n 's|lib/python[^/]*/site-packages/||; s|\.[^/]*$||; s|/|.|gp' | sort >/tmp/modules
echo '_cffi_backend' >>/tmp/modules
/usr/lib/marketprism/bin/python -I -c '
import importlib
for name in open("/tmp/modules").read().split():
    importlib.import_module(name)
print("extension modules load")'
/usr/lib/marketprism/bin/python -I -c 'from marketprism import _book; print(_book.__file__)'
systemd-analyze verify /usr/lib/systemd/system/marketprism* 2>&1 | tee /tmp/verified
fails grep -i marketprism /tmp/verified
dpkg-query -W -f '${Conffiles}' marketprism | grep -q "$config"

step 'nothing is compiled when it runs'
before=$(find /usr/lib/marketprism -newer /tmp/said | wc -l)
[ "$before" = 0 ]

step 'upgraded, with an edited configuration and data'
echo '# mine' >>$config
echo data >/var/lib/marketprism/data
mkdir -p /etc/systemd/system/multi-user.target.wants
ln -s /usr/lib/systemd/system/marketprism.target /etc/systemd/system/multi-user.target.wants/
apt install /host/later.deb
tail -n 1 $config | grep '# mine'
[ "$(cat /var/lib/marketprism/data)" = data ]

step 'an older one over a newer one keeps everything, too'
apt install --allow-downgrades /host/earlier.deb
tail -n 1 $config | grep '# mine'
marketprism check-config

step 'removed'
apt remove marketprism
[ "$(cat /var/lib/marketprism/data)" = data ]
[ -e $config ] && [ ! -e /usr/lib/marketprism ] && [ ! -e /usr/bin/marketprism ]

step 'installed again'
apt install /host/this.deb
tail -n 1 $config | grep '# mine'
[ "$(cat /var/lib/marketprism/data)" = data ]

if [ -e /host/this-engine.deb ]; then
    step 'with the engine of the stores'
    site=$(dirname "$(/usr/lib/marketprism/bin/python -I -c 'import marketprism; print(marketprism.__path__[0])')")
    cp $config /tmp/without
    sed -i '/^storage:/,/enabled:/s/enabled: false/enabled: true/' $config
    marketprism check-config | grep 'apt install ./marketprism-embedded_'
    apt install /host/this-engine.deb | tee /tmp/said
    tail -n 1 /tmp/said | grep 'systemctl start marketprism.target'
    marketprism check-config | grep ', 0 warnings'
    dpkg --verify marketprism-embedded
    /usr/lib/marketprism/bin/python -I -c '
import chdb, clickhouse_connect, pandas, pyarrow.compute, pyarrow.dataset, pyarrow.parquet
print(chdb.query("SELECT version()"), pyarrow.table({"a": [1.5]}).to_pandas())'

    step 'both upgraded, and back again'
    apt install /host/later.deb /host/later-engine.deb
    apt install --allow-downgrades /host/earlier.deb /host/earlier-engine.deb
    apt install /host/this.deb /host/this-engine.deb
    [ "$(dpkg-query -W -f '${Version}\n' marketprism marketprism-embedded | sort -u | wc -l)" = 1 ]
    marketprism check-config | grep ', 0 warnings'

    step 'the engine removed: nothing of it is left, the rest is as it was'
    apt remove marketprism-embedded
    [ ! -e "$site/chdb" ] && [ ! -e "$site/pyarrow" ]
    fails grep -v ' c /etc/' <(dpkg --verify marketprism)
    marketprism check-config | grep 'apt install ./marketprism-embedded_'

    step 'installed together over old state'
    apt remove marketprism
    apt install /host/this.deb /host/this-engine.deb
    cp /tmp/without $config
fi

step 'purged'
apt purge 'marketprism*'
traces >/tmp/after
diff /tmp/before /tmp/after
step 'done'
