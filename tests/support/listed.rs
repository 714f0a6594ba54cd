//! Whether a test that one of the indexes names is run.

use std::{fs, path::Path};

/// Nothing if `test` stands in `file` and is run: it is marked as a test and not ignored, or a list of its suite
/// names it. Else what is wrong.
pub(crate) fn not_run(file: &str, test: &str) -> Option<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let Ok(text) = fs::read_to_string(&path) else { return Some(format!("no file {file}")) };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let names = |line: &&str| {
        line.trim_start_matches("pub(crate) ")
            .trim_start_matches("async ")
            .starts_with(&format!("fn {test}("))
    };
    let Some(at) = lines.iter().position(names) else {
        return Some(format!("no test {test} in {file}"));
    };
    let above = lines[..at].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
    let marks: Vec<&&str> = above.filter(|line| line.starts_with("#[")).collect();
    if marks.iter().any(|mark| mark.contains("ignore")) {
        return Some(format!("{test} in {file} is ignored"));
    }
    let is_marked = marks.iter().any(|mark| **mark == "#[test]" || mark.starts_with("#[tokio::test"));
    // A line of a list has names and nothing else.
    let is_of_a_list = |line: &str| line.chars().all(|c| c.is_ascii_alphanumeric() || "_, ".contains(c));
    let is_named = |line: &&str| is_of_a_list(line) && line.split([',', ' ']).any(|word| word == test);
    (!is_marked && !lines.iter().any(is_named))
        .then(|| format!("{test} in {file} is neither marked as a test nor in a list of them"))
}
