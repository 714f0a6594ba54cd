//! Worker rows as DynamoDB items: the key, the counter, and the expressions of a beat.
//!
//! Only translates. A row has a kind of its own, which readers of leases skip (the KCL since 3.5), and
//! neither of the counters that a lease must have, so that older readers cannot take it for one.

use crate::{
    core::heartbeat::{Incarnation, WorkerRow},
    io::lease_item::{ENTITY_TYPE, Expressions, Item, KEY, absent, number, text},
};

const KIND: &str = "WORKER_HEARTBEAT";
const COUNTER: &str = "heartbeatCounter";

/// The key of a row, for a call.
pub(super) fn key(incarnation: &Incarnation) -> Item {
    Item::from([(KEY.to_owned(), text(incarnation.as_str()))])
}

/// Reads a row; nothing if it is of another kind. One that cannot be understood is as good as none: its
/// worker finds it out at the next beat.
pub(super) fn decode(item: &Item) -> Option<WorkerRow> {
    if item.get(ENTITY_TYPE)? != &text(KIND) {
        return None;
    }
    let incarnation = Incarnation::parse(item.get(KEY)?.as_s().ok()?)?;
    let counter = item.get(COUNTER)?.as_n().ok()?.parse().ok()?;
    Some(WorkerRow { incarnation, counter })
}

/// The update for a beat: the first makes the row, later ones find it with a lower counter.
pub(super) fn beat(row: &WorkerRow) -> Expressions {
    let mut values = Item::from([(":counter".to_owned(), number(row.counter))]);
    let (update, condition) = if row.counter == 0 {
        values.insert(":kind".to_owned(), text(KIND));
        (format!("SET {COUNTER} = :counter, {ENTITY_TYPE} = :kind"), absent())
    } else {
        // No row, no counter: the comparison is false.
        (format!("SET {COUNTER} = :counter"), format!("{COUNTER} < :counter"))
    };
    Expressions { update, condition, values }
}

/// The condition under which `seen` may be deleted, and its values.
pub(super) fn unchanged(seen: &WorkerRow) -> (String, Item) {
    let values = Item::from([(":expected".to_owned(), number(seen.counter))]);
    (format!("{COUNTER} = :expected"), values)
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::{primitives::Blob, types::AttributeValue};
    use proptest::{collection, option, prelude::*, sample};

    use super::*;
    use crate::io::lease_item;

    fn item() -> Item {
        let mut item = key(&Incarnation::new(&"a".into(), 1, 1));
        item.insert(ENTITY_TYPE.to_owned(), text(KIND));
        item.insert(COUNTER.to_owned(), number(7));
        item
    }

    fn value() -> impl Strategy<Value = AttributeValue> {
        prop_oneof![
            ".{0,30}".prop_map(AttributeValue::S),
            prop_oneof!["-?[0-9]{0,24}", "[0-9.eE+-]{0,9}", ".{0,5}"].prop_map(AttributeValue::N),
            any::<u64>().prop_map(number),
            Just(text(KIND)),
            Just(AttributeValue::Null(true)),
            collection::vec(any::<u8>(), 0..9).prop_map(|bytes| AttributeValue::B(Blob::new(bytes))),
            Just(AttributeValue::L(Vec::new())),
        ]
    }

    proptest! {
        #[test]
        fn any_row_of_a_worker_is_read_as_it_was_written(
            worker in ".{1,20}", process: u64, nth: u64, counter: u64,
        ) {
            let incarnation = Incarnation::new(&worker.as_str().into(), process, nth);
            prop_assert_eq!(incarnation.worker(), &worker);
            prop_assert_eq!(incarnation.process(), Some(process));
            let mut item = key(&incarnation);
            item.extend([(ENTITY_TYPE.to_owned(), text(KIND)), (COUNTER.to_owned(), number(counter))]);
            prop_assert_eq!(decode(&item), Some(WorkerRow { incarnation, counter }));
        }

        #[test]
        fn any_item_is_the_row_of_a_worker_as_it_stands_there_or_none(
            sound: bool,
            key_text in option::of(prop_oneof![
                ".{0,30}", "worker[#:/.0-9a-f]{0,30}", ".{0,4}/.{0,9}",
                (any::<u64>(), ".{0,9}").prop_map(|(n, worker)| {
                    Incarnation::new(&worker.as_str().into(), n, n).as_str().to_owned()
                }),
            ]),
            values in collection::hash_map(sample::select(&[KEY, ENTITY_TYPE, COUNTER, "x"][..]), value(), 0..4),
        ) {
            let mut read = if sound { item() } else { Item::new() };
            read.extend(key_text.map(|key| (KEY.to_owned(), text(&key))));
            read.extend(values.into_iter().map(|(name, value)| (name.to_owned(), value)));
            if let Some(row) = decode(&read) {
                prop_assert_eq!(Some(&text(row.incarnation.as_str())), read.get(KEY));
                let counter = read.get(COUNTER).and_then(|counter| counter.as_n().ok());
                prop_assert_eq!(counter.and_then(|counter| counter.parse().ok()), Some(row.counter));
                prop_assert!(!row.incarnation.worker().is_empty());
                let _ = row.incarnation.process();
                prop_assert_eq!(lease_item::decode(&read), Ok(None), "it would be a lease, too");
            }
        }
    }

    #[test]
    fn a_worker_row_is_no_lease_and_a_lease_no_worker_row() {
        let row = WorkerRow { incarnation: Incarnation::new(&"a".into(), 1, 1), counter: 7 };
        assert_eq!(decode(&item()), Some(row));
        assert_eq!(lease_item::decode(&item()), Ok(None));
        // A reader that knows no kinds misses what a lease must have.
        let mut plain = item();
        plain.remove(ENTITY_TYPE);
        assert_eq!(decode(&plain), None);
        assert_eq!(lease_item::decode(&plain).expect_err("no lease").problem, "is missing");
    }

    #[test]
    fn a_row_that_cannot_be_understood_is_as_good_as_none() {
        for (name, value) in [
            (KEY, text("shardId-000000000000")),
            (KEY, number(1)),
            (COUNTER, text("7")),
            (COUNTER, number(-1)),
            (ENTITY_TYPE, AttributeValue::Null(true)),
        ] {
            let mut item = item();
            item.insert(name.to_owned(), value.clone());
            assert_eq!(decode(&item), None, "{name} {value:?}");
        }
    }
}
