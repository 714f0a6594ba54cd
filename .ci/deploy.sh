#!/usr/bin/env bash
# Checks what deploys the consumer: cloudformation/. Installs its tools (a Python venv) into target/deploy.
# Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v python3 >/dev/null || { echo "deploy.sh needs python3 (version 3.10 or later with venv)" >&2; exit 1; }

# The tools count as there only if the marker of exactly these versions is: a broken install is repeated.
tools=$PWD/target/deploy
marker=$tools/.installed-$(sha256sum <tests/deploy/requirements.txt | cut -c1-16)
if [ ! -e "$marker" ]; then
  rm -rf "$tools"
  python3 -m venv "$tools"
  "$tools/bin/pip" install --quiet --disable-pip-version-check --requirement tests/deploy/requirements.txt
  touch "$marker"
fi
"$tools/bin/python" -m pytest -q -rs -p no:cacheprovider tests/deploy "$@"
