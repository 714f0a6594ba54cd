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
    use aws_sdk_dynamodb::types::AttributeValue;

    use super::*;
    use crate::io::lease_item;

    fn item() -> Item {
        let mut item = key(&Incarnation::new(&"a".into(), 1, 1));
        item.insert(ENTITY_TYPE.to_owned(), text(KIND));
        item.insert(COUNTER.to_owned(), number(7));
        item
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
