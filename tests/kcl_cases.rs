//! The index of the Java KCL's own test cases, `src/core/testdata/kcl_cases.txt`, is complete: every case is
//! in the table, or held by the test, that it names, and no table has a case that is not in the index. Every test
//! that is named is run.

#[path = "support/listed.rs"]
mod listed;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use listed::not_run;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

fn table(name: &str) -> String {
    read(&format!("src/core/testdata/{name}"))
}

/// The rows of a table, as cells; headings and comments left out.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let rows = text.lines().filter(|line| line.starts_with(' ') && !line.trim().starts_with('#'));
    rows.map(|row| row.split('|').map(str::trim).collect())
}

/// The cases that the first cells of a table name.
fn cases_in(text: &str) -> BTreeSet<String> {
    let is_case = |word: &&str| word.starts_with(|first: char| first.is_ascii_digit()) && word.contains('.');
    rows(text)
        .flat_map(|row| row[0].split(' ').filter(is_case).map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

#[test]
fn every_case_of_the_kcl_is_held_where_the_index_says() {
    let index = table("kcl_cases.txt");
    let mut tables: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for row in rows(&index) {
        let [case, _, held] = row[..] else { panic!("three cells: {row:?}") };
        match held.split_once(": ") {
            Some((file, test)) => assert_eq!(not_run(file, test), None, "{case}"),
            None => drop(tables.entry(held).or_default().insert(case.to_owned())),
        }
    }
    assert_eq!(tables.len(), 6);
    for (name, cases) in tables {
        assert_eq!(cases_in(&table(name)), cases, "{name}");
    }
}

#[test]
fn every_case_that_is_another_here_says_how_and_what_holds_that() {
    let differs = table("differs.txt");
    for row in rows(&differs) {
        let [case, given, theirs, ours, held] = row[..] else { panic!("five cells: {row:?}") };
        assert!(![case, given, theirs, ours].contains(&""), "{row:?}");
        let (file, test) = held.split_once(": ").expect("a file and a test");
        assert_eq!(not_run(file, test), None, "{case}");
    }
}

/// The check must be able to fail.
#[test]
fn a_function_that_nobody_runs_is_no_test() {
    let why = |file, test| not_run(file, test).unwrap_or_default();
    assert!(why("tests/kcl_cases.rs", "rows").contains("neither marked"));
    assert!(why("tests/kcl_cases.rs", "gone").contains("no test gone"));
    assert!(why("tests/gone.rs", "rows").contains("no file"));
    assert_eq!(why("tests/lease_store.rs", "a_row_is_put_only_where_there_is_none"), "", "by a list");
    assert!(why("tests/lease_store.rs", "hold").contains("neither marked"));
}

#[test]
fn no_number_is_left_out_of_the_index() {
    let index = table("kcl_cases.txt");
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for row in rows(&index) {
        let (section, number) = row[0].rsplit_once('.').expect("section.number");
        let count = counts.entry(section.to_owned()).or_default();
        *count += 1;
        assert_eq!(number, count.to_string(), "section {section}");
    }
    let headings = index.lines().filter(|line| line.starts_with(|first: char| first.is_ascii_digit()));
    let sections: BTreeSet<String> =
        headings.map(|line| line.split_once(' ').expect("a title").0.to_owned()).collect();
    assert_eq!(counts.into_keys().collect::<BTreeSet<_>>(), sections);
}
