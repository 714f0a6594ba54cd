//! The per-shard limits of Kinesis, and how what was used of them is counted.
//!
//! AWS documents: 5 reads and 2 MiB a second read, 1 MiB and 1,000 records a second written; a read of
//! 10 MiB is allowed and closes the shard to reads for the five seconds that it is worth.

/// What one shard allows a second. AWS: "Kinesis Data Streams quotas and limits".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Calls of GetRecords.
    pub reads: u32,
    /// Bytes returned by GetRecords.
    pub read_bytes: usize,
    /// Records put.
    pub writes: u32,
    /// Bytes put, partition keys included.
    pub write_bytes: usize,
}

impl Limits {
    /// No limits: for tests of everything else.
    pub const fn none() -> Self {
        Self { reads: u32::MAX, read_bytes: usize::MAX, writes: u32::MAX, write_bytes: usize::MAX }
    }

    /// Those of AWS: 5 reads, 2 MiB read, 1,000 records and 1 MiB written.
    pub const fn aws() -> Self {
        Self { reads: 5, read_bytes: 2 << 20, writes: 1000, write_bytes: 1 << 20 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::none()
    }
}

/// What was used since some moment. It lasts a second, or as long as its bytes are worth.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Window {
    start_millis: u64,
    calls: u32,
    bytes: usize,
}

impl Window {
    /// Counts a read if one is allowed now; its bytes are [added](Window::add_bytes) once they are known.
    pub(super) fn admit_read(&mut self, limits: &Limits, now_millis: u64) -> bool {
        self.roll(limits.read_bytes, now_millis);
        let allowed = self.calls < limits.reads && self.bytes < limits.read_bytes;
        self.calls += u32::from(allowed);
        allowed
    }

    /// Counts a record of `bytes` if one is allowed now. One record larger than the limit passes alone.
    pub(super) fn admit_write(&mut self, limits: &Limits, bytes: usize, now_millis: u64) -> bool {
        self.roll(limits.write_bytes, now_millis);
        let fits = self.bytes == 0 || self.bytes.saturating_add(bytes) <= limits.write_bytes;
        let allowed = self.calls < limits.writes && fits;
        if allowed {
            self.calls += 1;
            self.bytes += bytes;
        }
        allowed
    }

    pub(super) fn add_bytes(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    fn roll(&mut self, byte_limit: usize, now_millis: u64) {
        let worth_millis = (self.bytes as u128 * 1000 / byte_limit as u128) as u64;
        if now_millis >= self.start_millis + worth_millis.max(1000) {
            *self = Self { start_millis: now_millis, ..Self::default() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    #[test]
    fn a_shard_takes_five_reads_a_second() {
        let mut window = Window::default();
        let reads =
            |window: &mut Window, now| (0..8).filter(|_| window.admit_read(&Limits::aws(), now)).count();
        assert_eq!(reads(&mut window, NOW), 5);
        assert_eq!(reads(&mut window, NOW + 999), 0);
        assert_eq!(reads(&mut window, NOW + 1000), 5);
    }

    #[test]
    fn a_read_of_ten_mebibytes_closes_the_shard_for_five_seconds() {
        let mut window = Window::default();
        assert!(window.admit_read(&Limits::aws(), NOW));
        window.add_bytes(10 << 20);
        assert!(!window.admit_read(&Limits::aws(), NOW + 4999));
        assert!(window.admit_read(&Limits::aws(), NOW + 5000));
    }

    #[test]
    fn a_shard_takes_one_mebibyte_of_writes_a_second_but_any_one_record() {
        let mut window = Window::default();
        assert!(window.admit_write(&Limits::aws(), 10 << 20, NOW));
        assert!(!window.admit_write(&Limits::aws(), 1, NOW + 9999));
        let half = 512 << 10;
        let puts = (0..9).filter(|_| window.admit_write(&Limits::aws(), half, NOW + 10_000)).count();
        assert_eq!(puts, 2);
    }

    #[test]
    fn without_limits_everything_passes() {
        let mut window = Window::default();
        assert!((0..10_000).all(|_| window.admit_write(&Limits::none(), 10 << 20, NOW)));
    }
}
