//! How the work on shards ends: what it left behind, and the end of all of it.

use std::time::Duration;

use tokio::{select, task::JoinError};
use tracing::{error, info, warn};

use super::Coordinator;
use crate::{
    clock,
    core::{backoff::Backoff, health::Phase, lease::LeaseKey},
    error::LeaseLost,
    worker::{
        consumer::{Exit, ExitHow},
        events::Event,
    },
};

impl Coordinator {
    /// Takes note of the end of a shard's task. True if the worker is to stop.
    pub(super) fn on_exit(&mut self, key: LeaseKey, exit: Result<Exit, JoinError>) -> bool {
        let link = self.links.remove(&key);
        if link.as_ref().is_some_and(|link| link.take_gap()) {
            self.outlived(key.clone());
        }
        self.parts.vitals.let_go(&key);
        if let Some(link) = &link {
            link.meter.end();
        }
        let exit = match exit {
            Ok(exit) => exit,
            Err(error) => {
                // A defect of ours: the lease expires, and somebody goes on from the checkpoint.
                error!(shard = %key, %error, "a shard's task failed");
                return false;
            }
        };
        self.report.records += exit.records;
        let shard = exit.shard.clone();
        let checkpoint = exit.checkpoint.map(|position| position.to_string());
        info!(%shard, how = exit.how.word(), checkpoint, "lease ended");
        // A release that failed leaves the lease in our name until it expires.
        let mut given_up = Vec::new();
        let event = match exit.how {
            ExitHow::Finished => {
                self.avoided.remove(&key);
                self.report.finished.push(shard.clone());
                Event::ShardEnded { shard }
            }
            ExitHow::Released => {
                // The puller let go of it. Taken again at once, it would come and go without end.
                if link.is_some_and(|link| !link.is_draining()) {
                    self.avoid(key);
                }
                given_up.push(shard.clone());
                Event::LeaseReleased { shard }
            }
            ExitHow::Kept => {
                self.report.kept.push(shard.clone());
                Event::LeaseKept { shard }
            }
            ExitHow::Lost(why) => {
                self.report.lost.push(shard.clone());
                self.parts.meter.lost(why);
                if why == LeaseLost::Stalled {
                    self.avoid(key);
                }
                Event::LeaseLost { shard, why }
            }
            how @ (ExitHow::GaveUp | ExitHow::Panicked) => {
                given_up.push(shard.clone());
                self.avoid(key);
                Event::ShardGivenUp { shard, panicked: matches!(how, ExitHow::Panicked) }
            }
            ExitHow::StopWorker(error) => {
                given_up.push(shard.clone());
                self.stopped_by.get_or_insert(error);
                Event::ShardGivenUp { shard, panicked: false }
            }
        };
        let ends = if exit.free { &mut self.report.released } else { &mut self.report.kept };
        ends.append(&mut given_up);
        self.parts.events.send(event);
        self.stopped_by.is_some()
    }

    /// Leaves a shard to other workers for a while, and longer each time.
    fn avoid(&mut self, key: LeaseKey) {
        let config = &self.parts.config;
        let fresh = || {
            (
                clock::now(),
                Backoff::new(config.retry_delay_min.max(Duration::from_secs(1)), Duration::from_secs(60)),
            )
        };
        let (until, backoff) = self.avoided.entry(key).or_insert_with(fresh);
        *until = clock::now() + backoff.next(&mut self.parts.rng);
    }

    /// Lets every shard finish what is in hand and release its lease; bounded by `shutdown_timeout`.
    pub(super) async fn drain(&mut self) {
        let until = clock::now() + self.parts.config.shutdown_timeout;
        self.parts.vitals.phase(Phase::Stopping);
        self.parts.vitals.turn_until(until);
        // What could not be released before has expired since, or does not depend on this stop.
        self.report.kept.clear();
        for link in self.links.values() {
            link.ask_to_drain(until);
        }
        // Nobody would be there to take the leases that were asked for.
        self.withdraw_all();
        // The tasks keep to the deadline themselves; releasing after it takes a few calls at most.
        let last = until + self.parts.config.call_timeout() * 2;
        while !self.consumers.is_empty() || !self.given_back.is_empty() {
            select! {
                biased;
                () = clock::sleep_until(last) => break,
                Some((key, exit)) = self.consumers.join_next() => {
                    let cut_off = exit.as_ref().ok().filter(|exit| exit.cut_off);
                    self.report.cut_off.extend(cut_off.map(|exit| exit.shard.clone()));
                    self.on_exit(key, exit);
                }
                Some(_) = self.given_back.join_next() => {}
            }
        }
        if !self.consumers.is_empty() {
            warn!(shards = self.consumers.len(), "not all shards stopped in time; their leases expire");
            self.report.kept.extend(self.links.keys().map(LeaseKey::shard));
            self.report.cut_off.extend(self.links.keys().map(LeaseKey::shard));
            self.consumers.shutdown().await;
        }
        if !self.given_back.is_empty() {
            warn!(
                leases = self.given_back.len(),
                "not all claims and requests were given back in time; they expire"
            );
            self.given_back.shutdown().await;
        }
        self.pulse.end(self.parts.config.call_timeout() * 2).await;
    }
}

impl ExitHow {
    fn word(&self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Released => "released",
            Self::Kept => "kept",
            Self::Lost(_) => "lost",
            Self::GaveUp => "given up",
            Self::Panicked => "panicked",
            Self::StopWorker(_) => "stop worker",
        }
    }
}
