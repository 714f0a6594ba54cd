#!/usr/bin/env bash
# Proof that the tests can fail: breaks the code in every way of tests/sabotage/list.txt, one at a time and in a
# copy below target/sabotage, and demands that the test named there fails, and that it passes untouched.
#
#   .ci/sabotage.sh                  all, about a quarter of an hour on two cores
#   .ci/sabotage.sh NAME...          these
#   .ci/sabotage.sh --check          only that every entry still finds its place in the code: a moment
set -euo pipefail
cd "$(dirname "$0")/.."
exec python3 .ci/sabotage.py "$@"
