//! `incidents.txt` is complete: every incident is there, and held by the test or the step that it names. So is
//! `rules.txt`: every rule is there in words of its own, and the test that it names hears them. All of them are run.

#[path = "../support/listed.rs"]
mod listed;

use std::{collections::BTreeSet, fs, path::Path};

use listed::not_run;

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
                (file, test) => assert_eq!(not_run(file, test), None, "{number}"),
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
/// In a violation, for one of several texts of the same function.
const ONE_OF: [&str; 3] = ["why", "late", "moves"];
/// These ask that a violation is said.
const HEARS: [&str; 2] = ["says(", "fed("];
/// These break rules, or pass on what others say.
const BREAK: [&str; 6] = ["feeds.rs", "index.rs", "restless.rs", "sabotage.rs", "scenarios.rs", "java.rs"];

/// The texts between quotes in a piece of code, those of one word left out.
fn texts(code: &str) -> Vec<String> {
    let (mut found, mut text, mut escaped) = (Vec::new(), None::<String>, false);
    for c in code.chars() {
        match (&mut text, c) {
            (None, '"') => text = Some(String::new()),
            (None, _) => {}
            (Some(_), '"') if !escaped => found.extend(text.take()),
            (Some(text), c) => {
                escaped = c == '\\' && !escaped;
                text.push(c);
            }
        }
    }
    found.retain(|text| text.trim().contains(' '));
    found
}

/// Code up to the bracket that closes what is open at its beginning.
fn arguments(code: &str) -> &str {
    let (mut open, mut quoted, mut escaped) = (1, false, false);
    for (at, c) in code.char_indices() {
        match c {
            '"' if !escaped => quoted = !quoted,
            '(' if !quoted => open += 1,
            ')' if !quoted => open -= 1,
            _ => {}
        }
        escaped = c == '\\' && !escaped;
        if open == 0 {
            return &code[..at];
        }
    }
    code
}

/// What a file says of broken rules: the texts as they stand there, with braces for what changes.
fn said_in(code: &str) -> Vec<String> {
    let mut said = Vec::new();
    for says in SAYS {
        for (at, _) in code.match_indices(says) {
            let (before, arguments) = (&code[..at], arguments(&code[at + says.len()..]));
            // It passes on what is another's.
            if arguments == "who, what" {
                continue;
            }
            let function = &before[before.rfind("fn ").unwrap_or(0)..];
            let given = |name: &str| {
                let from = function.rfind(&format!("let {name} = ")).map(|from| &function[from..])?;
                Some(texts(from.split(";\n").next().unwrap_or_default())).filter(|texts| !texts.is_empty())
            };
            let name = arguments.rsplit([' ', '(']).next().unwrap_or_default();
            let all = Some(texts(arguments)).filter(|all| !all.is_empty()).or_else(|| given(name));
            let all = all.unwrap_or_else(|| panic!("what is said by {arguments:?}?"));
            let one_of =
                ONE_OF.iter().filter(|name| all.iter().any(|text| text.contains(&format!("{{{name}}}"))));
            let several: Vec<String> = one_of.filter_map(|name| given(name)).flatten().collect();
            said.extend(if several.is_empty() { all } else { several });
        }
    }
    said
}

/// Whether `heard` has these words, where braces in them stand for one word, or a part of it.
fn has(heard: &str, words: &str) -> bool {
    fn rest_is(heard: &str, words: &str) -> bool {
        let Some(brace) = words.find('{') else { return heard.starts_with(words) };
        let Some(heard) = heard.strip_prefix(&words[..brace]) else { return false };
        let words = &words[words.find('}').map_or(words.len(), |end| end + 1)..];
        let word = heard.find(' ').unwrap_or(heard.len());
        (1..=word).any(|end| heard.is_char_boundary(end) && rest_is(&heard[end..], words))
    }
    heard.char_indices().any(|(at, _)| rest_is(&heard[at..], words))
}

/// What one test asks to be said.
fn heard_in(code: &str, test: &str) -> Vec<String> {
    let (_, body) = code.split_once(&format!("fn {test}(")).expect("it is run");
    let body = body.split("\n}\n").next().unwrap_or_default();
    let asks = |hears: &str| -> Vec<String> {
        let last = |(at, _)| texts(arguments(&body[at + hears.len()..])).pop();
        body.match_indices(hears).filter_map(last).collect()
    };
    HEARS.iter().flat_map(|hears| asks(hears)).collect()
}

#[test]
fn every_rule_has_words_of_its_own_that_the_test_in_the_index_hears() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sim");
    let mut said = Vec::new();
    for file in fs::read_dir(folder).expect("a folder") {
        let name = file.expect("a file").file_name().into_string().expect("a name");
        if name.ends_with(".rs") && !BREAK.contains(&name.as_str()) {
            let texts = said_in(&read(&format!("tests/sim/{name}")));
            said.extend(texts.into_iter().map(|text| (name.clone(), text)));
        }
    }
    let index = read("tests/sim/rules.txt");
    let rows = index.lines().filter(|line| line.contains(" | ") && !line.starts_with('#'));
    let rows: Vec<[&str; 3]> = rows
        .map(|row| row.split('|').map(str::trim).collect::<Vec<_>>().try_into().expect("three cells"))
        .collect();
    for (file, text) in &said {
        let count = rows.iter().filter(|[words, checked, _]| checked == file && text.contains(words)).count();
        assert_eq!(count, 1, "rows of rules.txt for {text:?} of {file}");
    }
    for [words, checked, broken] in &rows {
        let letters = words.chars().filter(|c| c.is_alphabetic()).count();
        assert!(words.contains(' ') && letters >= 8, "{words:?} could be said of much");
        let of: Vec<_> = said.iter().filter(|(_, text)| text.contains(words)).collect();
        assert!(matches!(of[..], [(file, _)] if file == checked), "{words:?} of {checked} is said by {of:?}");
        let (file, test) = broken.split_once(": ").expect("a file and a test");
        let file = format!("tests/sim/{file}");
        assert_eq!(not_run(&file, test), None, "{words:?}");
        let heard = heard_in(&read(&file), test);
        let only_this =
            |heard: &&String| rows.iter().all(|[other, ..]| has(heard, other) == (other == words));
        assert!(heard.iter().any(|heard| only_this(&heard)), "{words:?} is not what {test} hears: {heard:?}");
    }
}

/// The check must be able to fail.
#[test]
fn words_are_heard_where_they_are_said_and_nowhere_else() {
    assert!(has("w1 claimed shard-1 for b", "claimed {shard} for"));
    assert!(!has("w1 claimed shard-1 and more for b", "claimed {shard} for"), "one word, not several");
    assert!(has("read shard-1 11..=12, but", "read {shard} {first}..={last}, but"));
    assert!(!has("record 7 of key 0 came before", "record {number} came before"));
    assert!(!has("is at ", "is at {stored}"), "at least something");
    let code = r#"fn f() {
        let why = match 1 { 1 => "one is wrong", _ => "another is wrong" };
        self.violate(name, format!("{why} at rest: {rows:?}"));
        self.violate(&(seat.name), format!("is (very) \"wrong\", {}", one(two)));
        self.lock().violate(who, what);
    }"#;
    assert_eq!(said_in(code), ["one is wrong", "another is wrong", r#"is (very) \"wrong\", {}"#]);
    let test = "async fn t() {\n    says(&said(\"a b\"), \"c d\");\n    let other = \"e f\";\n}\nfn u() {\n    says(1, \"g h\");\n}\n";
    assert_eq!(heard_in(test, "t"), ["c d"]);
}
