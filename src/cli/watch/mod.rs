//! `watch`: shards, workers, lag and moves as they change, in the terminal.
//!
//! What is known is in `model`, what it looks like in `view`; here the table is looked at and keys are read. Keys wait
//! for nothing: calls are made beside them, and may take as long as AWS does.

mod model;
#[cfg(test)]
mod svg;
mod view;

use std::{collections::BTreeSet, io::IsTerminal, sync::Arc, time::Duration};

use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
};
use tokio::task::JoinSet;

use self::model::Model;
use super::{
    args::Watch,
    exit::Trouble,
    lag::{self, Behind},
    output::date,
    place::{self, Place},
};
use crate::{
    clock,
    core::{
        heartbeat::{Incarnation, WorkerRow},
        lease::Lease,
    },
    io::{LeaseStore, RecordSource, Rows},
};

/// How often keys are read: as fast as a person notices.
const KEYS: Duration = Duration::from_millis(50);

pub(super) async fn run(place: &Place, wish: &Watch) -> Result<(), Trouble> {
    if !std::io::stdout().is_terminal() {
        return Err(Trouble::usage("watch draws in a terminal; use list, describe or lag in a script"));
    }
    let store = place.store().await?;
    let rows = place.scan(&*store).await?;
    // Without a stream there is no lag, and all the rest.
    let source = place.source(&rows.leases).ok();
    let mut model = Model::new(place.table()?, place.failover_time);
    model.look(rows, clock::now(), &date(place::now()));
    let mut terminal = ratatui::init();
    let ended = show(&mut terminal, &mut model, place, wish, &store, source).await;
    ratatui::restore();
    ended
}

async fn show(
    terminal: &mut DefaultTerminal,
    model: &mut Model,
    place: &Place,
    wish: &Watch,
    store: &Arc<dyn LeaseStore>,
    source: Option<Arc<dyn RecordSource>>,
) -> Result<(), Trouble> {
    let (mut next_look, mut next_lag) = (clock::now() + wish.interval, clock::now());
    let mut looking: JoinSet<Result<Seen, Trouble>> = JoinSet::new();
    let mut measuring: JoinSet<Result<Vec<(Lease, Behind)>, Trouble>> = JoinSet::new();
    loop {
        let drawn = terminal.draw(|frame| view::draw(frame, model, clock::now()));
        drawn.map_err(|error| Trouble::failed("draw", &error))?;
        while event::poll(Duration::ZERO).map_err(|error| Trouble::failed("read the keys", &error))? {
            let event = event::read().map_err(|error| Trouble::failed("read the keys", &error))?;
            let Event::Key(key) = event else { continue };
            if key.kind != KeyEventKind::Press {
                continue;
            }
            match key.code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                KeyCode::Down | KeyCode::Char('j') => model.scroll(1),
                KeyCode::Up | KeyCode::Char('k') => model.scroll(-1),
                KeyCode::PageDown => model.scroll(20),
                KeyCode::PageUp => model.scroll(-20),
                _ => {}
            }
        }
        if let (Some(source), true) = (&source, measuring.is_empty() && clock::now() >= next_lag) {
            next_lag = clock::now() + wish.lag_interval;
            let (source, leases) = (Arc::clone(source), model.leases());
            measuring.spawn(async move { lag::measure(&source, &leases, lag::pinned(&leases)).await });
        }
        if looking.is_empty() && clock::now() >= next_look {
            next_look = clock::now() + wish.interval;
            let (place, store) = (place.clone(), Arc::clone(store));
            looking.spawn(async move { place.scan(&*store).await.map(Seen::All) });
        }
        tokio::select! {
            biased;
            Some(seen) = looking.join_next() => match seen {
                Ok(Ok(seen)) => {
                    let suspects = take_in(model, seen);
                    if !suspects.is_empty() {
                        let (place, store) = (place.clone(), Arc::clone(store));
                        looking.spawn(async move { place.read_again(&*store, suspects).await.map(Seen::Again) });
                    }
                }
                Ok(Err(trouble)) => model.fail(&trouble.to_string()),
                Err(error) => model.fail(&error.to_string()),
            },
            Some(measured) = measuring.join_next() => match measured {
                Ok(Ok(lag)) => model.measured(lag),
                Ok(Err(trouble)) => model.fail(&trouble.to_string()),
                Err(error) => model.fail(&error.to_string()),
            },
            () = clock::sleep(KEYS) => {}
        }
    }
}

/// What a call has shown.
enum Seen {
    All(Rows),
    /// The rows of workers that seemed silent.
    Again(Vec<(Incarnation, Option<WorkerRow>)>),
}

/// Takes in what was seen; returns the workers whose rows are to be read again, because a look may be stale.
fn take_in(model: &mut Model, seen: Seen) -> BTreeSet<Incarnation> {
    let now = clock::now();
    match seen {
        Seen::All(rows) => {
            model.look(rows, now, &date(place::now()));
            model.suspects(now)
        }
        Seen::Again(rows) => {
            for (incarnation, row) in rows {
                model.confirm(&incarnation, row.as_ref(), now);
            }
            BTreeSet::new()
        }
    }
}
