//! Map cells on one thread. Several threads: `tests/schedules`.

use proptest::prelude::*;

use super::Cells;
use crate::block_state::BlockState;

fn state(number: u8) -> BlockState {
    BlockState::from_bits(u64::from(number % 3))
}

proptest! {
    #[test]
    fn cells_behave_like_an_array(changes in prop::collection::vec((0usize..16_384, 1usize..200, 0u8..3), 1..60)) {
        let cells = Cells::uniform(BlockState::Absent);
        let mut model = vec![BlockState::Absent; 16_384];
        for (first, len, number) in changes {
            let end = (first + len).min(16_384);
            cells.set(first..end, state(number));
            model[first..end].fill(state(number));
        }
        let mut at = 0;
        while at < model.len() {
            let (run_state, len) = cells.run(at..model.len());
            let expected = model[at..].iter().take_while(|&&state| state == model[at]).count();
            prop_assert_eq!((run_state, len), (model[at], expected));
            prop_assert_eq!(cells.get(at), model[at]);
            at += len;
        }
    }
}
