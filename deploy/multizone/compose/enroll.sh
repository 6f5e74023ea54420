#!/usr/bin/env bash
# Makes the tokens with which the zones and their proxies introduce themselves, beside the CA of the global control plane.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p enroll
chmod 700 enroll
in_global() { docker compose exec -T global-1 "$@"; }
in_global cat /data/ca.crt > enroll/ca.crt
for zone in east west; do
    for scope in cp ingress egress; do
        in_global meridian generate zone-token --zone "$zone" --scope "$scope" --valid-for 24h \
            --address http://127.0.0.1:5681 --token-file /data/admin-token > "enroll/$zone-$scope"
    done
done
chmod 644 enroll/*
