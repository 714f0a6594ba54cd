//! The tables in `testdata/`: sections under a heading, their rows indented, cells between bars.

/// One section: a heading of a kind and a name, and its rows.
#[derive(Debug)]
pub(crate) struct Section<'a> {
    pub(crate) kind: &'a str,
    pub(crate) name: &'a str,
    pub(crate) rows: Vec<Row<'a>>,
}

/// One row, and the line of the file that it is on.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    pub(crate) line: usize,
    pub(crate) cells: Vec<&'a str>,
}

/// The sections of a table in their order. A `#` begins a comment, an empty line means nothing.
pub(crate) fn sections(text: &str) -> Vec<Section<'_>> {
    let mut sections = Vec::new();
    let lines = text.lines().enumerate().map(|(n, line)| (n + 1, line));
    for (n, line) in lines.filter(|(_, line)| !line.trim().is_empty() && !line.trim().starts_with('#')) {
        if !line.starts_with(' ') {
            let (kind, name) = line.split_once(' ').unwrap_or((line, ""));
            sections.push(Section { kind, name, rows: Vec::new() });
            continue;
        }
        let section = sections.last_mut().expect("a heading before the first row");
        section.rows.push(Row { line: n, cells: line.split('|').map(str::trim).collect() });
    }
    sections
}

/// The rows of all sections of one kind, in their order.
pub(crate) fn rows<'a>(text: &'a str, kind: &str) -> Vec<Row<'a>> {
    let sections = sections(text).into_iter().filter(|section| section.kind == kind);
    let rows: Vec<_> = sections.flat_map(|section| section.rows).collect();
    assert!(!rows.is_empty(), "no rows of {kind}");
    rows
}
