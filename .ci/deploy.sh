#!/usr/bin/env bash
# Checks what deploys the consumer: cloudformation/, k8s/ and the service, which it builds. Installs its
# tools (a Python venv, and a package for node) into target/deploy. Nothing is skipped. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
need() {
  command -v "$1" >/dev/null || { echo "deploy.sh needs $1 ($2), which is not installed" >&2; exit 1; }
}
need python3 "version 3.10 or later with venv"
need node "version 20 or later"
need npm "it comes with node"

keda=@kubernetes-models/keda@2.0.0
# The tools count as there only if the marker of exactly these versions is: a broken install is repeated.
tools=$PWD/target/deploy
marker=$tools/.installed-$( (cat tests/deploy/requirements.txt; echo "$keda") | sha256sum | cut -c1-16)
if [ ! -e "$marker" ]; then
  rm -rf "$tools"
  python3 -m venv "$tools"
  "$tools/bin/pip" install --quiet --disable-pip-version-check --requirement tests/deploy/requirements.txt
  npm install --prefix "$tools/node" --no-fund --no-audit --loglevel=error "$keda"
  touch "$marker"
fi
# A Kinesis that ends closed shards, for the doubling.
[ -n "${KINESIS_CONSUMER_SERVERS:-}" ] || .ci/servers.sh
# As the image is built.
cargo build --locked --package kinesis-consumer-service
# The operator's tool, as its own tests build it.
cargo test --locked --no-run --test leasectl
PYTHONDONTWRITEBYTECODE=1 "$tools/bin/python" -m pytest -q -rs -p no:cacheprovider tests/deploy "$@"
