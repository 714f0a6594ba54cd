//! `export` and `import`: rows as they are stored, whoever wrote what into them.

use std::{fs, io::Read};

use super::{
    args::{Export, Import},
    exit::{Exit, Trouble},
    output,
    place::Place,
};
use crate::io::{
    LeaseError,
    lease_rows::{LeaseRows, Row},
};

/// A holder renews every few seconds: it is faster than us now and then, not always.
const TRIES: usize = 10;

pub(super) async fn export(place: &Place, wish: &Export) -> Result<(), Trouble> {
    place.store().await?;
    let rows = place.rows().all(place.table()?).await?;
    let text: String = rows.iter().map(|row| row.to_line() + "\n").collect();
    match &wish.file {
        None => output::text(&text),
        Some(file) => {
            fs::write(file, text)
                .map_err(|error| Trouble::failed(&format!("write {}", file.display()), &error))?;
            output::text(&format!("{} rows exported\n", rows.len()))
        }
    }
}

pub(super) async fn import(place: &Place, wish: &Import) -> Result<(), Trouble> {
    let text = match &wish.file {
        Some(file) => fs::read_to_string(file)
            .map_err(|error| Trouble::usage(format!("cannot read {}: {error}", file.display())))?,
        None => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|error| Trouble::failed("read the rows", &error))?;
            text
        }
    };
    // All of it is read before any of it is written.
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let rows = lines.map(|(n, line)| {
        Row::from_line(line).map_err(|error| Trouble::usage(format!("line {}: {error}", n + 1)))
    });
    let rows: Vec<Row> = rows.collect::<Result<_, _>>()?;
    place.store().await?;
    let (table, store) = (place.table()?, place.rows());
    let (mut made, mut replaced, mut same, mut kept) = (0, 0, 0, Vec::new());
    for row in &rows {
        match put(&store, table, row, wish).await? {
            Put::Made => made += 1,
            Put::Replaced => replaced += 1,
            Put::Same => same += 1,
            Put::Kept(why) => kept.push(format!("{}: {why}", row.key())),
        }
    }
    let would = if wish.dry_run { " (dry run: nothing was written)" } else { "" };
    let left = same + kept.len();
    output::text(&format!("{made} rows made, {replaced} replaced, {left} left as they are{would}\n"))?;
    match kept.is_empty() {
        true => Ok(()),
        false => Err(Trouble::new(Exit::Partial, format!("left as they are: {}", kept.join("; ")))),
    }
}

enum Put {
    Made,
    Replaced,
    Same,
    Kept(&'static str),
}

async fn put(store: &LeaseRows, table: &str, row: &Row, wish: &Import) -> Result<Put, LeaseError> {
    for _ in 0..TRIES {
        let Some(present) = store.get(table, row.key()).await? else {
            if wish.dry_run || store.put(table, row, None).await? {
                return Ok(Put::Made);
            }
            continue;
        };
        if present == *row {
            return Ok(Put::Same);
        }
        if !wish.overwrite {
            return Ok(Put::Kept("is there; --overwrite replaces it"));
        }
        let (Some(lease), Some(exported)) = (present.lease(), row.lease()) else {
            return Ok(Put::Kept("is no lease, and only leases are replaced"));
        };
        if lease.holder().is_some() && !wish.force {
            return Ok(Put::Kept("is held; --force replaces it and fences the holder"));
        }
        // Above both counters: neither the holder of now nor the one of the file meets its own.
        let fenced = row.fenced(lease.counter.max(exported.counter) + 1);
        if wish.dry_run || store.put(table, &fenced, Some(lease.counter)).await? {
            return Ok(Put::Replaced);
        }
    }
    Ok(Put::Kept("changes all the time"))
}
