//! Map cells: blocks of one word that several threads change, each its own.

use std::sync::Mutex;

use shuttle::thread;

use crate::block_state::BlockState::{self, Absent, Data, Zero};
use crate::cells::Cells;
use crate::under_schedules;

/// What each thread makes of its blocks, in this order.
const CHANGES: [BlockState; 3] = [Zero, Data, Zero];

#[test]
fn no_change_of_a_block_undoes_one_of_its_neighbour() {
    under_schedules(|| {
        let cells = Cells::uniform(Absent);
        let cells = &cells;
        thread::scope(|scope| {
            // On both sides of a border between words, and in the middle of one.
            for (blocks, state) in [(30..34, Data), (34..36, Zero), (29..30, Data)] {
                scope.spawn(move || {
                    cells.set(blocks.clone(), Zero);
                    cells.set(blocks, state);
                });
            }
        });
        assert_eq!(cells.words().last(), Some(0), "a word that nobody changes");
        let states: Vec<_> = (28..37).map(|block| cells.get(block)).collect();
        assert_eq!(
            states,
            [Absent, Data, Data, Data, Data, Data, Zero, Zero, Absent]
        );
    });
}

#[test]
fn a_block_is_seen_in_its_states_in_their_order_and_never_absent_again() {
    under_schedules(|| {
        let (cells, seen) = (Cells::uniform(Absent), Mutex::new(Vec::new()));
        let (cells, seen) = (&cells, &seen);
        thread::scope(|scope| {
            for blocks in [0..1, 1..3] {
                scope.spawn(move || {
                    for state in CHANGES {
                        cells.set(blocks.clone(), state);
                    }
                });
            }
            scope.spawn(move || {
                for _ in 0..4 {
                    let state = cells.get(1);
                    seen.lock().unwrap().push(state);
                }
            });
        });
        let seen = seen.lock().unwrap().clone();
        let mut ahead = [Absent].iter().chain(&CHANGES).peekable();
        for state in &seen {
            while ahead.peek().is_some_and(|next| *next != state) {
                ahead.next();
            }
            assert!(ahead.peek().is_some(), "{seen:?}");
        }
    });
}

#[test]
fn a_run_of_blocks_that_nobody_changes_is_seen_whole_beside_changes() {
    under_schedules(|| {
        let cells = Cells::of_words(Cells::uniform(Data).words());
        let cells = &cells;
        thread::scope(|scope| {
            scope.spawn(move || cells.set(0..1, Zero));
            scope.spawn(move || cells.set(95..96, Zero));
            scope.spawn(move || {
                let (state, blocks) = cells.run(1..95);
                assert_eq!((state, blocks), (Data, 94));
                let (state, blocks) = cells.run(1..96);
                assert!(state == Data && (94..=95).contains(&blocks));
            });
        });
    });
}
