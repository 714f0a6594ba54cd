//! The arguments: commands, options, and what the help says of them.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::core::{
    reset::Target,
    shard::{Position, ShardId},
};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  AWS could not be reached, or refused
  2  wrong arguments
  3  refused, to protect records: a lease is held, or the table is another stream's
  4  no such table, stream, worker or shard
  5  only a part was done; the rest is named on standard error
  6  lag: a shard is further behind than --max, or nobody knows how far";

/// Looks into the lease table of a Kinesis application, and changes it without losing a record.
#[derive(Debug, Parser)]
#[command(name = "leasectl", version, after_help = EXIT_CODES, max_term_width = 110)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(super) struct Global {
    /// The lease table: the application's name, unless it was configured otherwise.
    #[arg(long, short, global = true, alias = "application")]
    pub(super) table: Option<String>,
    /// The stream, by name or ARN. Default: the one that the rows name.
    #[arg(long, short, global = true)]
    pub(super) stream: Option<String>,
    /// How to print.
    #[arg(long, short, global = true, value_enum, default_value_t)]
    pub(super) output: Format,
    /// The workers' failover time: a lease is expired if its counter, and the heartbeat it lives by,
    /// stand still for so long.
    #[arg(long, global = true, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(super) failover_time: Duration,
    /// Another endpoint of AWS, for every service. AWS_ENDPOINT_URL_DYNAMODB and AWS_ENDPOINT_URL_KINESIS
    /// tell them apart.
    #[arg(long, global = true, value_name = "URL")]
    pub(super) endpoint_url: Option<String>,
    /// The AWS region.
    #[arg(long, global = true)]
    pub(super) region: Option<String>,
    /// The profile of the AWS configuration.
    #[arg(long, global = true)]
    pub(super) profile: Option<String>,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Columns, for people.
    #[default]
    Table,
    /// One JSON document; a line a record with `tail`.
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Lists the leases of the table and who holds them; without --table, the lease tables of the account.
    List,
    /// Says of one lease, or of all, how it stands and what follows from it.
    Describe(Describe),
    /// Says how far each shard is behind its checkpoint; needs no worker to be alive.
    Lag(Lag),
    /// Shows shards, workers, lag and moves as they change. q ends it.
    Watch(Watch),
    /// Moves checkpoints: back to read again, or forward to skip.
    ///
    /// Every write is conditional, raises the lease's counter and removes its owner: a worker that holds the
    /// lease stops, and none of its checkpoints goes over the reset. Without --shard all shards of the stream
    /// are reset, closed ones with records too, parents first.
    Reset(Reset),
    /// Gives leases free: asks the holder to hand over, so that nothing comes twice.
    Release(Release),
    /// Gives all leases of a worker free, before it is stopped.
    ///
    /// A worker that lives takes its fair share again at its next look, so stop it now. There is no lasting
    /// pause: nothing in the table tells a worker, the Java KCL's least of all, to leave a lease alone.
    Drain(Drain),
    /// Writes every row as a line of DynamoDB JSON, attributes of others included.
    Export(Export),
    /// Puts exported rows back where there are none; with --overwrite over those that are there.
    Import(Import),
    /// Predicts calls and dollars a month, beside the Java KCL.
    Cost(Cost),
    /// Prints the records of a stream or shard; payloads only with --payload.
    Tail(Tail),
    /// Prints a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

#[derive(Debug, Args)]
pub(super) struct Describe {
    /// The shards. Default: all.
    #[arg(value_name = "SHARD", value_parser = shard)]
    pub(super) shards: Vec<ShardId>,
    /// Looks again for --failover-time, to tell dead holders from living ones.
    #[arg(long)]
    pub(super) observe: bool,
}

#[derive(Debug, Args)]
pub(super) struct Lag {
    /// The shards. Default: all.
    #[arg(value_name = "SHARD", value_parser = shard)]
    pub(super) shards: Vec<ShardId>,
    /// Ends with 6 if a shard is further behind, has records that will never be read, or may have records of
    /// which nobody knows since when they wait.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(super) max: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct Watch {
    /// The time between two looks at the table.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    pub(super) interval: Duration,
    /// The time between two measurements of the lag; each takes one of a shard's five reads a second.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(super) lag_interval: Duration,
}

#[derive(Debug, Args)]
pub(super) struct Reset {
    #[command(flatten)]
    pub(super) to: To,
    /// Only this shard; may be given several times.
    #[arg(long = "shard", value_name = "SHARD", value_parser = shard)]
    pub(super) shards: Vec<ShardId>,
    /// Prints what would be written, and writes nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Resets held leases too; their holders are fenced.
    #[arg(long)]
    pub(super) force: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct To {
    /// To the oldest record.
    #[arg(long)]
    pub(super) to_trim_horizon: bool,
    /// To what arrives from now on.
    #[arg(long)]
    pub(super) to_latest: bool,
    /// To the first record of that time: 2026-11-22T08:30:00Z, or 10m for ten minutes ago. Java workers
    /// read such a row by their own configuration.
    #[arg(long, value_name = "TIME", value_parser = When::parse)]
    pub(super) to_timestamp: Option<When>,
    /// After the record with this number, or N/SUB within an aggregated one; needs --shard.
    #[arg(long, value_name = "N", value_parser = position)]
    pub(super) to_sequence: Option<Position>,
}

impl To {
    pub(super) fn target(&self, now: SystemTime) -> Target {
        match (&self.to_sequence, self.to_timestamp) {
            (Some(position), _) => Target::After(position.clone()),
            (None, Some(when)) => Target::Timestamp { millis: millis(when.before(now)) },
            (None, None) if self.to_latest => Target::Latest,
            (None, None) => Target::TrimHorizon,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Release {
    /// The shards.
    #[arg(value_name = "SHARD", required = true, value_parser = shard)]
    pub(super) shards: Vec<ShardId>,
    #[command(flatten)]
    pub(super) how: How,
}

#[derive(Debug, Args)]
pub(super) struct Drain {
    /// The worker's id.
    #[arg(value_name = "WORKER")]
    pub(super) worker: String,
    #[command(flatten)]
    pub(super) how: How,
}

/// How leases are taken from their holder.
#[derive(Debug, Args)]
pub(super) struct How {
    /// Takes what is not handed over in time, or cannot be: the holder is fenced, and what it did since its
    /// last checkpoint comes again.
    #[arg(long)]
    pub(super) force: bool,
    /// How long the holder may take to finish what is in hand.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    pub(super) timeout: Duration,
}

#[derive(Debug, Args)]
pub(super) struct Export {
    /// The file to write. Default: standard output.
    #[arg(long, short)]
    pub(super) file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Import {
    /// The file to read. Default: standard input.
    #[arg(long, short)]
    pub(super) file: Option<PathBuf>,
    /// Replaces rows that are there: counter raised, owner removed.
    #[arg(long)]
    pub(super) overwrite: bool,
    /// Replaces rows that are held too; their holders are fenced.
    #[arg(long, requires = "overwrite")]
    pub(super) force: bool,
    /// Says what would be written, and writes nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct Cost {
    /// Shards that are read. Default: the unfinished leases of --table, else 16.
    #[arg(long)]
    pub(super) shards: Option<u32>,
    /// Workers. Default: the holders in --table, else 1.
    #[arg(long)]
    pub(super) workers: Option<u32>,
    /// Batches with records that a shard has each second; 0 at rest.
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    pub(super) batches: f64,
    /// The workers' checkpoint_interval.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    pub(super) checkpoint_interval: Duration,
    /// The workers' scan_budget, in read units a second for 25 leases of a worker, or fewer.
    #[arg(long, value_name = "N", default_value_t = 5.0)]
    pub(super) scan_budget: f64,
    /// The size of a lease row.
    #[arg(long, value_name = "BYTES", default_value_t = 500)]
    pub(super) row_bytes: u32,
    /// Dollars for a million DynamoDB write units. Default: on demand, us-east-1.
    #[arg(long, value_name = "DOLLARS")]
    pub(super) write_price: Option<f64>,
    /// Dollars for a million DynamoDB read units. Default: on demand, us-east-1.
    #[arg(long, value_name = "DOLLARS")]
    pub(super) read_price: Option<f64>,
}

#[derive(Debug, Args)]
pub(super) struct Tail {
    /// The shards. Default: all.
    #[arg(value_name = "SHARD", value_parser = shard)]
    pub(super) shards: Vec<ShardId>,
    /// Where to begin: trim-horizon, latest, checkpoint, a time (2026-11-22T08:30:00Z, or 10m ago), or a
    /// sequence number.
    #[arg(long, value_name = "WHERE", default_value = "latest", value_parser = From::parse)]
    pub(super) from: From,
    /// Ends after so many records. Default: at the tip of every shard, unless --follow.
    #[arg(long, short = 'n', value_name = "N")]
    pub(super) limit: Option<u64>,
    /// Waits for more at the tip, and goes on in the shards that a split or merge makes. Implied by --from
    /// latest.
    #[arg(long, short)]
    pub(super) follow: bool,
    /// Prints payloads, as text or in base64.
    #[arg(long, value_enum, value_name = "AS", num_args = 0..=1, default_missing_value = "text")]
    pub(super) payload: Option<Payload>,
}

/// How payloads are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Payload {
    /// As UTF-8; what is not shows as U+FFFD.
    Text,
    /// As base64.
    Base64,
}

/// Where `tail` begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum From {
    TrimHorizon,
    Latest,
    Checkpoint,
    Time(When),
    Sequence(Position),
}

impl From {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(match text {
            "trim-horizon" => Self::TrimHorizon,
            "latest" => Self::Latest,
            "checkpoint" => Self::Checkpoint,
            _ => match position(text) {
                Ok(position) => Self::Sequence(position),
                Err(_) => Self::Time(When::parse(text)?),
            },
        })
    }
}

/// A time, or how long ago it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    At(SystemTime),
    Ago(Duration),
}

impl When {
    fn parse(text: &str) -> Result<Self, String> {
        if let Ok(at) = humantime::parse_rfc3339_weak(text) {
            return Ok(Self::At(at));
        }
        let ago = humantime::parse_duration(text).map(Self::Ago);
        ago.map_err(|_| "neither a time as in 2026-11-22T08:30:00Z nor a duration as in 10m".into())
    }

    pub(super) fn before(self, now: SystemTime) -> SystemTime {
        match self {
            Self::At(at) => at,
            Self::Ago(ago) => now.checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH),
        }
    }
}

/// Since the epoch.
pub(super) fn millis(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[expect(clippy::unnecessary_wraps, reason = "the shape of a parser")]
fn shard(text: &str) -> Result<ShardId, String> {
    // As in the KCL's logs and the AWS CLI, or the number alone.
    let id = match text.parse::<u64>() {
        Ok(number) => format!("shardId-{number:012}"),
        Err(_) => text.to_owned(),
    };
    Ok(id.into())
}

fn position(text: &str) -> Result<Position, String> {
    let (sequence, sub) = text.split_once('/').unwrap_or((text, "0"));
    let sequence = sequence.parse().map_err(|error: crate::InvalidSequenceNumber| error.to_string())?;
    let sub = sub.parse().map_err(|_| format!("{sub:?} is no place in an aggregated record"))?;
    Ok(Position { sequence, sub })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parsed(line: &str) -> Result<Command, clap::Error> {
        Arguments::try_parse_from(line.split(' ')).map(|arguments| arguments.command)
    }

    #[test]
    fn the_arguments_are_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_reset_names_exactly_one_place() {
        let Command::Reset(reset) = parsed("leasectl reset --to-sequence 77/3 --shard 4").expect("right")
        else {
            panic!("another command");
        };
        assert_eq!(reset.shards, [ShardId::from("shardId-000000000004")]);
        let position = Position { sequence: "77".parse().expect("digits"), sub: 3 };
        assert_eq!(reset.to.target(SystemTime::UNIX_EPOCH), Target::After(position));
        for wrong in ["leasectl reset", "leasectl reset --to-latest --to-trim-horizon"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(7200);
        let Command::Reset(ago) = parsed("leasectl reset --to-timestamp 1h").expect("right") else {
            panic!("another command");
        };
        assert_eq!(ago.to.target(now), Target::Timestamp { millis: 3_600_000 });
    }

    #[test]
    fn tail_begins_where_it_is_told() {
        assert_eq!(From::parse("trim-horizon"), Ok(From::TrimHorizon));
        assert_eq!(From::parse("10m"), Ok(From::Time(When::Ago(Duration::from_secs(600)))));
        assert!(matches!(From::parse("2026-11-22T08:30:00Z"), Ok(From::Time(When::At(_)))));
        assert!(matches!(From::parse("495/2"), Ok(From::Sequence(Position { sub: 2, .. }))));
        assert!(From::parse("yesterday").is_err());
    }
}
