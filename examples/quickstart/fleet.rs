//! The worker processes: starts, kills and stops them, and carries what they say.
//!
//! None outlives this process: dropped, they are killed; their standard input closes in any case.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, PipeReader, PipeWriter},
    process::{ExitStatus, Stdio},
};

use tokio::{
    process::{Child, Command},
    sync::mpsc,
};

use crate::{BoxError, cloud::Cloud};

/// The hidden subcommand that makes this program a worker.
pub(crate) const WORKER: &str = "worker";
/// Lines that wait for the parent before workers have to.
const LINES_WAITING: usize = 1024;

/// A line from a worker.
pub(crate) enum Line {
    /// What it did.
    Report(String),
    /// What it logs.
    Log(String),
}

pub(crate) struct Fleet {
    children: BTreeMap<String, Child>,
    reports: PipeWriter,
    logs: PipeWriter,
}

impl Fleet {
    pub(crate) fn new() -> io::Result<(Self, mpsc::Receiver<Line>)> {
        let (sender, lines) = mpsc::channel(LINES_WAITING);
        let (reader, reports) = io::pipe()?;
        carry(reader, sender.clone(), Line::Report);
        let (reader, logs) = io::pipe()?;
        carry(reader, sender, Line::Log);
        Ok((Self { children: BTreeMap::new(), reports, logs }, lines))
    }

    /// Starts a worker process; returns its process id.
    pub(crate) fn start(&mut self, name: &str, cloud: &Cloud) -> Result<u32, BoxError> {
        let child = Command::new(std::env::current_exe()?)
            .args([WORKER, name, cloud.application(), cloud.stream()])
            .env_remove("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")
            .envs(cloud.env())
            // Never written to: its end is the sign that we are gone.
            .stdin(Stdio::piped())
            .stdout(self.reports.try_clone()?)
            .stderr(self.logs.try_clone()?)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().ok_or("a worker ended at once")?;
        self.children.insert(name.to_owned(), child);
        Ok(pid)
    }

    /// SIGKILL: no time for last words.
    pub(crate) fn kill(&mut self, name: &str) -> Result<(), BoxError> {
        Ok(self.child(name)?.start_kill()?)
    }

    /// SIGTERM: what a deployment does.
    pub(crate) async fn terminate(&mut self, name: &str) -> Result<(), BoxError> {
        // An ended process has no id, and gets no signal that might hit another.
        let Some(pid) = self.child(name)?.id() else { return Ok(()) };
        let kill = Command::new("kill").args(["-TERM", &pid.to_string()]).status().await?;
        if kill.success() { Ok(()) } else { Err(format!("SIGTERM did not reach {name}: {kill}").into()) }
    }

    /// The workers that have ended since the last call.
    pub(crate) fn ended(&mut self) -> io::Result<Vec<(String, ExitStatus)>> {
        let mut ended = Vec::new();
        for (name, child) in &mut self.children {
            ended.extend(child.try_wait()?.map(|status| (name.clone(), status)));
        }
        for (name, _) in &ended {
            self.children.remove(name);
        }
        Ok(ended)
    }

    /// Kills those that still run and waits until they are gone. The lines end when all are read.
    pub(crate) async fn end(self) {
        for mut child in self.children.into_values() {
            // Fails only if it has ended already.
            let _ = child.kill().await;
        }
    }

    fn child(&mut self, name: &str) -> Result<&mut Child, BoxError> {
        self.children.get_mut(name).ok_or_else(|| format!("worker {name} is not running").into())
    }
}

/// Carries lines until the last writer is gone. A thread, since a pipe of the standard library blocks.
fn carry(reader: PipeReader, sender: mpsc::Sender<Line>, kind: fn(String) -> Line) {
    std::thread::spawn(move || {
        for line in BufReader::new(reader).lines().map_while(Result::ok) {
            if sender.blocking_send(kind(line)).is_err() {
                return;
            }
        }
    });
}
