//! The `healthcheck` subcommand: what an exec probe runs in an image without a shell.

use std::{env, ffi::OsString, path::PathBuf, process::ExitCode, time::Duration};

use super::{Status, Verdict, check, status_path};

/// The word that asks for it.
const SUBCOMMAND: &str = "healthcheck";
const USAGE: &str = "usage: healthcheck --file PATH [--max-age 30s] [--ready]";
/// The allowed age where neither the command line nor a status file says it.
const MAX_AGE: Duration = Duration::from_secs(30);

/// Gives a program the subcommand `healthcheck`: put it first in `main`. None unless the program was
/// called as `program healthcheck …`.
///
/// ```no_run
/// use std::process::ExitCode;
///
/// fn main() -> ExitCode {
///     if let Some(code) = kinesis_consumer::health::cli() {
///         return code;
///     }
///     // … run the worker …
///     ExitCode::SUCCESS
/// }
/// ```
///
/// `--file PATH` names the worker's `health_file`. `--max-age` is the allowed age, as in `30s`; by default
/// the worker's own `health_max_age`. With `--ready` it asks for readiness too. It exits with
///
/// | code | if the file is |
/// |---|---|
/// | 0 | fresh, and with `--ready` the worker is ready |
/// | 1 | stale, or with `--ready` the worker is not ready |
/// | 2 | missing, or cannot be looked at |
/// | 3 | not named: a mistake on the command line |
///
/// and writes one line to standard error that says why, which Kubernetes shows in the pod's events.
pub fn cli() -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    (arguments.next()? == SUBCOMMAND).then(|| probe(arguments))
}

/// Does what [`cli`] does with the arguments after the subcommand: for programs that parse their own.
pub fn probe(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let (code, why) = answer(arguments);
    eprintln!("{why}");
    ExitCode::from(code)
}

struct Question {
    file: PathBuf,
    max_age: Option<Duration>,
    ready: bool,
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Question, String> {
    let mut arguments = arguments.into_iter();
    let (mut file, mut max_age, mut ready) = (None, None, false);
    while let Some(argument) = arguments.next() {
        let (name, attached) = match argument.to_str().and_then(|text| text.split_once('=')) {
            Some((name, value)) => (name.to_owned(), Some(value.into())),
            None => (argument.to_string_lossy().into_owned(), None),
        };
        let mut value =
            || attached.clone().or_else(|| arguments.next()).ok_or_else(|| format!("{name} needs a value"));
        match name.as_str() {
            "--file" => file = Some(PathBuf::from(value()?)),
            "--max-age" => {
                let text = value()?;
                let parsed = text.to_str().and_then(|text| humantime::parse_duration(text).ok());
                max_age = Some(
                    parsed
                        .ok_or_else(|| format!("--max-age {} is no duration, as 30s is", text.display()))?,
                );
            }
            "--ready" if attached.is_none() => ready = true,
            _ => return Err(format!("{name} is not known")),
        }
    }
    Ok(Question { file: file.ok_or("--file is missing")?, max_age, ready })
}

/// The exit code, and why.
fn answer(arguments: impl IntoIterator<Item = OsString>) -> (u8, String) {
    let question = match parse(arguments) {
        Ok(question) => question,
        Err(why) => return (3, format!("{why}; {USAGE}")),
    };
    let file = question.file.display();
    // Without it the verdict stands all the same, only without a reason.
    let status = Status::read(&question.file).ok().flatten();
    let max_age = question.max_age.or_else(|| Some(status.as_ref()?.max_age)).unwrap_or(MAX_AGE);
    let verdict = match check(&question.file, max_age) {
        Ok(verdict) => verdict,
        Err(error) => return (2, format!("missing: {file} cannot be looked at: {error}")),
    };
    let health = status.as_ref().map(|status| &status.health);
    let reason = health.map_or_else(
        || "no status file says why".to_owned(),
        |health| match &health.shard {
            Some(shard) => format!("{} {shard}", health.reason),
            None => health.reason.to_string(),
        },
    );
    match verdict {
        Verdict::Missing => (2, format!("missing: {file}: {reason}")),
        Verdict::Stale { age } => {
            let age = humantime::format_duration(Duration::from_secs(age.as_secs()));
            // A part that is stuck is told every second: a process that does not is stopped, or its threads
            // are blocked.
            let silent = matches!(check(status_path(&question.file), max_age / 2), Ok(Verdict::Stale { .. }));
            let reason = if silent { format!("process_silent, before that {reason}") } else { reason };
            (1, format!("stale: no progress for {age}: {reason}"))
        }
        Verdict::Fresh { .. } if question.ready && !health.is_some_and(|health| health.ready) => {
            (1, format!("not ready: {reason}"))
        }
        Verdict::Fresh { .. } => (0, format!("fresh: {reason}")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        clock,
        health::{Health, Reason, State},
    };

    struct Probed(PathBuf);

    impl Probed {
        fn new(name: &str) -> Self {
            Self(env::temp_dir().join(format!("kinesis-consumer-cli-{}-{name}", std::process::id())))
        }

        fn aged(self, age: u64) -> Self {
            let file = fs::File::create(&self.0).expect("writable");
            file.set_modified(clock::date() - Duration::from_secs(age)).expect("settable");
            self
        }

        fn told(self, reason: Reason, shard: Option<&str>, age: u64, ready: bool) -> Self {
            let health = Health {
                state: if age > 30 { State::Stale } else { State::Fresh },
                reason,
                shard: shard.map(Into::into),
                age: Duration::from_secs(age),
                ready,
                leases: 1,
            };
            let status = Status { health, worker: "a".into(), pid: 1, max_age: Duration::from_secs(50) };
            fs::write(status_path(&self.0), status.to_json()).expect("writable");
            self
        }

        fn answer(&self, more: &[&str]) -> (u8, String) {
            let file = ["--file".into(), self.0.clone().into_os_string()];
            answer(file.into_iter().chain(more.iter().map(OsString::from)))
        }
    }

    impl Drop for Probed {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
            let _ = fs::remove_file(status_path(&self.0));
        }
    }

    #[test]
    fn a_fresh_file_is_0_a_stale_one_1_a_missing_one_2() {
        let file = Probed::new("codes");
        assert_eq!(file.answer(&[]).0, 2);
        let file = file.aged(40);
        assert_eq!(file.answer(&["--max-age", "50s"]).0, 0);
        assert_eq!(file.answer(&["--max-age=1m"]).0, 0);
        let (code, why) = file.answer(&["--max-age", "30s"]);
        assert_eq!(code, 1);
        assert!(why.starts_with("stale: no progress for 40s: "), "{why}");
    }

    #[test]
    fn the_reason_comes_from_the_status_file_and_so_does_the_allowed_age() {
        let file = Probed::new("reason").aged(40).told(Reason::ProcessorStuck, Some("shardId-3"), 40, true);
        assert_eq!(file.answer(&[]), (0, "fresh: processor_stuck shardId-3".into()));
        let (code, why) = file.answer(&["--max-age", "30s"]);
        assert_eq!((code, why.as_str()), (1, "stale: no progress for 40s: processor_stuck shardId-3"));
    }

    #[test]
    fn a_process_that_says_nothing_is_told_from_a_stuck_part() {
        let file = Probed::new("silent").aged(60).told(Reason::Working, None, 0, true);
        let status = fs::File::options().write(true).open(status_path(&file.0)).expect("there");
        status.set_modified(clock::date() - Duration::from_secs(60)).expect("settable");
        let told = "stale: no progress for 1m: process_silent, before that working";
        assert_eq!(file.answer(&[]), (1, told.into()));
    }

    #[test]
    fn readiness_is_asked_for_apart() {
        let file = Probed::new("ready").aged(0).told(Reason::LeaseTableUnavailable, None, 0, false);
        assert_eq!(file.answer(&[]).0, 0);
        assert_eq!(file.answer(&["--ready"]), (1, "not ready: lease_table_unavailable".into()));
        assert_eq!(file.told(Reason::Working, None, 0, true).answer(&["--ready"]).0, 0);
    }

    #[test]
    fn a_broken_status_file_costs_the_reason_only() {
        let file = Probed::new("broken").aged(40);
        fs::write(status_path(&file.0), r#"{"state":"#).expect("writable");
        let (code, why) = file.answer(&["--max-age", "30s"]);
        assert_eq!((code, why.as_str()), (1, "stale: no progress for 40s: no status file says why"));
    }

    #[test]
    fn mistakes_on_the_command_line_are_3_with_the_usage() {
        let of = |arguments: &[&str]| answer(arguments.iter().map(OsString::from));
        for (arguments, why) in [
            (&[] as &[&str], "--file is missing"),
            (&["--file"], "--file needs a value"),
            (&["--file", "x", "--max-age", "soon"], "--max-age soon is no duration"),
            (&["--file", "x", "--max-age"], "--max-age needs a value"),
            (&["--fil", "x"], "--fil is not known"),
            (&["--ready=1"], "--ready is not known"),
        ] {
            let (code, told) = of(arguments);
            assert_eq!(code, 3, "{arguments:?}");
            assert!(told.contains(why) && told.ends_with(USAGE), "{told}");
        }
    }
}
