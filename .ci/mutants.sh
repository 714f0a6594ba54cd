#!/usr/bin/env bash
# Mutation tests of the rules: changes src/core in every way that cargo-mutants knows, one at a time, and
# demands that a unit test of the rules notices. The rules alone are put into a small crate below
# target/mutants, so that a mutant costs seconds. Ends with 1 if one is missed that tests/mutants.md does
# not explain.
# With --worker first it changes what holds a lease and keeps its shard, in a crate that has tests/worker_memory
# inside, and demands that one of these or a unit test beside the loops notices.
#
#   .ci/mutants.sh                         all of src/core, an hour on two cores
#   .ci/mutants.sh --worker                that part of src/worker, as long
#   .ci/mutants.sh --in-diff origin/main   what changed since then
#   .ci/mutants.sh -f watermark.rs         other arguments go to cargo-mutants
#   .ci/mutants.sh --crate-only            only assembles the crate, and says where: a quick place to work on rules
set -euo pipefail
cd "$(dirname "$0")/.."
part=core files=(src/core)
if [ "${1:-}" = --worker ]; then
  part=worker files=(src/worker/{held_lease,consumer,renewer,shard,shard_link,shard_link/writes}.rs)
  shift
fi
root=$PWD scratch=$PWD/target/mutants/$part
# All files are as of now, so that no build of a mutant is taken for one of these.
rm -rf "$scratch/src"
mkdir -p "$scratch/src" "$scratch/.cargo"
if [ "$part" = core ]; then
  # With what spoils the input of its tests.
  cp -R src/core src/spoiled.rs "$scratch/src"
  printf '#![allow(dead_code, unreachable_pub, unused_imports)]\nmod core;\n#[cfg(test)] mod spoiled;\n' \
    >"$scratch/src/lib.rs"
else
  cp -R src/. "$scratch/src"
  cp -R tests/worker_memory "$scratch/src"
  cd "$scratch/src"
  # What no mutant of these files needs: tools, servers, sinks, and the tests of other parts.
  rm -rf bin cli local io/{cloudwatch,otel,prometheus}.rs worker_memory/cloudwatch.rs
  rm spoiled.rs {core,io}/written_by_others.rs
  sed -i -z 's/#\[cfg(test)\]\nmod \(spoiled\|written_by_others\);\n//g' lib.rs {core,io}/mod.rs
  find . -name '*.rs' ! -path './worker*' ! -name lib.rs ! -name mod.rs -exec sed -i '/^#\[cfg(test)\]$/,$d' {} +
  sed -i '/^\/\/\/ The README/,$d' lib.rs
  # One crate is built sooner than two. Signals reach all tests of a process.
  sed -i '/^mod cloudwatch;$/d; /^mod signals;$/d' worker_memory/main.rs
  sed -i 's/\bcrate::/crate::worker_memory::/g' worker_memory/*.rs
  mv worker_memory/{main,mod}.rs
  sed -i '1i #![allow(unexpected_cfgs, unused)]' lib.rs
  printf '#[cfg(test)] extern crate self as kinesis_consumer;\n#[cfg(test)] mod worker_memory;\n' >>lib.rs
  cd "$root"
fi
cp Cargo.lock "$scratch/Cargo.lock"
# The first test that fails is enough.
cat >"$scratch/fail-fast" <<'SH'
#!/usr/bin/env bash
exec 3< <(exec "$@" 2>&1)
tests=$!
while IFS= read -r line <&3; do
  echo "$line"
  [[ $line != *' ... FAILED' ]] || { kill -9 $tests; exit 101; }
done
wait $tests
SH
chmod +x "$scratch/fail-fast"
printf "[target.'cfg(all())']\nrunner = '%s'\n" "$scratch/fail-fast" >"$scratch/.cargo/config.toml"

# The dependencies that the sources there use, as the crate itself has them.
dependencies() {
  awk -v section="[$1]" '/^\[/ { on = ($0 == section) } on && /^[a-z0-9_-]+ *=/' Cargo.toml |
    while read -r line; do
      name=${line%%[ =]*} module=${name//-/_}
      [ "$name" = md-5 ] && module=md5
      # Of sinks, tools and servers, which are left out there.
      [ "$part" = worker ] && [[ $line == *'optional = true'* ]] && continue
      if [ "$name" != kinesis-consumer ] && grep -rqE "\b$module(::|\"|\b.*;)" "$scratch/src" --include='*.rs'; then
        echo "${line/, optional = true/}"
      fi
    done
}
cat >"$scratch/Cargo.toml" <<TOML
[package]
name = "rules"
version = "0.0.0"
edition = "2024"
publish = false
[workspace]
[lib]
doctest = false
# All rules, also those of optional parts.
[features]
default = [$([ "$part" = worker ] || grep -rhoE 'feature = "[a-z-]+"' src/core | sed -E 's/feature = //' | sort -u | paste -sd,)]
$(grep -rhoE 'feature = "[a-z-]+"' src/core | sed -E 's/feature = "(.*)"/\1 = []/' | sort -u)
[dependencies]
$(dependencies dependencies)
[dev-dependencies]
$(dependencies dev-dependencies)
[profile.dev]
debug = false
# The properties are most of the time of a run of the rules.
[profile.dev.package."*"]
opt-level = $([ "$part" = core ] && echo 2 || echo 0)
TOML
[ "${1:-}" = --crate-only ] && { echo "$scratch"; exit; }

command -v cargo-mutants >/dev/null || cargo install --quiet --locked cargo-mutants@27.1.0
arguments=()
while [ $# -gt 0 ]; do
  if [ "$1" = --in-diff ]; then
    git diff "$2" -- "${files[@]}" >"$scratch/../changed.diff"
    # cargo-mutants takes an empty difference for a mistake.
    [ -s "$scratch/../changed.diff" ] || { echo "${files[*]}: as in $2, nothing to test"; exit; }
    arguments+=(--in-diff "$scratch/../changed.diff")
    shift 2
  else
    arguments+=("$1")
    shift
  fi
done
if [ "$part" = worker ]; then
  [ ${#arguments[@]} -gt 0 ] || for file in "${files[@]}"; do arguments+=(-f "$file"); done
  # Not the two longest.
  arguments+=(-- --lib -- worker --skip a_thousand_leases --skip with_a_small_memory_budget)
fi
# In place: a copy would compile the dependencies again. Mutants that loop are stopped; ends with 2 if some
# are missed, which are looked up below.
cd "$scratch"
# Enough to notice, without a search for the smallest case.
export PROPTEST_CASES=${PROPTEST_CASES:-16} PROPTEST_MAX_SHRINK_ITERS=1
code=0
cargo mutants --in-place --no-shuffle --colors never --timeout 60 --output .. "${arguments[@]}" || code=$?
[ "$code" -eq 0 ] || [ "$code" -eq 2 ] || [ "$code" -eq 3 ] || exit "$code"
cd ../mutants.out
echo "caught $(wc -l <caught.txt), missed $(wc -l <missed.txt), timeouts $(wc -l <timeout.txt)," \
  "unviable $(wc -l <unviable.txt)"
# Known by what they change, not by their line: that moves. A row explains one mutant.
unexplained=0
while IFS= read -r mutant; do
  [ -n "$mutant" ] || continue
  what=$(sed -E 's/^([^:]*):[0-9]+:[0-9]+:/\1:/' <<<"$mutant")
  alike=$(sed -E 's/^([^:]*):[0-9]+:[0-9]+:/\1:/' missed.txt | grep -cxF "$what")
  if [ "$alike" -gt "$(grep -cF "\`$what\`" "$root/tests/mutants.md")" ]; then
    echo "missed, and not explained in tests/mutants.md: $mutant"
    unexplained=1
  fi
done <missed.txt
exit "$unexplained"
