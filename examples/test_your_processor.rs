//! Testing your own processor, without AWS and without waiting: five lines a test.
//!
//! `cargo test --example test_your_processor` runs the tests below. In your crate they stand beside your processor, with
//! `kinesis-consumer = { …, features = ["test-util"] }` and tokio's feature `test-util` among the
//! dev-dependencies.

use std::collections::BTreeMap;

use kinesis_consumer::{
    Batch, Failure, ProcessorFactory, RecordProcessor, ShardContext, ShardStart, Verdict,
};

/// What is under test: adds up the amounts of each customer, and writes the sums to a database.
struct Totals {
    database: Database,
}

impl RecordProcessor for Totals {
    async fn process(&mut self, batch: Batch, _: &ShardContext) -> Result<Verdict, Failure> {
        for record in &batch {
            let amount: i64 = std::str::from_utf8(record.data())?.parse()?;
            // A record that comes again must not count again.
            self.database.add(record.partition_key(), &record.position().to_string(), amount)?;
        }
        Ok(Verdict::Done)
    }
}

/// Makes a processor for each shard: what a worker is built with.
fn totals(database: Database) -> impl ProcessorFactory {
    move |_: ShardStart| {
        let totals = Totals { database: database.clone() };
        async move { Ok(totals) }
    }
}

fn main() {
    // Yours runs `Worker::builder(…).aws(…).build(totals(database))`; here the tests do.
    let _ = totals(Database::default());
    println!("cargo test --example test_your_processor");
}

/// Stands for yours. A write that was made before is not made again.
#[derive(Clone, Default)]
struct Database(std::sync::Arc<std::sync::Mutex<Tables>>);

#[derive(Default)]
struct Tables {
    amounts: BTreeMap<(String, String), i64>,
    is_down: bool,
}

impl Database {
    fn add(&self, customer: &str, position: &str, amount: i64) -> Result<(), std::io::Error> {
        let mut tables = self.0.lock().expect("no panic");
        if tables.is_down {
            return Err(std::io::Error::other("the database is down"));
        }
        tables.amounts.insert((customer.to_owned(), position.to_owned()), amount);
        Ok(())
    }

    #[cfg(test)]
    fn set_down(&self, is_down: bool) {
        self.0.lock().expect("no panic").is_down = is_down;
    }

    #[cfg(test)]
    fn total(&self, customer: &str) -> i64 {
        let tables = self.0.lock().expect("no panic");
        tables.amounts.iter().filter(|((of, _), _)| of == customer).map(|(_, amount)| amount).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kinesis_consumer::testing::{TestStream, TestWorker};

    use super::*;

    /// A worker with the processor under test.
    fn start(stream: &TestStream, id: &str, database: &Database) -> TestWorker {
        stream.worker(id, |worker| worker.build(totals(database.clone())))
    }

    #[tokio::test(start_paused = true)]
    async fn amounts_are_added_by_customer() {
        let (stream, database) = (TestStream::new(2), Database::default());
        stream.put("ann", "7");
        stream.put("bob", "1");
        stream.put("ann", "35");
        let _worker = start(&stream, "a", &database);
        stream.all_done().await;
        assert_eq!((database.total("ann"), database.total("bob")), (42, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_lost_while_the_database_is_down() {
        let (stream, database) = (TestStream::new(1), Database::default());
        database.set_down(true);
        stream.put("ann", "42");
        let _worker = start(&stream, "a", &database);
        stream.until("five tries", |stream| stream.times_delivered("42") == 5).await;
        assert!(!stream.is_checkpointed("42"));
        database.set_down(false);
        stream.all_done().await;
        assert_eq!(database.total("ann"), 42);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crash_counts_nothing_twice() {
        let (stream, database) = (TestStream::new(1), Database::default());
        let first = start(&stream, "a", &database);
        stream.put("ann", "40");
        stream.all_done().await;
        stream.put("ann", "2");
        stream.until("delivered", |stream| stream.times_delivered("2") == 1).await;
        first.crash().await;
        let _second = start(&stream, "b", &database);
        stream.all_done().await;
        assert_eq!(stream.deliveries(), ["40", "2", "2"], "it was not checkpointed and came again");
        assert_eq!(database.total("ann"), 42);
    }

    #[tokio::test(start_paused = true)]
    async fn a_zombie_counts_nothing_twice() {
        let (stream, database) = (TestStream::new(1), Database::default());
        let frozen = start(&stream, "a", &database);
        database.set_down(true);
        stream.put("ann", "42");
        stream.until("a failed try", |stream| stream.times_delivered("42") == 1).await;
        // It wakes up with the record still in hand, to be tried again.
        frozen.freeze();
        database.set_down(false);
        let _second = start(&stream, "b", &database);
        stream.all_done().await;
        let delivered = stream.deliveries();
        frozen.thaw();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(stream.deliveries(), delivered, "its lease is another's");
        assert_eq!(database.total("ann"), 42);
    }

    #[tokio::test(start_paused = true)]
    async fn totals_survive_a_resharding() {
        let (stream, database) = (TestStream::new(1), Database::default());
        let _worker = start(&stream, "a", &database);
        for customer in ["ann", "bob", "cem", "dia"] {
            stream.put(customer, "1");
        }
        stream.reshard(2);
        stream.put("ann", "41");
        stream.all_done().await;
        assert_eq!(database.total("ann"), 42);
        assert_eq!(stream.shards().len(), 2);
    }
}
