#!/usr/bin/env bash
# systemd-analyze verify over the units, in a root of its own where the programs that they name exist.
set -euo pipefail
cd "$(dirname "$0")"
command -v systemd-analyze >/dev/null || { echo "missing: systemd-analyze (package systemd)" >&2; exit 69; }
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
install -D -m 644 -t "$root/etc/systemd/system" systemd/*.service
for program in meridian meridian-dataplane meridian-zone-ingress meridian-zone-egress; do
    install -D -m 755 /bin/true "$root/usr/bin/$program"
done
# The targets that the units order themselves by come with systemd.
install -d "$root/usr/lib/systemd/system"
cp -a /lib/systemd/system/*.target "$root/usr/lib/systemd/system/"
units=()
for unit in systemd/*.service; do units+=("$(basename "$unit")"); done
systemd-analyze verify --root="$root" --man=no "${units[@]}"
echo "${#units[@]} units: ok"
