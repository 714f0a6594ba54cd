//! Who claimed a lease: not only which worker, but which process of it and which of its claims.
//!
//! Two processes may run under one worker's id, and a row that was deleted and made anew may come to a counter
//! that its former holder remembers. Neither the owner nor the counter tells such holdings apart; this does.

use std::fmt;

use crate::core::lease::WorkerId;

/// One holding of one lease, as the row names it from the claim on. Ours alone; the Java KCL ignores it.
///
/// Written `worker#process.claim`, the process as 16 hexadecimal digits. A row of ours without the part after
/// the `#` names the worker alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claimant {
    worker: WorkerId,
    holding: Option<Holding>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Holding {
    process: u64,
    claim: u64,
}

impl Claimant {
    /// The claim number `claim` of the process `process`, a number drawn at random, of `worker`.
    pub fn new(worker: &WorkerId, process: u64, claim: u64) -> Self {
        Self { worker: worker.clone(), holding: Some(Holding { process, claim }) }
    }

    /// The worker's id.
    pub fn worker(&self) -> &WorkerId {
        &self.worker
    }

    /// The number of the worker's process; none if the row does not say.
    pub fn process(&self) -> Option<u64> {
        self.holding.map(|holding| holding.process)
    }
}

impl fmt::Display for Claimant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.holding {
            Some(Holding { process, claim }) => write!(f, "{}#{process:016x}.{claim}", self.worker),
            None => self.worker.fmt(f),
        }
    }
}

impl From<&WorkerId> for Claimant {
    fn from(worker: &WorkerId) -> Self {
        Self { worker: worker.clone(), holding: None }
    }
}

/// Reads what [`Display`](fmt::Display) writes; any other text is a worker's id.
impl From<&str> for Claimant {
    fn from(text: &str) -> Self {
        let holding = |text: &str| {
            let (process, claim) = text.split_once('.')?;
            let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            let process = Some(process).filter(|process| process.len() == 16 && digits(process))?;
            let process = u64::from_str_radix(process, 16).ok()?;
            // Only as it is written: a `+` or leading zeros make it another text.
            let claim = claim.parse().ok().filter(|number: &u64| number.to_string() == claim)?;
            Some(Holding { process, claim })
        };
        match text.rsplit_once('#').and_then(|(worker, rest)| Some((worker, holding(rest)?))) {
            Some((worker, holding)) => Self { worker: worker.into(), holding: Some(holding) },
            None => Self { worker: text.into(), holding: None },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_claimant_names_worker_process_and_claim() {
        let claimant = Claimant::new(&"pod-7".into(), 0xbeef, 12);
        assert_eq!(claimant.to_string(), "pod-7#000000000000beef.12");
        assert_eq!((claimant.worker().as_str(), claimant.process()), ("pod-7", Some(0xbeef)));
    }

    #[test]
    fn any_other_text_is_a_workers_id() {
        for id in
            ["a", "", "a#b", "a#1.2", "a#000000000000beef", "a#000000000000beef.+1", "a#00000000000+beef.1"]
        {
            let claimant = Claimant::from(id);
            assert_eq!((claimant.worker().as_str(), claimant.process()), (id, None));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(worker in "[a-z#.0-9]{0,40}", process: u64, claim: u64) {
            let claimant = Claimant::new(&worker.as_str().into(), process, claim);
            prop_assert_eq!(Claimant::from(claimant.to_string().as_str()), claimant);
        }

        #[test]
        fn reading_changes_no_text(text in "[a-f0-9#.]{0,40}") {
            prop_assert_eq!(Claimant::from(text.as_str()).to_string(), text);
        }
    }
}
