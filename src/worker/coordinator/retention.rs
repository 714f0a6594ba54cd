//! Watches the retention period: tells of records that leave the stream before they are processed.

use std::time::Duration;

use tracing::warn;

use super::Coordinator;
use crate::{core::lease::LeaseKey, worker::events::Event};

/// From then on it is told before it happens.
fn near(retention: Duration) -> Duration {
    retention / 5 * 4
}

impl Coordinator {
    /// Tells of shards that are so far behind that their records leave the stream, before and when they do.
    pub(super) async fn watch_retention(&mut self) {
        self.overdue.retain(|key, _| self.links.contains_key(key));
        let gaps = self.links.iter().filter(|(_, link)| link.take_gap()).map(|(key, _)| key.clone());
        let gaps: Vec<LeaseKey> = gaps.collect();
        gaps.into_iter().for_each(|key| self.outlived(key));
        let Some(mut retention) = self.retention else { return };
        let crosses = self.links.iter().any(|(key, link)| match self.overdue.get(key) {
            None => link.behind() >= near(retention),
            Some(gone) => !gone && link.behind() >= retention,
        });
        // Somebody may have prolonged it just because of this.
        if crosses && let Some(Ok(stream)) = self.stop.run_until_cancelled(self.parts.source.describe()).await
        {
            self.retention = stream.retention;
            retention = stream.retention.unwrap_or(retention);
        }
        let behind = self.links.iter().map(|(key, link)| (key.clone(), link.behind()));
        let behind: Vec<(LeaseKey, Duration)> = behind.collect();
        for (key, behind) in behind {
            match self.overdue.get(&key) {
                Some(_) if behind < retention / 2 => {
                    self.overdue.remove(&key);
                }
                None | Some(false) if behind >= retention => self.outlived(key),
                None if behind >= near(retention) => {
                    warn!(shard = %key, ?behind, ?retention, "records will leave the stream before they are processed");
                    let shard = key.shard();
                    self.overdue.insert(key, false);
                    self.parts.events.send(Event::RetentionNear { shard, behind, retention });
                }
                _ => {}
            }
        }
    }

    pub(super) fn outlived(&mut self, key: LeaseKey) {
        warn!(shard = %key, "records have left the stream before they were processed");
        let shard = key.shard();
        self.overdue.insert(key, true);
        self.report.outlived.push(shard.clone());
        self.parts.events.send(Event::RetentionPassed { shard });
    }
}
