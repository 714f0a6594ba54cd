//! `incidents.txt` is complete: every incident is there, and held by the test or the step that it names.

use std::{collections::BTreeSet, fs, path::Path};

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
