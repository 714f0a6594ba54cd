//! Prints results: columns for people, JSON for programs.

use std::{
    io::{ErrorKind, Write, stdout},
    time::{Duration, SystemTime},
};

use serde_json::Value;

use super::{
    args::Format,
    exit::{Exit, Trouble},
};

/// Prints text. A reader that went away is no trouble: it has what it wanted.
pub(super) fn text(text: &str) -> Result<(), Trouble> {
    offer(text).map(drop)
}

/// Prints text; false if its reader went away and wants no more.
pub(super) fn offer(text: &str) -> Result<bool, Trouble> {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Trouble::failed("print", &error)),
    }
}

/// Prints either form.
pub(super) fn either(
    format: Format,
    table: impl FnOnce() -> String,
    json: impl FnOnce() -> Value,
) -> Result<(), Trouble> {
    match format {
        Format::Table => text(&table()),
        Format::Json => {
            let json = serde_json::to_string_pretty(&json())
                .map_err(|error| Trouble::new(Exit::Failed, error.to_string()))?;
            text(&(json + "\n"))
        }
    }
}

/// Columns as wide as their widest cell, two spaces between; the last is not padded.
pub(super) fn columns(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(&mut header.iter().copied());
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

/// A date to the second.
pub(super) fn date(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}

/// A date in milliseconds since the epoch.
pub(super) fn millis_date(millis: u64) -> String {
    humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + Duration::from_millis(millis)).to_string()
}

/// A duration as people say it: tenths below a minute, then the two largest units.
pub(super) fn time(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3600 => format!("{} m {:02} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {:02} m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {:02} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let rows =
            [vec!["a".into(), "long cell".into(), "x".into()], vec!["bbb".into(), String::new(), "y".into()]];
        assert_eq!(
            columns(&["ID", "WHAT", "END"], &rows),
            "ID   WHAT       END\na    long cell  x\nbbb             y\n"
        );
    }

    #[test]
    fn durations_are_short() {
        let said: Vec<String> =
            [0, 1_250, 61_000, 3_725_000, 90_061_000].map(|ms| time(Duration::from_millis(ms))).into();
        assert_eq!(said, ["0.0 s", "1.2 s", "1 m 01 s", "1 h 02 m", "1 d 01 h"]);
    }
}
