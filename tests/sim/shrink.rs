//! Makes a failing script shorter, as long as it breaks the same rule, and says by which command what is left of it
//! runs again.

use std::fmt;

use super::{fleet::Setup, processor::Temper, run::run, script::Script};

/// No script is run more often to find what may be left out.
const TRIES: usize = 200;
/// No run is made shorter, in milliseconds.
const SHORTEST: u64 = 1000;

/// The rule that a violation is of: what it says, without the time, names and numbers.
fn rule(violation: &str) -> String {
    let said = violation.split_once(" s: ").map_or(violation, |(_, said)| said);
    let (said, _) = said.split_once(": ").unwrap_or((said, ""));
    let words = said.split_whitespace().skip(1).filter(|word| !word.contains(|c: char| c.is_ascii_digit()));
    words.collect::<Vec<_>>().join(" ")
}

/// What is left out of a seed's script. It is written as the variables that make the same script of that seed again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cuts {
    /// The steps that stay, by their places among the seed's; without it, all.
    keep: Option<Vec<usize>>,
    workers: Option<usize>,
    shards: Option<usize>,
    /// How many records producers put at one time.
    records: Option<usize>,
    /// In milliseconds. Steps that come later are left out.
    length: Option<u64>,
    /// The user's code is never slow and never wrong, but where a step says so.
    plain: bool,
}

impl Cuts {
    /// Those that variables name.
    ///
    /// # Panics
    /// If one has a value that it cannot have: another script would run than was asked for.
    pub(crate) fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("{text:?} is no number"));
        let count = |name| variable(name).map(|text| number(&text));
        let places = |text: String| text.split(',').filter(|place| !place.is_empty()).map(number).collect();
        Self {
            keep: variable("SIM_KEEP").map(places),
            workers: count("SIM_WORKERS"),
            shards: count("SIM_SHARDS"),
            records: count("SIM_RECORDS"),
            length: count("SIM_LENGTH").map(|millis| millis as u64),
            plain: variable("SIM_PLAIN").is_some(),
        }
    }

    /// What is left of `whole`.
    pub(crate) fn of(&self, whole: &Script) -> Script {
        let Script { setup, workers, rate: (records, every), length, steps } = whole.clone();
        let length = self.length.unwrap_or(length);
        let stays = |at: usize| self.keep.as_ref().is_none_or(|keep| keep.contains(&at));
        let steps = steps.into_iter().enumerate().filter(|(at, (time, _))| stays(*at) && *time < length);
        let temper = if self.plain { Temper::default() } else { setup.temper };
        Script {
            setup: Setup { shards: self.shards.unwrap_or(setup.shards), temper, ..setup },
            workers: self.workers.unwrap_or(workers),
            rate: (self.records.unwrap_or(records), every),
            length,
            steps: steps.map(|(_, step)| step).collect(),
        }
    }

    /// The command that runs what is left of a seed.
    pub(crate) fn command(&self, seed: u64) -> String {
        // It decides over what the seed says.
        let beats =
            std::env::var("SIM_HEARTBEAT").map_or(String::new(), |mode| format!("SIM_HEARTBEAT={mode} "));
        format!("{beats}SIM_SEED={seed} {self}cargo test --test simulation random")
    }
}

impl fmt::Display for Cuts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(keep) = &self.keep {
            let places: Vec<String> = keep.iter().map(ToString::to_string).collect();
            write!(f, "SIM_KEEP={} ", places.join(","))?;
        }
        let counts = [("WORKERS", self.workers), ("SHARDS", self.shards), ("RECORDS", self.records)];
        for (name, count) in counts.iter().filter_map(|(name, count)| Some((name, (*count)?))) {
            write!(f, "SIM_{name}={count} ")?;
        }
        if let Some(millis) = self.length {
            write!(f, "SIM_LENGTH={millis} ")?;
        }
        if self.plain { f.write_str("SIM_PLAIN=1 ") } else { Ok(()) }
    }
}

/// What may be left out of a script that fails: the rest still breaks the same rule first.
pub(crate) fn shrink(script: &Script) -> Cuts {
    let broken = |script: &Script| run(script, false).violations.first().map(|violation| rule(violation));
    let rule = broken(script);
    cut(script, |script| rule.is_some() && broken(script) == rule)
}

/// Says a count anew.
type SetCount = fn(Cuts, usize) -> Cuts;

/// Leaves out one thing after the other, as long as the rest fails.
fn cut(whole: &Script, fails: impl Fn(&Script) -> bool) -> Cuts {
    let (mut best, mut tries) = (Cuts::default(), 0);
    let mut fails_with = |best: &mut Cuts, change: &dyn Fn(Cuts) -> Cuts| {
        let cuts = change(best.clone());
        tries += 1;
        let fails = tries <= TRIES && fails(&cuts.of(whole));
        if fails {
            *best = cuts;
        }
        fails
    };
    let mut keep: Vec<usize> = (0..whole.steps.len()).collect();
    for at in (0..keep.len()).rev() {
        let fewer: Vec<usize> = keep.iter().copied().filter(|kept| *kept != at).collect();
        if fails_with(&mut best, &|cuts| Cuts { keep: Some(fewer.clone()), ..cuts }) {
            keep = fewer;
        }
    }
    let mut length = whole.length;
    while length / 2 >= SHORTEST && fails_with(&mut best, &|cuts| Cuts { length: Some(length / 2), ..cuts }) {
        length /= 2;
    }
    let counts: [(usize, SetCount); 3] = [
        (whole.workers, |cuts, workers| Cuts { workers: Some(workers), ..cuts }),
        (whole.setup.shards, |cuts, shards| Cuts { shards: Some(shards), ..cuts }),
        (whole.rate.0, |cuts, records| Cuts { records: Some(records), ..cuts }),
    ];
    for (mut count, set) in counts {
        // Half of them, and where that is too few, one less.
        while count > 1 {
            let fewer = [count / 2, count - 1];
            let fewer = fewer.into_iter().find(|fewer| fails_with(&mut best, &|cuts| set(cuts, *fewer)));
            let Some(fewer) = fewer else { break };
            count = fewer;
        }
    }
    fails_with(&mut best, &|cuts| Cuts { plain: true, ..cuts });
    best
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

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

    /// What a command's variables make of its seed.
    fn run_by(command: &str) -> Script {
        let (variables, _) = command.split_once(" cargo ").expect("variables first");
        let variables: BTreeMap<&str, &str> =
            variables.split(' ').map(|one| one.split_once('=').expect("a variable")).collect();
        let seed = variables["SIM_SEED"].parse().expect("a number");
        Cuts::read(|name| variables.get(name).map(ToString::to_string)).of(&Script::draw(seed))
    }

    fn shown(script: &Script) -> String {
        format!("{script:?}")
    }

    #[test]
    fn the_command_that_is_printed_runs_the_script_that_is_left() {
        let mut shorter = 0;
        for seed in 0..200 {
            let whole = Script::draw(seed);
            let Some((_, wanted)) = whole.steps.get(whole.steps.len() / 2) else { continue };
            let wanted = format!("{wanted:?}");
            // As if it were this step, in a fleet of some size, that breaks a rule.
            let fails = |script: &Script| {
                let has_it = script.steps.iter().any(|(_, step)| format!("{step:?}") == wanted);
                has_it && script.workers >= whole.workers.min(3) && script.rate.0 >= whole.rate.0.min(2)
            };
            let cuts = cut(&whole, fails);
            let left = cuts.of(&whole);
            assert_eq!(shown(&run_by(&cuts.command(seed))), shown(&left), "{}", cuts.command(seed));
            assert!(fails(&left), "seed {seed}");
            let sizes = (left.steps.len(), left.workers, left.rate.0, left.setup.shards);
            assert_eq!(sizes, (1, whole.workers.min(3), whole.rate.0.min(2), 1), "seed {seed}");
            let (time, _) = left.steps[0];
            assert!(time >= left.length / 2 || left.length < 2 * SHORTEST, "seed {seed}");
            shorter += usize::from(left.length < whole.length);
        }
        assert!(shorter > 10, "{shorter} runs are shorter");
    }

    #[test]
    fn a_script_that_keeps_every_rule_is_left_whole() {
        let whole = Script::draw(1);
        let cuts = cut(&whole, |_| false);
        assert_eq!(cuts, Cuts::default());
        assert_eq!(shown(&run_by(&cuts.command(1))), shown(&whole));
    }

    #[test]
    fn a_script_without_steps_is_asked_for_with_an_empty_list() {
        let cuts = Cuts { keep: Some(Vec::new()), plain: true, ..Cuts::default() };
        let left = run_by(&cuts.command(3));
        assert!(left.steps.is_empty() && left.setup.temper == Temper::default());
    }

    #[test]
    #[should_panic(expected = "is no number")]
    fn a_cut_that_cannot_be_read_is_not_passed_over() {
        Cuts::read(|name| (name == "SIM_WORKERS").then(|| "few".to_owned()));
    }
}
