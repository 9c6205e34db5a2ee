//! What is kept of a stack: found again as it was, and within its share of the cache.

use super::{Finding, MapCache, Resolved, Run, Runs};
use crate::geometry::PAGE_BLOCKS;
use crate::page::BlockState;

const CACHE: usize = 1 << 20;

/// From a block on, as if each had been said by a layer of its own: so many blocks, their state, its depth.
fn finding(first: u64, parts: &[(u64, BlockState, usize)]) -> Finding {
    let end = parts.iter().fold(first, |end, (blocks, ..)| end + blocks);
    let mut finding = Finding::new(first..end);
    let mut first = first;
    for &(blocks, state, depth) in parts {
        let mut said = Runs::default();
        said.push(Run {
            first,
            blocks,
            state,
            depth: 0,
        });
        finding.enter(&said, depth);
        first += blocks;
    }
    finding
}

fn runs(finding: &Finding) -> Vec<Run> {
    let mut runs = Runs::default();
    finding.push_to(&finding.blocks(), &mut runs);
    runs.iter().collect()
}

fn found(resolved: &Resolved, first: u64, blocks: u64) -> Option<Vec<Run>> {
    let mut found = Runs::default();
    let known = resolved.look_up(first..first + blocks, &mut found);
    known.then(|| found.iter().collect())
}

#[test]
fn every_state_at_every_depth_is_found_as_it_was_kept_across_a_border_of_pages() {
    let cache = MapCache::new(CACHE);
    let resolved = Resolved::of(127, &cache).unwrap();
    for depth in [1, 2, 64, 126, 127] {
        let kept = finding(
            PAGE_BLOCKS - 5,
            &[
                (3, BlockState::Data, depth),
                (4, BlockState::Zero, depth),
                (1, BlockState::Absent, 5),
                (2, BlockState::Data, 128 - depth),
            ],
        );
        let lens: Vec<_> = runs(&kept)
            .iter()
            .map(|run| (run.blocks, run.state, run.depth))
            .collect();
        let depth = u32::try_from(depth).unwrap();
        let expected = [
            (3, BlockState::Data, depth),
            (4, BlockState::Zero, depth),
            (1, BlockState::Absent, 0),
            (2, BlockState::Data, 128 - depth),
        ];
        assert_eq!(lens, expected);
        resolved.keep(&kept);
        assert_eq!(found(&resolved, PAGE_BLOCKS - 5, 10), Some(runs(&kept)));
    }
    assert_eq!(found(&resolved, PAGE_BLOCKS - 6, 2), None);
    assert_eq!(found(&resolved, PAGE_BLOCKS + 4, 2), None);
}

#[test]
fn what_is_kept_stays_within_its_share_and_is_given_back_with_its_stack() {
    let cache = MapCache::new(CACHE);
    {
        let stacks = [(); 2].map(|()| Resolved::of(5, &cache).unwrap());
        for page in 0..200 {
            for resolved in &stacks {
                resolved.keep(&finding(page * PAGE_BLOCKS, &[(1, BlockState::Data, 3)]));
                assert!(cache.resident() <= CACHE / 4, "{}", cache.resident());
            }
        }
        assert!(cache.resident() > 0);
        let last = found(&stacks[1], 199 * PAGE_BLOCKS, 1);
        assert!(last.is_some(), "what was just kept is there");
    }
    assert_eq!(cache.resident(), 0);
}

#[test]
fn shallow_stacks_and_those_too_deep_to_name_keep_nothing() {
    let cache = MapCache::new(CACHE);
    assert!(Resolved::of(1, &cache).is_none());
    assert!(Resolved::of(128, &cache).is_none());
}

#[test]
fn the_first_layer_that_says_something_decides() {
    let mut found = Finding::new(10..13);
    let said = |state, first, blocks| {
        let mut runs = Runs::default();
        runs.push(Run {
            first,
            blocks,
            state,
            depth: 0,
        });
        runs
    };
    found.enter(&said(BlockState::Zero, 11, 1), 1);
    found.enter(&said(BlockState::Data, 10, 2), 2);
    assert!(!found.is_done());
    found.enter(&said(BlockState::Data, 10, 3), 3);
    assert!(found.is_done());
    let depths: Vec<_> = runs(&found)
        .iter()
        .map(|run| (run.state, run.depth))
        .collect();
    assert_eq!(
        depths,
        [
            (BlockState::Data, 2),
            (BlockState::Zero, 1),
            (BlockState::Data, 3)
        ]
    );
}
