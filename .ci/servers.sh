#!/usr/bin/env bash
# Installs the independent servers that the contract suites also run against: kinesis-local and dynalite
# (npm), moto (a Python venv). Does nothing where they are there already. Takes a folder, by default
# target/servers, where the tests look; tell them another one by KINESIS_CONSUMER_SERVERS.
set -euo pipefail
cd "$(dirname "$0")/.."
servers=${1:-target/servers}
mkdir -p "$servers/node"
servers=$(cd "$servers" && pwd)

need() {
  command -v "$1" >/dev/null || { echo "servers.sh needs $1 ($2), which is not installed" >&2; exit 1; }
}
need node "version 20 or later, for kinesis-local and dynalite"
need npm "it comes with node"
need python3 "version 3.9 or later with venv, for moto"

# A server counts as there only if the marker of exactly this version is: a broken install is repeated.
once() {
  local marker="$servers/.$1"
  shift
  [ -e "$marker" ] || { "$@" && touch "$marker"; }
}
node_servers() {
  (cd "$servers/node" && npm install --no-fund --no-audit --loglevel=error kinesis-local@0.6.2 dynalite@4.0.0)
  [ -e "$servers/node/node_modules/kinesis-local/server.json" ] ||
    { echo "kinesis-local came without its server.json" >&2; return 1; }
}
moto() {
  python3 -m venv "$servers/py"
  "$servers/py/bin/pip" install --quiet --disable-pip-version-check 'moto[server]==5.2.5'
}
once kinesis-local-0.6.2-dynalite-4.0.0 node_servers
once moto-5.2.5 moto
echo "servers are in $servers"
