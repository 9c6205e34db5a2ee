//! Slots: taken zeroed, kept apart, wiped, taken again; the same for both kinds of memory.

use super::*;

fn kinds() -> [Arc<Region>; 2] {
    let secret = Region::secret(ARENA_BYTES).or_else(|error| match error {
        // A kernel without it: the fallback is tested twice.
        RegionError::NoSecretMemory(_) => Region::locked(ARENA_BYTES),
        other => Err(other),
    });
    [secret, Region::locked(ARENA_BYTES)].map(|region| Arc::new(region.expect("an arena")))
}

fn take(region: &Arc<Region>) -> Slot {
    Region::take(region).expect("a free slot")
}

#[test]
fn a_slot_is_wiped_before_it_is_taken_again() {
    for region in kinds() {
        let mut slot = take(&region);
        slot.bytes_mut().fill(0xa5);
        let place = slot.bytes().as_ptr();
        drop(slot);
        assert_eq!(region.slots_taken(), 0);
        let again = take(&region);
        assert_eq!(again.bytes().as_ptr(), place, "the same memory");
        assert_eq!(*again.bytes(), [0; SLOT_BYTES]);
    }
}

#[test]
fn every_slot_of_a_region_is_its_own_memory() {
    for region in kinds() {
        let mut slots: Vec<Slot> = std::iter::from_fn(|| Region::take(&region)).collect();
        assert_eq!(slots.len(), ARENA_BYTES / SLOT_BYTES);
        assert_eq!(region.slots_taken(), slots.len());
        for (number, slot) in slots.iter_mut().enumerate() {
            assert_eq!(*slot.bytes(), [0; SLOT_BYTES]);
            slot.bytes_mut().fill(number.to_le_bytes()[0]);
        }
        for (number, slot) in slots.iter().enumerate() {
            assert_eq!(*slot.bytes(), [number.to_le_bytes()[0]; SLOT_BYTES]);
        }
    }
}

#[test]
fn a_value_takes_the_place_of_the_bytes_it_is_made_from() {
    for region in kinds() {
        let mut slot = take(&region);
        slot.bytes_mut().fill(0xa5);
        let start = slot.bytes().as_ptr();
        let value = slot.place(|bytes| [bytes[0]; 100]);
        assert_eq!((value.as_ptr(), *value), (start, [0xa5; 100]));
        assert_eq!(
            value.slot_bytes()[100..],
            [0; SLOT_BYTES - 100],
            "the raw bytes are wiped"
        );
        drop(value);
        assert_eq!(*take(&region).bytes(), [0; SLOT_BYTES]);
    }
}

#[test]
fn a_value_is_dropped_once_and_its_slot_given_back() {
    let dropped = Arc::new(());
    for region in kinds() {
        let value = take(&region).place(|_| Arc::clone(&dropped));
        assert_eq!((Arc::strong_count(&dropped), region.slots_taken()), (2, 1));
        drop(value);
        assert_eq!((Arc::strong_count(&dropped), region.slots_taken()), (1, 0));
    }
}

#[test]
fn a_region_outlives_its_memory_as_long_as_a_slot_is_in_use() {
    let memory = KeyMemory::new(Policy::default()).expect("memory for keys");
    let mut slot = memory.slot().expect("a slot");
    drop(memory);
    slot.bytes_mut().fill(1);
    assert_eq!(*slot.bytes(), [1; SLOT_BYTES]);
}
