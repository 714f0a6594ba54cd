//! `incidents.txt` is complete: every incident is there, and held by the test or the step that it names. So is
//! `rules.txt`: every rule is there, and broken by the test that it names.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use super::script::Script;

/// The incidents are numbered from 1.
const INCIDENTS: usize = 36;
/// So many seeds draw every step.
const SEEDS: u64 = 400;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

#[test]
fn every_incident_is_held_where_the_index_says() {
    let drawn: BTreeSet<String> =
        (0..SEEDS).flat_map(|seed| Script::draw(seed).steps).map(|(_, step)| step.kind()).collect();
    let index = read("tests/sim/incidents.txt");
    let rows = index.lines().filter(|line| line.starts_with('F'));
    let mut numbers = Vec::new();
    let mut named = BTreeSet::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [number, _, held] = cells[..] else { panic!("three cells: {row}") };
        numbers.push(number.to_owned());
        for place in held.split("; ") {
            match place.split_once(": ").expect("a place and a name") {
                // The reason may have a semicolon of its own.
                ("no", why) => {
                    assert!(!why.is_empty(), "{number}");
                    break;
                }
                ("seeds", step) => {
                    assert!(drawn.contains(&step.to_lowercase()), "{number}: no seed draws {step}");
                    named.insert(step.to_lowercase());
                }
                (file, test) => {
                    assert!(read(file).contains(&format!("fn {test}(")), "{number}: no {test} in {file}");
                }
            }
        }
    }
    assert_eq!(numbers, (1..=INCIDENTS).map(|n| format!("F{n}")).collect::<Vec<_>>());
    // Stale looks are a part of everything else.
    let all: BTreeSet<String> = drawn.into_iter().filter(|step| step != "stale").collect();
    assert_eq!(named, all, "every step belongs to an incident");
}

/// What the observer says of a broken rule, and why, begins after one of these.
const SAYS: [&str; 3] = [".violate(", "wrong.push(", "return Err(format!("];
/// These break rules, or pass on what others say.
const BREAK: [&str; 6] = ["feeds.rs", "index.rs", "restless.rs", "sabotage.rs", "scenarios.rs", "java.rs"];

#[test]
fn every_rule_is_broken_where_the_index_says() {
    let index = read("tests/sim/rules.txt");
    let mut named: BTreeMap<String, usize> = BTreeMap::new();
    for row in index.lines().filter(|line| line.contains(" | ")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [words, checked, broken] = cells[..] else { panic!("three cells: {row}") };
        if row.starts_with('#') {
            continue;
        }
        *named.entry(checked.into()).or_default() += 1;
        let (file, test) = broken.split_once(": ").expect("a file and a test");
        let (rules, tests) = (read(&format!("tests/sim/{checked}")), read(&format!("tests/sim/{file}")));
        assert!(tests.contains(&format!("fn {test}(")), "no {test} in {file}");
        for words in words.split("; ") {
            assert!(rules.contains(words), "{words:?} is not said in {checked}");
            assert!(tests.contains(words), "{words:?} is not heard in {file}");
        }
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sim");
    let mut said = BTreeMap::new();
    for file in fs::read_dir(folder).expect("a folder") {
        let name = file.expect("a file").file_name().into_string().expect("a name");
        if name.ends_with(".rs") && !BREAK.contains(&name.as_str()) {
            // One that passes on what another says is none of its own.
            let text = read(&format!("tests/sim/{name}")).replace(".violate(who, what)", "");
            let count: usize = SAYS.iter().map(|says| text.matches(says).count()).sum();
            said.extend((count > 0).then_some((name, count)));
        }
    }
    assert_eq!(named, said, "rules in the index, and rules in each file");
}
