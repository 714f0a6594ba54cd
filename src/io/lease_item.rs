//! Leases as DynamoDB items: what each attribute is called, its type, and the expressions of a write.
//!
//! Only translates; it makes no call. Names, types and what is required follow the Java KCL 3.5.1
//! (`DynamoDBLeaseSerializer`): both libraries read what either wrote. Attributes that we do not know stay
//! in the table, because a write touches only its own.

use std::{
    collections::{BTreeSet, HashMap},
    str::FromStr,
    sync::Arc,
};

use aws_sdk_dynamodb::{primitives::Blob, types::AttributeValue};
use bytes::Bytes;

use crate::core::{
    heartbeat::Incarnation,
    lease::{
        Checkpoint, Claimant, HandOff, Lease, LeaseKey, LeaseWrite, Mark, OwnerChange, PendingCheckpoint,
        WorkerId,
    },
    shard::{HashKeyRange, ShardId},
};

/// A row as the DynamoDB client carries it.
pub(crate) type Item = HashMap<String, AttributeValue>;

/// The partition key of the table, a string.
pub(crate) const KEY: &str = "leaseKey";
const COUNTER: &str = "leaseCounter";
const OWNER: &str = "leaseOwner";
const CHECKPOINT_OWNER: &str = "checkpointOwner";
const OWNER_SWITCHES: &str = "ownerSwitchesSinceCheckpoint";
const CHECKPOINT: &str = "checkpoint";
const SUB: &str = "checkpointSubSequenceNumber";
const PENDING: &str = "pendingCheckpoint";
const PENDING_SUB: &str = "pendingCheckpointSubSequenceNumber";
const PENDING_STATE: &str = "pendingCheckpointState";
const PARENTS: &str = "parentShardId";
const CHILDREN: &str = "childShardIds";
const HASH_START: &str = "startingHashKey";
const HASH_END: &str = "endingHashKey";
const THROUGHPUT: &str = "throughputKBps";
/// Since KCL 3.5 the lease table may hold rows of other kinds. Never added by an update.
pub(super) const ENTITY_TYPE: &str = "entityType";
const LEASE: &str = "LEASE";
const START_MILLIS: &str = "startTimestampMillis";
const RESET_MILLIS: &str = "resetTimestampMillis";
const STREAM: &str = "streamIdentity";
const HANDS_OVER: &str = "handsOverWorker";
const LEFT_AT: &str = "leftAtCounter";
const HEARTBEAT: &str = "heartbeatKey";

/// A row that is a lease, but not one that can be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("lease row {key:?}: {attribute} {problem}")]
pub(crate) struct BadItem {
    /// The row's key; empty if that is what is wrong.
    pub(crate) key: String,
    /// The attribute that is to blame.
    pub(crate) attribute: &'static str,
    /// What is wrong with it. Never contains application state.
    pub(crate) problem: String,
}

/// The whole row, as it is put for a new lease.
pub(crate) fn encode(lease: &Lease) -> Item {
    let mut item = Item::new();
    let mut put = |name: &str, value: Option<AttributeValue>| {
        item.extend(value.map(|value| (name.to_owned(), value)));
    };
    put(ENTITY_TYPE, Some(text(LEASE)));
    put(KEY, Some(text(lease.key.as_str())));
    put(COUNTER, Some(number(lease.counter)));
    put(OWNER, lease.owner.as_ref().map(|owner| text(owner.as_str())));
    put(CHECKPOINT_OWNER, lease.checkpoint_owner.as_ref().map(|owner| text(owner.as_str())));
    put(OWNER_SWITCHES, Some(number(lease.owner_switches)));
    put(CHECKPOINT, Some(text(lease.checkpoint.text())));
    put(SUB, Some(number(lease.checkpoint.sub())));
    if let Some(pending) = &lease.pending {
        put(PENDING, Some(text(pending.at.text())));
        put(PENDING_SUB, Some(number(pending.at.sub())));
        put(PENDING_STATE, pending.state.as_ref().map(blob));
    }
    put(PARENTS, shards(&lease.parents));
    put(CHILDREN, shards(&lease.children));
    put(HASH_START, lease.hash_range.map(|range| text(&range.start.to_string())));
    put(HASH_END, lease.hash_range.map(|range| text(&range.end.to_string())));
    // DynamoDB knows no infinity.
    put(THROUGHPUT, lease.throughput_kbps.filter(|kbps| kbps.is_finite()).map(number));
    put(START_MILLIS, lease.start_millis.map(number));
    put(RESET_MILLIS, lease.reset_millis.map(number));
    put(STREAM, lease.stream.as_deref().map(text));
    put(HANDS_OVER, lease.hands_over.as_ref().map(|claimant| text(&claimant.to_string())));
    put(LEFT_AT, lease.left_at.map(number));
    put(HEARTBEAT, lease.heartbeat.as_ref().map(|row| text(row.as_str())));
    item
}

/// Reads a row; nothing if it is of another kind than a lease.
///
/// As in the KCL the two counters are required; so is the checkpoint, because a guess would lose or repeat
/// records. Anything else may be absent, `NULL` included.
///
/// # Errors
/// If a required attribute is missing, or any attribute of a lease cannot be understood.
pub(crate) fn decode(item: &Item) -> Result<Option<Lease>, BadItem> {
    if item.get(ENTITY_TYPE).is_some_and(|kind| *kind != text(LEASE)) {
        return Ok(None);
    }
    let row = Row { item, key: item.get(KEY).and_then(|key| key.as_s().ok()).map_or("", String::as_str) };
    let checkpoint = |name, sub| {
        let Some(stored) = row.text(name)? else { return Ok(None) };
        let sub = row.count(sub)?.unwrap_or(0);
        Checkpoint::parse(stored, sub).map(Some).map_err(|why| row.bad(name, format!("is {why}")))
    };
    let pending = match checkpoint(PENDING, PENDING_SUB)? {
        Some(at) => Some(PendingCheckpoint { at, state: row.bytes(PENDING_STATE)? }),
        None => None,
    };
    Ok(Some(Lease {
        key: row.required(KEY, row.text(KEY)?.filter(|key| !key.is_empty()))?.into(),
        counter: row.required(COUNTER, row.count(COUNTER)?)?,
        owner: row.worker(OWNER)?,
        checkpoint_owner: row.worker(CHECKPOINT_OWNER)?,
        owner_switches: row.required(OWNER_SWITCHES, row.count(OWNER_SWITCHES)?)?,
        checkpoint: row.required(CHECKPOINT, checkpoint(CHECKPOINT, SUB)?)?,
        pending,
        parents: row.shards(PARENTS)?,
        children: row.shards(CHILDREN)?,
        hash_range: row.hash_range()?,
        throughput_kbps: row.number::<f64>(THROUGHPUT)?.filter(|kbps| kbps.is_finite()),
        start_millis: row.count(START_MILLIS)?,
        reset_millis: row.count(RESET_MILLIS)?,
        stream: row.text(STREAM)?.map(Arc::from),
        hands_over: row.text(HANDS_OVER)?.filter(|id| !id.is_empty()).map(Claimant::from),
        left_at: row.count(LEFT_AT)?,
        heartbeat: row.heartbeat()?,
    }))
}

/// The key of a row, for a call.
pub(crate) fn key(key: &LeaseKey) -> Item {
    Item::from([(KEY.to_owned(), text(key.as_str()))])
}

/// What one conditional update says to DynamoDB.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Expressions {
    /// What to change.
    pub(crate) update: String,
    /// What must hold before.
    pub(crate) condition: String,
    /// The values that both name.
    pub(crate) values: Item,
}

/// The update for a write, on condition that the row is as the writer saw it.
///
/// A hand-off must be pending or not as the writer knows it. KCL: `renewLease`, `updateLease`, `takeLease` and
/// `assignLease` of `DynamoDBLeaseRefresher`.
pub(crate) fn update(write: &LeaseWrite) -> Expressions {
    let mut set = vec![format!("{COUNTER} = :counter")];
    let (mut remove, mut add) = (Vec::new(), String::new());
    let mut values = Item::from([(":counter".to_owned(), number(write.expected() + 1))]);
    let mut condition = unchanged(write.expected(), &mut values);
    let mut value = |name: &str, value| {
        values.insert(name.to_owned(), value);
    };
    match write.owner() {
        OwnerChange::Keep => {
            if let Some(row) = write.heartbeat() {
                set.push(format!("{HEARTBEAT} = :heartbeat"));
                value(":heartbeat", text(row.as_str()));
            }
        }
        OwnerChange::Leave => set.push(format!("{LEFT_AT} = :counter")),
        OwnerChange::Remove if write.handing_over().is_some() || write.holder().is_none() => {
            remove.extend([OWNER, CHECKPOINT_OWNER]);
        }
        OwnerChange::Remove => remove.push(OWNER),
        OwnerChange::Transfer => remove.push(CHECKPOINT_OWNER),
        OwnerChange::Set { owner, switched } => {
            set.push(format!("{OWNER} = :owner, {HANDS_OVER} = :claimant"));
            value(":owner", text(owner.as_str()));
            value(":claimant", text(&write.claimant().map(ToString::to_string).unwrap_or_default()));
            remove.push(CHECKPOINT_OWNER);
            match write.heartbeat() {
                Some(row) => {
                    set.push(format!("{HEARTBEAT} = :heartbeat"));
                    value(":heartbeat", text(row.as_str()));
                }
                None => remove.push(HEARTBEAT),
            }
            if *switched {
                add = format!(" ADD {OWNER_SWITCHES} :one");
                value(":one", number(1));
            }
        }
    }
    if write.is_claim() {
        condition += &claimed(write.replaced(), &mut value);
    } else if let Some(claimant) = write.claimant() {
        condition += &claimed(Some(claimant), &mut value);
    }
    condition += &held(write.holder(), write.handing_over(), &mut value);
    match write.mark() {
        None => {}
        Some(mark @ (Mark::Done(checkpoint) | Mark::Advanced(checkpoint))) => {
            set.push(format!("{CHECKPOINT} = :checkpoint, {SUB} = :sub, {OWNER_SWITCHES} = :zero"));
            value(":checkpoint", text(checkpoint.text()));
            value(":sub", number(checkpoint.sub()));
            value(":zero", number(0));
            if matches!(mark, Mark::Done(_)) {
                remove.extend([PENDING, PENDING_SUB, PENDING_STATE]);
            }
        }
        Some(Mark::Prepared(pending)) => {
            set.push(format!("{PENDING} = :pending, {PENDING_SUB} = :pendingSub"));
            value(":pending", text(pending.at.text()));
            value(":pendingSub", number(pending.at.sub()));
            match &pending.state {
                Some(state) => {
                    set.push(format!("{PENDING_STATE} = :state"));
                    value(":state", blob(state));
                }
                None => remove.push(PENDING_STATE),
            }
        }
        Some(Mark::Reset(reset)) => {
            set.push(format!("{CHECKPOINT} = :checkpoint, {SUB} = :sub, {OWNER_SWITCHES} = :zero"));
            set.push(format!("{RESET_MILLIS} = :reset"));
            value(":checkpoint", text(reset.to.text()));
            value(":sub", number(reset.to.sub()));
            value(":zero", number(0));
            value(":reset", number(reset.at_millis));
            match reset.start_millis {
                Some(millis) => {
                    set.push(format!("{START_MILLIS} = :start"));
                    value(":start", number(millis));
                }
                None => remove.push(START_MILLIS),
            }
            remove.extend([PENDING, PENDING_SUB, PENDING_STATE]);
        }
    }
    if let Some(kbps) = write.throughput_kbps() {
        set.push(format!("{THROUGHPUT} = :throughput"));
        value(":throughput", number(kbps));
    }
    if let Some(children) = shards(write.children()) {
        set.push(format!("{CHILDREN} = :children"));
        value(":children", children);
    }
    let mut update = format!("SET {}", set.join(", "));
    if !remove.is_empty() {
        update += &format!(" REMOVE {}", remove.join(", "));
    }
    update += &add;
    Expressions { update, condition, values }
}

/// The update for a request for a lease, on condition of the owners alone: the counter is the holder's.
/// KCL: `initiateGracefulLeaseHandoff`.
pub(crate) fn hand_off(request: &HandOff) -> Expressions {
    let values = [(":from", request.from()), (":to", request.to())];
    let values = values.map(|(name, worker)| (name.to_owned(), text(worker.as_str()))).into();
    let (update, condition) = if request.is_withdrawal() {
        let update = format!("SET {OWNER} = :from REMOVE {CHECKPOINT_OWNER}");
        (update, format!("{OWNER} = :to AND {CHECKPOINT_OWNER} = :from"))
    } else {
        let update = format!("SET {OWNER} = :to, {CHECKPOINT_OWNER} = :from");
        (update, format!("{OWNER} = :from AND attribute_not_exists({CHECKPOINT_OWNER})"))
    };
    Expressions { update, condition, values }
}

/// The condition under which `seen` may be deleted, and its values: nobody has written it since, nor has a person
/// set its checkpoint.
pub(crate) fn deletable(seen: &Lease) -> (String, Item) {
    let mut values = Item::new();
    let mut condition = unchanged(seen.counter, &mut values);
    let mut value = |name: &str, value| {
        values.insert(name.to_owned(), value);
    };
    condition += &held(seen.holder(), seen.checkpoint_owner.as_ref(), &mut value);
    condition += &claimed(seen.hands_over.as_ref(), &mut value);
    value(":checkpoint", text(seen.checkpoint.text()));
    (format!("{condition} AND {CHECKPOINT} = :checkpoint"), values)
}

/// The condition that a row names this holder, or nobody.
fn held(
    holder: Option<&WorkerId>,
    handing_over: Option<&WorkerId>,
    mut value: impl FnMut(&str, AttributeValue),
) -> String {
    let Some(holder) = holder else {
        return format!(" AND {} AND {}", vacant(OWNER, &mut value), vacant(CHECKPOINT_OWNER, &mut value));
    };
    value(":me", text(holder.as_str()));
    match handing_over {
        None => format!(" AND {OWNER} = :me AND {}", vacant(CHECKPOINT_OWNER, &mut value)),
        Some(_) => format!(" AND {CHECKPOINT_OWNER} = :me"),
    }
}

/// The condition that a row names this claim, or none.
fn claimed(claim: Option<&Claimant>, mut value: impl FnMut(&str, AttributeValue)) -> String {
    let Some(claim) = claim else { return format!(" AND {}", vacant(HANDS_OVER, &mut value)) };
    value(":claim", text(&claim.to_string()));
    format!(" AND {HANDS_OVER} = :claim")
}

/// The condition that an attribute says nothing, as `decode` reads it: a hand may have emptied it instead of
/// removing it, and a lease must not stay without a holder for that.
fn vacant(name: &str, mut value: impl FnMut(&str, AttributeValue)) -> String {
    value(":null", text("NULL"));
    value(":zero", number(0));
    format!("(attribute_not_exists({name}) OR attribute_type({name}, :null) OR size({name}) = :zero)")
}

/// Frees a row of its owners and gives it another counter, whatever else it holds.
#[cfg(feature = "cli")]
pub(crate) fn fence(item: &mut Item, counter: u64) {
    item.remove(OWNER);
    item.remove(CHECKPOINT_OWNER);
    item.insert(COUNTER.to_owned(), number(counter));
}

/// The condition that a row still has this counter, and its values.
#[cfg(feature = "cli")]
pub(crate) fn unchanged_since(counter: u64) -> (String, Item) {
    let mut values = Item::new();
    (unchanged(counter, &mut values), values)
}

/// The condition under which a row may be put: there is none yet.
pub(crate) fn absent() -> String {
    format!("attribute_not_exists({KEY})")
}

/// A condition that no row meets, whether there is one or not.
pub(crate) fn never() -> String {
    format!("{} AND attribute_exists({KEY})", absent())
}

fn unchanged(counter: u64, values: &mut Item) -> String {
    values.insert(":expected".to_owned(), number(counter));
    format!("{COUNTER} = :expected")
}

pub(super) fn text(value: &str) -> AttributeValue {
    AttributeValue::S(value.to_owned())
}

pub(super) fn number(value: impl ToString + Copy) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

fn blob(value: &Bytes) -> AttributeValue {
    AttributeValue::B(Blob::new(value.as_ref()))
}

/// DynamoDB has no empty set.
fn shards(ids: &BTreeSet<ShardId>) -> Option<AttributeValue> {
    let ids: Vec<_> = ids.iter().map(|id| id.as_str().to_owned()).collect();
    (!ids.is_empty()).then_some(AttributeValue::Ss(ids))
}

/// A row while it is read.
#[derive(Clone, Copy)]
struct Row<'a> {
    item: &'a Item,
    key: &'a str,
}

impl<'a> Row<'a> {
    fn bad(self, attribute: &'static str, problem: impl Into<String>) -> BadItem {
        BadItem { key: self.key.chars().take(140).collect(), attribute, problem: problem.into() }
    }

    fn required<T>(self, name: &'static str, value: Option<T>) -> Result<T, BadItem> {
        value.ok_or_else(|| self.bad(name, "is missing"))
    }

    /// The attribute, taken apart by `as_type`.
    fn typed<T>(
        self,
        name: &'static str,
        kind: &str,
        as_type: impl FnOnce(&'a AttributeValue) -> Result<T, &'a AttributeValue>,
    ) -> Result<Option<T>, BadItem> {
        match self.item.get(name) {
            None | Some(AttributeValue::Null(_)) => Ok(None),
            Some(value) => as_type(value).map(Some).map_err(|_| self.bad(name, format!("is not a {kind}"))),
        }
    }

    fn text(self, name: &'static str) -> Result<Option<&'a str>, BadItem> {
        Ok(self.typed(name, "string", AttributeValue::as_s)?.map(String::as_str))
    }

    fn number<T: FromStr>(self, name: &'static str) -> Result<Option<T>, BadItem> {
        let Some(digits) = self.typed(name, "number", AttributeValue::as_n)? else { return Ok(None) };
        let shown = || digits.chars().take(40).collect::<String>();
        digits.parse().map(Some).map_err(|_| self.bad(name, format!("cannot be {:?}", shown())))
    }

    /// A number from 0 to that of a Java `long`, so that it can still be raised here.
    fn count(self, name: &'static str) -> Result<Option<u64>, BadItem> {
        let Some(count) = self.number::<i64>(name)? else { return Ok(None) };
        u64::try_from(count).map(Some).map_err(|_| self.bad(name, format!("cannot be {count}")))
    }

    fn worker(self, name: &'static str) -> Result<Option<WorkerId>, BadItem> {
        Ok(self.text(name)?.filter(|id| !id.is_empty()).map(WorkerId::from))
    }

    /// Not guessed: a lease that is judged by the wrong row is taken from a living holder.
    fn heartbeat(self) -> Result<Option<Incarnation>, BadItem> {
        let Some(key) = self.text(HEARTBEAT)? else { return Ok(None) };
        Incarnation::parse(key).map(Some).ok_or_else(|| self.bad(HEARTBEAT, "is not the key of a worker row"))
    }

    fn bytes(self, name: &'static str) -> Result<Option<Bytes>, BadItem> {
        let blob = self.typed(name, "binary", AttributeValue::as_b)?;
        Ok(blob.map(|blob| Bytes::copy_from_slice(blob.as_ref())))
    }

    fn shards(self, name: &'static str) -> Result<BTreeSet<ShardId>, BadItem> {
        let ids = self.typed(name, "set of strings", AttributeValue::as_ss)?;
        Ok(ids.into_iter().flatten().map(|id| id.as_str().into()).collect())
    }

    fn hash_range(self) -> Result<Option<HashKeyRange>, BadItem> {
        let end = |name| {
            let Some(digits) = self.text(name)? else { return Ok(None) };
            digits.parse().map(Some).map_err(|_| self.bad(name, "is not a hash key"))
        };
        match (end(HASH_START)?, end(HASH_END)?) {
            (Some(start), Some(end)) if start > end => Err(self.bad(HASH_START, "is above endingHashKey")),
            (Some(start), Some(end)) => Ok(Some(HashKeyRange { start, end })),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection, option, prelude::*};

    use super::*;
    use crate::core::{
        lease::Tenure,
        shard::Position,
        testdata::{self, rows},
    };

    const CASES: &str = include_str!("../core/testdata/lease_items.txt");

    fn checkpoint() -> impl Strategy<Value = Checkpoint> {
        let at = (any::<u128>(), 0..=i64::MAX as u64).prop_map(|(number, sub)| {
            let sequence = number.to_string().parse().expect("digits");
            Checkpoint::At(Position { sequence, sub })
        });
        prop_oneof![
            Just(Checkpoint::AtTimestamp),
            Just(Checkpoint::TrimHorizon),
            Just(Checkpoint::Latest),
            Just(Checkpoint::ShardEnd),
            at,
        ]
    }

    fn lease() -> impl Strategy<Value = Lease> {
        let count = || 0..=i64::MAX as u64;
        let worker = || option::of("[a-z]{1,8}".prop_map(WorkerId::from));
        let shards = || collection::btree_set("shardId-[0-9]{12}".prop_map(ShardId::from), 0..3);
        let state = option::of(collection::vec(any::<u8>(), 0..32).prop_map(Bytes::from));
        let pending =
            option::of((checkpoint(), state).prop_map(|(at, state)| PendingCheckpoint { at, state }));
        let range =
            option::of(any::<[u128; 2]>().prop_map(|[a, b]| HashKeyRange { start: a.min(b), end: a.max(b) }));
        let heartbeat = option::of("[a-z]{1,8}".prop_map(|name| Incarnation::new(&name.into(), 1, 1)));
        let stream = option::of("[a-z:]{1,9}".prop_map(Arc::from));
        let extras =
            (range, option::of(0.0..1e9), (option::of(count()), option::of(count())), stream, heartbeat);
        let owners = (worker(), worker(), worker(), count(), option::of(count()));
        ("[ -~]{1,40}", count(), owners, checkpoint(), pending, shards(), shards(), extras).prop_map(
            |(key, counter, owners, checkpoint, pending, parents, children, extras)| {
                let (owner, checkpoint_owner, hands_over, owner_switches, left_at) = owners;
                let (hash_range, throughput_kbps, (start_millis, reset_millis), stream, heartbeat) = extras;
                Lease {
                    key: key.into(),
                    counter,
                    owner,
                    checkpoint_owner,
                    owner_switches,
                    checkpoint,
                    pending,
                    parents,
                    children,
                    hash_range,
                    throughput_kbps,
                    start_millis,
                    reset_millis,
                    stream,
                    hands_over: hands_over.as_ref().map(Claimant::from),
                    left_at,
                    heartbeat,
                }
            },
        )
    }

    /// Values as a confused hand might enter them.
    fn any_value() -> impl Strategy<Value = AttributeValue> {
        let word = || {
            prop_oneof![
                Just("LEASE".to_owned()),
                Just("SHARD_END".to_owned()),
                "-?[0-9]{1,40}",
                "-?[0-9]{1,5}\\.[0-9]{1,5}(E[0-9]{1,4})?",
                ".{0,20}"
            ]
        };
        prop_oneof![
            4 => word().prop_map(AttributeValue::S),
            4 => word().prop_map(AttributeValue::N),
            1 => collection::vec(any::<u8>(), 0..8).prop_map(|bytes| AttributeValue::B(Blob::new(bytes))),
            1 => collection::vec(word(), 0..3).prop_map(AttributeValue::Ss),
            1 => Just(AttributeValue::Null(true)),
            1 => any::<bool>().prop_map(AttributeValue::Bool),
            1 => Just(AttributeValue::L(Vec::new())),
        ]
    }

    fn worker_of_three() -> impl Strategy<Value = Option<WorkerId>> {
        proptest::sample::select(vec![None, Some("me"), Some("you")]).prop_map(|id| id.map(WorkerId::from))
    }

    /// The request for a lease of `owner`, by the other one.
    fn seen_by(owner: &str) -> HandOff {
        let owner = WorkerId::from(owner);
        let row = Lease { owner: Some(owner.clone()), hands_over: Some((&owner).into()), ..least_lease() };
        let other = if owner.as_str() == "me" { "you" } else { "me" };
        row.ask(&other.into()).expect("willing")
    }

    /// What DynamoDB makes of an update: nothing if the condition does not hold. Knows what we use of it.
    fn applied(update: &Expressions, item: &Item) -> Option<Item> {
        let value = |name: &str| update.values.get(name).expect("a bound value");
        let one = |clause: &str| match clause.split_once(" = ") {
            Some((of, expected)) => match of.strip_prefix("size(").and_then(|name| name.strip_suffix(')')) {
                Some(name) => item.get(name).is_some_and(|found| {
                    found.as_s().is_ok_and(|text| number(text.len()) == *value(expected))
                }),
                None => item.get(of) == Some(value(expected)),
            },
            None => match clause.strip_prefix("attribute_type(") {
                Some(named) => {
                    let (name, kind) = named.split_once(", ").expect("NAME, KIND");
                    assert_eq!(value(kind.trim_end_matches(')')), &text("NULL"));
                    item.get(name).is_some_and(AttributeValue::is_null)
                }
                None => {
                    let name =
                        clause.strip_prefix("attribute_not_exists(").and_then(|name| name.strip_suffix(')'));
                    !item.contains_key(name.expect("the only function"))
                }
            },
        };
        let holds = |clause: &str| match clause.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
            Some(any) => any.split(" OR ").any(one),
            None => one(clause),
        };
        if !update.condition.split(" AND ").all(holds) {
            return None;
        }
        let mut after = item.clone();
        let mut doing = "";
        for word in update.update.replace(" = ", "=").split([' ', ',']).filter(|word| !word.is_empty()) {
            match (word, doing) {
                ("SET" | "REMOVE" | "ADD", _) => doing = word,
                (_, "SET") => {
                    let (name, to) = word.split_once('=').expect("NAME = VALUE");
                    after.insert(name.to_owned(), value(to).clone());
                }
                (_, "REMOVE") => drop(after.remove(word)),
                (by, "ADD") if by.starts_with(':') => {
                    assert_eq!(value(by), &number(1));
                    let sum = row_count(&after, OWNER_SWITCHES) + 1;
                    after.insert(OWNER_SWITCHES.to_owned(), number(sum));
                }
                (name, "ADD") => assert_eq!(name, OWNER_SWITCHES),
                other => panic!("{other:?} in {}", update.update),
            }
        }
        Some(after)
    }

    fn row_count(item: &Item, name: &'static str) -> u64 {
        Row { item, key: "" }.count(name).expect("a count").unwrap_or_default()
    }

    const NAMES: [&str; 22] = [
        LEFT_AT,
        HEARTBEAT,
        HANDS_OVER,
        KEY,
        COUNTER,
        OWNER,
        CHECKPOINT_OWNER,
        OWNER_SWITCHES,
        CHECKPOINT,
        SUB,
        PENDING,
        PENDING_SUB,
        PENDING_STATE,
        PARENTS,
        CHILDREN,
        HASH_START,
        HASH_END,
        THROUGHPUT,
        ENTITY_TYPE,
        START_MILLIS,
        RESET_MILLIS,
        STREAM,
    ];

    fn least() -> Item {
        Item::from([
            (KEY.to_owned(), text("shardId-0")),
            (COUNTER.to_owned(), number(0)),
            (OWNER_SWITCHES.to_owned(), number(0)),
            (CHECKPOINT.to_owned(), text("TRIM_HORIZON")),
        ])
    }

    fn with(name: &str, value: AttributeValue) -> Result<Option<Lease>, BadItem> {
        let mut item = least();
        item.insert(name.to_owned(), value);
        decode(&item)
    }

    proptest! {
        #[test]
        fn a_lease_survives_its_item(lease in lease()) {
            prop_assert_eq!(decode(&encode(&lease)), Ok(Some(lease)));
        }

        #[test]
        fn any_item_is_a_lease_or_skipped_or_refused(
            values in collection::hash_map(proptest::sample::select(&NAMES[..]), any_value(), 0..=18),
            sound in any::<bool>(),
        ) {
            let mut item = if sound { least() } else { Item::new() };
            item.extend(values.into_iter().map(|(name, value)| (name.to_owned(), value)));
            if let Ok(Some(lease)) = decode(&item) {
                let _ = update(&lease.claim(&"me".into()));
                prop_assert_eq!(decode(&encode(&lease)), Ok(Some(lease)));
            }
        }

        #[test]
        fn an_update_does_what_the_rules_say_and_leaves_alone_what_it_does_not_know(
            lease in lease(),
            to in checkpoint(),
            state: Option<Vec<u8>>,
            unknown in collection::hash_map("x[a-zA-Z]{1,9}", any_value(), 0..4),
            (counter, owner, checkpoint_owner) in (0..3_u64, worker_of_three(), worker_of_three()),
        ) {
            let seen = Lease { counter: 7, owner_switches: lease.owner_switches / 2, ..lease };
            let claim = seen.claim(&"me".into());
            let mut tenure = Tenure::begin(&seen, &claim, crate::clock::now()).expect("a claim");
            let mut writes = vec![claim, seen.evict()];
            for leaving in [false, true] {
                writes.push(tenure.renewal());
                writes.push(tenure.finish(["shardId-8".into()].into()));
                writes.extend(tenure.checkpoint(to.clone()));
                writes.extend(tenure.release(Some(to.clone())));
                writes.extend(tenure.release(None));
                writes.extend(tenure.prepare(to.clone(), state.clone().map(Bytes::from)));
                if !leaving {
                    let asked = tenure.row().ask(&"you".into()).expect("it hands over");
                    prop_assert!(tenure.notice(&tenure.row().after_request(&asked)));
                }
            }
            // The row as it may be by then.
            let row = Lease { counter: 6 + counter, owner, checkpoint_owner, ..seen };
            let mut item = encode(&row);
            item.extend(unknown.clone());
            for write in writes {
                let after = applied(&update(&write), &item);
                prop_assert_eq!(after.is_some(), write.is_allowed_on(&row), "{:?} on {:?}", write, row);
                let Some(after) = after else { continue };
                prop_assert_eq!(decode(&after), Ok(Some(row.after(&write))), "{:?}", write);
                for (name, value) in &unknown {
                    prop_assert_eq!(after.get(name), Some(value));
                }
            }
            for request in [seen_by("me"), seen_by("you")].into_iter().flat_map(|ask| [ask.clone(), ask.withdrawn()]) {
                let after = applied(&hand_off(&request), &item);
                prop_assert_eq!(after.is_some(), request.is_allowed_on(&row), "{:?} on {:?}", request, row);
                let Some(after) = after else { continue };
                prop_assert_eq!(decode(&after), Ok(Some(row.after_request(&request))));
                prop_assert!(unknown.iter().all(|(name, value)| after.get(name) == Some(value)));
            }
        }

        #[test]
        fn an_expression_binds_exactly_the_values_it_names(lease in lease(), to in checkpoint(), state: Option<Vec<u8>>) {
            let lease = Lease { counter: lease.counter / 2, owner_switches: 0, ..lease };
            let claim = lease.claim(&"me".into());
            let mut writes = vec![claim.clone(), claim.clone().living_by(Incarnation::new(&"me".into(), 1, 1))];
            let mut tenure = Tenure::begin(&lease, &claim, crate::clock::now()).expect("a claim");
            writes.push(tenure.renewal());
            writes.push(tenure.renewal().living_by(Incarnation::new(&"me".into(), 1, 1)));
            writes.extend(tenure.leave(Some(to.clone())));
            tenure.measured(1.5);
            writes.push(tenure.finish(lease.children));
            writes.extend(tenure.checkpoint(to.clone()));
            writes.extend(tenure.release(Some(to.clone())));
            writes.extend(tenure.prepare(to, state.map(Bytes::from)));
            for write in writes {
                let made = update(&write);
                let text = format!("{} {}", made.update, made.condition);
                let mut named: Vec<_> =
                    text.split([' ', ',', ')']).filter(|word| word.starts_with(':')).map(str::to_owned).collect();
                let mut bound: Vec<_> = made.values.into_keys().collect();
                named.sort_unstable();
                named.dedup();
                bound.sort_unstable();
                prop_assert_eq!(named, bound, "{}", text);
            }
        }
    }

    #[test]
    fn the_least_row_that_the_kcl_reads_is_enough() {
        let lease = decode(&least()).expect("sound").expect("a lease");
        assert_eq!(lease, Lease::new(&"shardId-0".into(), Checkpoint::TrimHorizon));
        for name in [KEY, COUNTER, OWNER_SWITCHES, CHECKPOINT] {
            let mut item = least();
            item.remove(name);
            let error = decode(&item).expect_err("required");
            assert_eq!((error.attribute, error.problem.as_str()), (name, "is missing"));
        }
    }

    /// The least row with the attributes of a row of testdata/lease_items.txt.
    fn item_of(changes: &str) -> Item {
        let mut item = least();
        for change in changes.split_whitespace() {
            let Some((name, value)) = change.split_once('=') else {
                item.remove(change.strip_prefix('-').expect("NAME=TYPE:VALUE or -NAME"));
                continue;
            };
            let (kind, value) = value.split_once(':').expect("TYPE:VALUE");
            let value = match kind {
                "S" => text(value),
                "N" => AttributeValue::N(value.to_owned()),
                "SS" => AttributeValue::Ss(value.split(',').map(str::to_owned).collect()),
                "NULL" => AttributeValue::Null(true),
                other => panic!("no such type: {other}"),
            };
            item.insert(name.to_owned(), value);
        }
        item
    }

    #[test]
    fn the_table_of_rows_holds() {
        for testdata::Row { line, cells } in rows(CASES, "read") {
            let answer = match decode(&item_of(cells[1])) {
                Ok(Some(lease)) => {
                    assert_eq!(decode(&encode(&lease)), Ok(Some(lease)), "line {line}");
                    "lease"
                }
                Ok(None) => "skipped",
                Err(error) => error.attribute,
            };
            assert_eq!(answer, cells[2], "line {line}");
        }
    }

    #[test]
    fn what_is_unknown_or_null_is_as_good_as_absent() {
        let plain = decode(&least());
        assert_eq!(with("note", text("moved by hand")), plain);
        assert_eq!(with(OWNER, AttributeValue::Null(true)), plain);
        assert_eq!(with(OWNER, text("")), plain);
        assert_eq!(with(HASH_START, text("0")), plain, "half a hash range");
    }

    #[test]
    fn a_complaint_never_shows_application_state() {
        let mut item = least();
        item.insert(PENDING.to_owned(), text("7"));
        item.insert(PENDING_STATE.to_owned(), text("secret"));
        let error = decode(&item).expect_err("refused");
        assert_eq!(error.to_string(), r#"lease row "shardId-0": pendingCheckpointState is not a binary"#);
    }

    #[test]
    fn a_hand_off_asks_transfers_and_is_taken_back_on_the_owners_alone() {
        let row = Lease { owner: Some("a".into()), hands_over: Some("a".into()), ..least_lease() };
        let ask = row.ask(&"b".into()).expect("a hands over");
        let made = hand_off(&ask);
        assert_eq!(made.update, "SET leaseOwner = :to, checkpointOwner = :from");
        assert_eq!(made.condition, "leaseOwner = :from AND attribute_not_exists(checkpointOwner)");

        let claim = row.claim(&"a".into());
        let mut tenure = Tenure::begin(&row, &claim, crate::clock::now()).expect("a claim");
        tenure.notice(&tenure.row().after_request(&ask));
        let transfer = update(&tenure.release(None).expect("no checkpoint"));
        assert_eq!(transfer.update, "SET leaseCounter = :counter REMOVE checkpointOwner");
        assert_eq!(
            transfer.condition,
            "leaseCounter = :expected AND handsOverWorker = :claim AND checkpointOwner = :me"
        );
        let end = update(&tenure.finish(BTreeSet::new()));
        assert!(end.update.contains("REMOVE leaseOwner, checkpointOwner"), "{}", end.update);

        let made = hand_off(&ask.withdrawn());
        assert_eq!(made.update, "SET leaseOwner = :from REMOVE checkpointOwner");
        assert_eq!(made.condition, "leaseOwner = :to AND checkpointOwner = :from");
    }

    #[test]
    fn an_update_says_what_the_kcl_says() {
        let row = Lease { counter: 7, owner: Some("a".into()), ..least_lease() };
        let claim = row.claim(&"b".into());
        let made = update(&claim);
        assert_eq!(
            made.update,
            "SET leaseCounter = :counter, leaseOwner = :owner, handsOverWorker = :claimant \
             REMOVE checkpointOwner, heartbeatKey ADD ownerSwitchesSinceCheckpoint :one"
        );
        assert_eq!(
            made.condition,
            "leaseCounter = :expected AND (attribute_not_exists(handsOverWorker) \
             OR attribute_type(handsOverWorker, :null) OR size(handsOverWorker) = :zero) AND leaseOwner = :me \
             AND (attribute_not_exists(checkpointOwner) OR attribute_type(checkpointOwner, :null) \
             OR size(checkpointOwner) = :zero)"
        );
        let made = update(&row.claim(&"b".into()).living_by(Incarnation::new(&"b".into(), 1, 1)));
        assert_eq!(
            made.update,
            "SET leaseCounter = :counter, leaseOwner = :owner, handsOverWorker = :claimant, \
             heartbeatKey = :heartbeat REMOVE checkpointOwner ADD ownerSwitchesSinceCheckpoint :one"
        );
        let tenure = Tenure::begin(&row, &claim, crate::clock::now()).expect("a claim");
        let made = update(&tenure.finish(BTreeSet::from(["shardId-1".into()])));
        assert_eq!(
            made.update,
            "SET leaseCounter = :counter, checkpoint = :checkpoint, checkpointSubSequenceNumber = :sub, \
             ownerSwitchesSinceCheckpoint = :zero, childShardIds = :children \
             REMOVE leaseOwner, pendingCheckpoint, pendingCheckpointSubSequenceNumber, pendingCheckpointState"
        );
        assert_eq!(
            made.condition,
            "leaseCounter = :expected AND handsOverWorker = :claim AND leaseOwner = :me \
             AND (attribute_not_exists(checkpointOwner) OR attribute_type(checkpointOwner, :null) \
             OR size(checkpointOwner) = :zero)"
        );
        assert_eq!(made.values[":expected"], number(8));
        assert_eq!(made.values[":counter"], number(9));
    }

    #[test]
    fn a_lease_whose_owner_was_emptied_by_hand_can_be_claimed() {
        let claim = update(&least_lease().claim(&"a".into()));
        for value in [text(""), AttributeValue::Null(true)] {
            for name in [OWNER, CHECKPOINT_OWNER, HANDS_OVER] {
                let mut item = encode(&least_lease());
                item.insert(name.to_owned(), value.clone());
                assert!(applied(&claim, &item).is_some(), "{name}");
                item.insert(name.to_owned(), text("b"));
                assert!(applied(&claim, &item).is_none(), "{name}");
            }
        }
    }

    #[test]
    fn a_lease_that_is_left_keeps_its_owner_and_names_the_counter() {
        let row = Lease { owner: Some("a".into()), ..least_lease() };
        let claim = row.claim(&"a".into());
        let tenure = Tenure::begin(&row, &claim, crate::clock::now()).expect("a claim");
        let made = update(&tenure.leave(None).expect("no checkpoint"));
        assert_eq!(made.update, "SET leaseCounter = :counter, leftAtCounter = :counter");
        assert_eq!(
            made.condition,
            "leaseCounter = :expected AND handsOverWorker = :claim AND leaseOwner = :me \
             AND (attribute_not_exists(checkpointOwner) OR attribute_type(checkpointOwner, :null) \
             OR size(checkpointOwner) = :zero)"
        );
    }

    fn least_lease() -> Lease {
        Lease::new(&"shardId-0".into(), Checkpoint::TrimHorizon)
    }

    /// What DynamoDB counts: names, and values in UTF-8; two digits a byte.
    fn weight(item: &Item) -> usize {
        let value = |value: &AttributeValue| match value {
            AttributeValue::S(text) => text.len(),
            AttributeValue::N(digits) => digits.len().div_ceil(2) + 1,
            AttributeValue::Ss(texts) => texts.iter().map(String::len).sum(),
            other => panic!("not in a row at rest: {other:?}"),
        };
        item.iter().map(|(name, of)| name.len() + value(of)).sum()
    }

    #[test]
    fn a_row_weighs_what_budgets_and_costs_take_it_for() {
        let checkpoint = "49671246667567228643283430150187087032842084000587911".parse().expect("digits");
        let worker = WorkerId::from("cart-worker-7d9f8b6c5-x2x4k");
        let row = Lease {
            counter: 123_456,
            owner: Some(worker.clone()),
            checkpoint: Checkpoint::At(Position { sequence: checkpoint, sub: 0 }),
            hash_range: Some(HashKeyRange { start: u128::MAX / 3, end: u128::MAX / 2 }),
            throughput_kbps: Some(123.456_789),
            stream: Some("arn:aws:kinesis:eu-central-1:123456789012:stream/cart-items:1712345678".into()),
            hands_over: Some(Claimant::new(&worker, u64::MAX / 3, 12)),
            ..Lease::new(&"shardId-000000000000".into(), Checkpoint::TrimHorizon)
        };
        let resharded = Lease { parents: ["shardId-000000000001".into()].into(), ..row.clone() };
        let beating =
            Lease { heartbeat: Some(Incarnation::new(&worker, u64::MAX / 3, 1)), ..resharded.clone() };
        let weights = [row, resharded, beating].map(|row| weight(&encode(&row)));
        let near = |bytes: usize, thought: f64| (bytes as f64 / thought - 1.0).abs() < 0.1;
        // The default of `leasectl cost`, and of looks whose table does not say what they cost.
        assert!(weights[..2].iter().all(|bytes| near(*bytes, 500.0) && near(*bytes, 512.0)), "{weights:?}");
        assert!(near(weights[2] - weights[1], crate::core::cost::HEARTBEAT_BYTES), "{weights:?}");
    }
}
