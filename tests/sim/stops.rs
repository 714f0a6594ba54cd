//! A stop ends in time, whenever it is asked for and whatever fails meanwhile. So does a worker that gives a lease up
//! for no other reason than that it ends by itself.

use std::time::Duration;

use super::{processor::Seat, rules::State};

/// What may come on top of `shutdown_timeout`, in time-outs of calls: one or two of what was under way when the
/// stop came, two for what is released at the deadline, two for the last heartbeat.
const CALLS: u32 = 6;
/// The last values may take so long when everything else has ended.
const LAST_FLUSH: Duration = Duration::from_secs(2);

impl State {
    fn longest_stop(&self) -> Duration {
        let last = if self.rules.measured { LAST_FLUSH } else { Duration::ZERO };
        self.rules.shutdown_timeout + CALLS * self.rules.call_timeout() + last
    }

    /// A worker that was asked to stop, and did not stand still since, has not ended yet.
    pub(super) fn stops_in_time(&mut self, seat: &Seat) {
        let most = self.longest_stop();
        let Some(since) = self.instances[seat.no].stops_since.filter(|_| !seat.freezer.is_frozen()) else {
            return;
        };
        if since.elapsed() > most {
            self.violate(&seat.name, format!("still runs {:?} after it was asked to stop", since.elapsed()));
        }
    }

    /// A worker that gave a lease up unasked has ended by now; whether it was to end is asked when it has.
    pub(super) fn ends_after_leaving(&mut self, seat: &Seat) {
        let most = self.longest_stop();
        let instance = &self.instances[seat.no];
        let Some((shard, at)) = instance.leaves.clone().filter(|_| !seat.freezer.is_frozen()) else { return };
        if instance.thawed.map_or(at, |thawed| thawed.max(at)).elapsed() > most {
            self.violate(&seat.name, format!("gives {shard} up for no reason, {:?} ago", at.elapsed()));
        }
    }
}
