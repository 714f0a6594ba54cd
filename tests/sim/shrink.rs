//! Makes a failing script shorter, as long as it breaks the same rule.

use super::{fleet::Setup, processor::Temper, run::run, script::Script};

/// The rule that a violation is of: what it says, without the time, names and numbers.
fn rule(violation: &str) -> String {
    let said = violation.split_once(" s: ").map_or(violation, |(_, said)| said);
    let (said, _) = said.split_once(": ").unwrap_or((said, ""));
    let words = said.split_whitespace().skip(1).filter(|word| !word.contains(|c: char| c.is_ascii_digit()));
    words.collect::<Vec<_>>().join(" ")
}

/// Leaves out steps as long as the run still breaks the same rule first.
pub(crate) fn shrink(script: &Script) -> Script {
    let broken = |script: &Script| run(script, false).violations.first().map(|violation| rule(violation));
    let rule = broken(script);
    let fails = |script: &Script| rule.is_some() && broken(script) == rule;
    let mut best = script.clone();
    let mut tries = 0;
    let mut at = best.steps.len();
    while at > 0 && tries < 100 {
        at -= 1;
        tries += 1;
        let mut without = best.clone();
        without.steps.remove(at);
        if fails(&without) {
            best = without;
        }
    }
    let plain = Script { setup: Setup { temper: Temper::default(), ..best.setup.clone() }, ..best.clone() };
    if fails(&plain) { plain } else { best }
}

#[cfg(test)]
mod tests {
    use super::rule;

    #[test]
    fn violations_are_told_apart_by_their_rules_and_not_by_names_and_numbers() {
        let claims = |who: &str, shard: &str| {
            format!("12.345 s: {who} was allowed to claim {shard}, which is {who}'s")
        };
        assert_eq!(rule(&claims("w1", "shardId-000000000002")), rule(&claims("w20", "shardId-000000000011")));
        let given = |why: &str| rule(&format!("1.005 s: w3 is given shardId-000000000002 3..=7, but {why}"));
        assert_eq!(
            given("its parent shardId-000000000001 has not ended"),
            "is given but its parent has not ended"
        );
        assert_ne!(
            given("its parent shardId-000000000001 has not ended"),
            given("12 is what comes next for this holder")
        );
        let at_rest =
            |why: &str| rule(&format!("71.005 s: fleet {why} at rest: [\"shardId-000000000002: None\"]"));
        assert_eq!(at_rest("leases still move"), "leases still move at rest");
        assert_ne!(at_rest("leases still move"), at_rest("the leases are not spread evenly"));
    }
}
