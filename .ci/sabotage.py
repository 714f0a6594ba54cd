"""See sabotage.sh."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path.cwd()
TREE = ROOT / "target/sabotage/tree"
BUILD = ROOT / "target/sabotage/build"


def sabotages():
    """Name, test and edits of each entry; an edit is a file, the text to find and the text to put."""
    text = (ROOT / "tests/sabotage/list.txt").read_text()
    found = {}
    for entry in re.split(r"^== ", text, flags=re.M)[1:]:
        name = entry.split("\n", 1)[0].strip()
        test = re.search(r"^test: (.*)$", entry, flags=re.M).group(1)
        edits = re.findall(r"^@ (\S+)\n<\n(.*?)^=\n(.*?)^>$", entry, flags=re.M | re.S)
        assert edits and name not in found, name
        assert len(edits) == len(re.findall(r"^@ ", entry, flags=re.M)), f"{name}: a malformed edit"
        found[name] = (test, edits)
    return found


def misplaced(name, edits, tree):
    for file, old, _ in edits:
        times = (tree / file).read_text().count(old)
        if times != 1:
            yield f"{name}: its text stands {times} times in {file}, not once"


def copy_tree():
    """The files that git knows, new ones included; as of now, so that no sabotaged build is taken for theirs."""
    shutil.rmtree(TREE, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], check=True, capture_output=True
    ).stdout.decode()
    for file in filter(None, listed.split("\0")):
        if (ROOT / file).is_file():
            (TREE / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, TREE / file)


def borrow_dependencies():
    """Begins with what the crate's own builds compiled, but in a folder apart: both have the same names for it."""
    if not BUILD.exists() and (ROOT / "target/debug").exists():
        left_out = shutil.ignore_patterns("incremental", "examples", ".cargo-lock", "*kinesis_consumer*", "*kinesis-consumer*")
        shutil.copytree(ROOT / "target/debug", BUILD / "debug", ignore=left_out)


def cargo_test(test, *flags):
    # A hundred seeds show any of these mistakes.
    environment = os.environ | {"CARGO_TARGET_DIR": str(BUILD), "SIM_SEEDS": "100"}
    command = ["cargo", "test", "--quiet", *flags, *shlex.split(test)]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.run(command, cwd=TREE, env=environment, timeout=900, **output)


def verdict(test):
    """`passes`, `fails`, or what else happened."""
    built = cargo_test(test, "--no-run")
    if built.returncode:
        return "does not compile:\n" + built.stdout[-3000:]
    try:
        ran = cargo_test(test)
    except subprocess.TimeoutExpired:
        return "fails (never ends)"
    passed = sum(int(n) for n in re.findall(r"(\d+) passed", ran.stdout))
    failed = sum(int(n) for n in re.findall(r"(\d+) failed", ran.stdout))
    if ran.returncode == 0:
        return "passes" if passed else "runs no test"
    return "fails" if failed else "ends in an unknown way:\n" + ran.stdout[-3000:]


def main(wanted):
    entries = sabotages()
    if wanted == ["--check"]:
        problems = [problem for name, (_, edits) in entries.items() for problem in misplaced(name, edits, ROOT)]
        print("\n".join(problems) or f"{len(entries)} sabotages find their place")
        return bool(problems)
    unknown = [name for name in wanted if name not in entries]
    if unknown:
        print(f"no such sabotage: {', '.join(unknown)}")
        return True
    copy_tree()
    borrow_dependencies()
    chosen = {name: entries[name] for name in wanted or entries}
    wrong = []
    for test in dict.fromkeys(test for test, _ in chosen.values()):
        answer = verdict(test)
        print(f"{'untouched':42} {answer.splitlines()[0]:8} {test}", flush=True)
        if answer != "passes":
            wrong.append(f"untouched, {test}: {answer}")
    for name, (test, edits) in chosen.items():
        problems = list(misplaced(name, edits, TREE))
        began = time.monotonic()
        if problems:
            answer = "; ".join(problems)
        else:
            originals = {file: (TREE / file).read_text() for file, _, _ in edits}
            for file, old, new in edits:
                (TREE / file).write_text((TREE / file).read_text().replace(old, new))
            answer = verdict(test)
            for file, original in originals.items():
                (TREE / file).write_text(original)
        print(f"{name:42} {answer.splitlines()[0]:8} {test} ({time.monotonic() - began:.0f} s)", flush=True)
        if not answer.startswith("fails"):
            wrong.append(f"{name}: {answer}")
    print("\n".join(wrong) or f"{len(chosen)} sabotages, each noticed")
    return bool(wrong)


sys.exit(main(sys.argv[1:]))
