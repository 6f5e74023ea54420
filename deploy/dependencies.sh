#!/usr/bin/env bash
# Installs the Debian packages that give the named programs, where they are missing. Arguments: package:program;
# a program may be a path with wildcards (Debian keeps Postgres's server programs off the PATH): then its name on the PATH does as well.
set -euo pipefail
missing=()
for pair in "$@"; do
    program=${pair#*:}
    compgen -G "$program" >/dev/null && continue
    PATH="$PATH:/usr/sbin:/sbin" command -v "${program##*/}" >/dev/null || missing+=("${pair%%:*}")
done
command -v cargo >/dev/null || { echo "missing: Rust 1.95 or newer (rustup.rs)" >&2; exit 69; }
command -v cc >/dev/null || missing+=(gcc libc6-dev)
# Of Luau.
command -v c++ >/dev/null || missing+=(g++)
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    echo "installing: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
else
    echo "missing: ${missing[*]} (as root: apt-get install ${missing[*]})" >&2
    exit 69
fi
