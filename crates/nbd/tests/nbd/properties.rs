//! What holds for any input.

use proptest::prelude::*;
use sealvol_nbd::client::{RawRequest, info_data, meta_context_data};
use sealvol_nbd::wire::*;

use crate::bodies;

/// Option data that is valid, nearly valid, or neither.
fn option_data() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::sample::select(vec!["disk", "image", "", "nothing", "ümlaut"]);
    let queries = vec!["base:", "base:allocation", "base:x", "qemu:", "plain", ""];
    let queries = prop::collection::vec(prop::sample::select(queries), 0..4);
    let valid = prop_oneof![
        Just(Vec::new()),
        name.clone().prop_map(|name| name.as_bytes().to_vec()),
        (name.clone(), prop::collection::vec(0_u16..6, 0..5))
            .prop_map(|(name, items)| info_data(name, &items)),
        (name, queries).prop_map(|(name, queries)| meta_context_data(name, &queries)),
    ];
    prop_oneof![
        4 => valid.clone(),
        1 => (valid, any::<prop::sample::Index>(), any::<u8>()).prop_map(|(mut data, at, byte)| {
            if !data.is_empty() {
                let at = at.index(data.len());
                data[at] = byte;
            }
            data
        }),
        1 => prop::collection::vec(any::<u8>(), 0..64),
        1 => (60_000_usize..70_000).prop_map(|len| vec![0; len]),
    ]
}

/// A client's side of a handshake, mostly well formed.
fn client_bytes() -> impl Strategy<Value = Vec<u8>> {
    let flags = prop_oneof![9 => 1_u32..4, 1 => any::<u32>()];
    let option = prop_oneof![9 => 1_u32..13, 1 => any::<u32>()];
    let length_error = prop_oneof![19 => Just(0_i32), 1 => -3_i32..4, 1 => any::<i32>()];
    let options = prop::collection::vec((option, option_data(), length_error), 0..12);
    (flags, options).prop_map(|(flags, options)| {
        let mut bytes = flags.to_be_bytes().to_vec();
        for (option, data, length_error) in options {
            let length = u32::try_from(data.len())
                .unwrap()
                .wrapping_add_signed(length_error);
            bytes.extend(IHAVEOPT.to_be_bytes());
            bytes.extend(option.to_be_bytes());
            bytes.extend(length.to_be_bytes());
            bytes.extend(data);
        }
        bytes
    })
}

/// A request header, mostly one that means something.
fn request() -> impl Strategy<Value = RawRequest> {
    let flags = prop_oneof![Just(0), 0_u16..32, any::<u16>()];
    let kind = prop_oneof![9 => 0_u16..9, 1 => any::<u16>()];
    let offset = prop_oneof![0_u64..2 << 20, Just(1 << 20), any::<u64>()];
    let length = prop_oneof![
        0_u32..2 << 20,
        Just(1 << 20),
        Just(PAYLOAD_MAX + 1),
        any::<u32>()
    ];
    (flags, kind, any::<u64>(), offset, length).prop_map(|(flags, kind, cookie, offset, length)| {
        RawRequest {
            flags,
            kind,
            cookie,
            offset,
            length,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_chunking_of_a_handshake_gives_the_same_events(
        bytes in client_bytes(),
        step in 1_usize..40,
    ) {
        let whole = bodies::handshake(&bytes, usize::MAX);
        prop_assert_eq!(whole, bodies::handshake(&bytes, step));
    }

    #[test]
    fn random_bytes_never_upset_the_handshake(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        fixed_newstyle in any::<bool>(),
    ) {
        bodies::handshake(&bytes, usize::MAX);
        // Past the flags, random bytes get as far as the first magic number; lead them further.
        let mut lead = u32::from(fixed_newstyle).to_be_bytes().to_vec();
        lead.extend(IHAVEOPT.to_be_bytes());
        lead.extend(bytes);
        bodies::handshake(&lead, usize::MAX);
    }

    #[test]
    fn random_bytes_never_upset_the_gate(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        terms in any::<u16>(),
    ) {
        bodies::transmission(&bytes, terms);
    }

    #[test]
    fn what_passes_the_gate_is_valid_for_every_session(
        requests in prop::collection::vec(request(), 1..20),
        terms in any::<u16>(),
    ) {
        for request in requests {
            bodies::transmission(&request.encode(), terms);
        }
    }
}
