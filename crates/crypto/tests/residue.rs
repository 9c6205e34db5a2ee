//! After key set-up and cipher calls, with the residue cleared, no key byte is in readable memory.
//!
//! ```text
//!   parent  derives what must not be found (key, round keys of both directions, MAC keys, the keys
//!           of the wrap) and hands over only hashes of it
//!   child   a worker makes keys, wraps, unwraps, encrypts, clears and blocks; the main thread then
//!           reads all readable memory of the process, the worker's stack included, and compares
//! ```
//!
//! The child never holds what is looked for outside the code under test: key bytes are computed one
//! by one into the locked slot. Two controls show that the search finds what is there: a piece that
//! is planted in ordinary memory, and a worker that has round keys in its own frame.
//! What stays in registers is looked for in `src/residue.rs`.

use std::collections::HashMap;
use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;

use aes::cipher::{BlockCipherEncrypt, KeyInit};
use hkdf::Hkdf;
use sealvol_crypto::locked::{KeyMemory, Policy};
use sealvol_crypto::{
    EncryptionContext, KeyEncryptionKey, SectorCipher, UnitSize, VolumeKey, clear_residue, wrap,
};
use sha2::Sha256;

/// Everything, then `clear_residue`.
const CLEARED: &str = "no_key_byte_is_in_readable_memory_once_the_residue_is_cleared";
/// Key set-up only, which clears by itself.
const SET_UP: &str = "no_key_byte_is_in_readable_memory_after_key_set_up";

/// The control: what is there is found, also on the stack of the worker.
const NOT_CLEARED: &str = "the_same_search_finds_round_keys_that_are_not_cleared";

/// Streams of reproducible key bytes.
const VOLUME_KEY: u64 = 1;
const KEK: u64 = 2;
const CONTROL: u64 = 3;

/// Bytes that are compared at once: a round key.
const PIECE: usize = 16;

fn main() -> ExitCode {
    match std::env::var("RESIDUE_CASE").as_deref() {
        Ok("wrap") => {
            // The nonce is random: the parent needs it to know the keys of this wrap.
            io::stdout()
                .write_all(&wrapped())
                .expect("the parent reads");
            ExitCode::SUCCESS
        }
        Ok(case) => child(case),
        Err(_) => parent(),
    }
}

/// As the standard harness does: `--list` names the cases, a name chooses some.
fn parent() -> ExitCode {
    let mut cases = vec![CLEARED, SET_UP];
    if aes::hardware_accelerated() {
        // The portable cipher leaves its round keys bit-sliced, which the search does not know.
        cases.push(NOT_CLEARED);
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--ignored") {
        cases.clear();
    }
    if arguments.iter().any(|argument| argument == "--list") {
        for case in cases {
            println!("{case}: test");
        }
        return ExitCode::SUCCESS;
    }
    if let Some(name) = arguments.iter().find(|argument| !argument.starts_with('-')) {
        cases.retain(|case| case.contains(name.as_str()));
    }
    let blob = run("wrap", &[]);
    let pieces = pieces(&blob);
    let mut failed = false;
    for case in cases {
        let mut input = blob.clone();
        for (hash, name) in &pieces {
            input.extend_from_slice(format!("{hash} {name}\n").as_bytes());
        }
        let output = String::from_utf8(run(case, &input)).expect("text");
        let found: Vec<String> = output.lines().map(str::to_owned).collect();
        let passed = if case == NOT_CLEARED {
            found.iter().any(|piece| piece.contains("round key"))
        } else {
            // The planted piece, which shows that the search works, and nothing else.
            !found.is_empty() && found.iter().all(|piece| piece.starts_with("control"))
        };
        println!(
            "test {case} ... {} ({} pieces)",
            if passed { "ok" } else { "FAILED" },
            found.len()
        );
        if !passed {
            println!("found: {found:#?}");
        }
        failed |= !passed;
    }
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Runs this program as `case` and gives what it prints.
fn run(case: &str, input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .env("RESIDUE_CASE", case)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(input)
        .expect("the child reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{case}: {}", output.status);
    output.stdout
}

/// A byte of a stream: made one at a time, so that no key is ever assembled in ordinary memory.
fn byte(stream: u64, at: u64) -> u8 {
    // Unknown to the compiler, which would put whole keys among the constants of the program.
    let stream = black_box(stream);
    let mut word = (stream << 32 | at).wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (word ^ word >> 31).to_le_bytes()[0]
}

struct Stream {
    stream: u64,
    at: u64,
    end: u64,
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut count = 0;
        for out in buf {
            if self.at == self.end {
                break;
            }
            *out = byte(self.stream, self.at);
            self.at += 1;
            count += 1;
        }
        Ok(count)
    }
}

fn bytes<const N: usize>(stream: u64) -> [u8; N] {
    std::array::from_fn(|at| byte(stream, at as u64))
}

fn context() -> EncryptionContext {
    EncryptionContext::new([("volume", "v")]).expect("one key")
}

fn volume_key(memory: &std::sync::Arc<KeyMemory>) -> VolumeKey {
    let mut source = Stream {
        stream: VOLUME_KEY,
        at: 0,
        end: 64,
    };
    VolumeKey::read_from(memory, &mut source).expect("a key")
}

fn kek(memory: &std::sync::Arc<KeyMemory>) -> KeyEncryptionKey {
    let mut source = Stream {
        stream: KEK,
        at: 0,
        end: 32,
    };
    KeyEncryptionKey::read_from(memory, &mut source).expect("a key")
}

fn wrapped() -> Vec<u8> {
    let memory = KeyMemory::new(Policy::default()).expect("memory for keys");
    wrap::wrap(&kek(&memory), &[0; 16], 1, &volume_key(&memory), &context())
}

/// Hashes of all that must not be found, with names.
fn pieces(blob: &[u8]) -> Vec<(u64, String)> {
    let (key, kek): ([u8; 64], [u8; 32]) = (bytes(VOLUME_KEY), bytes(KEK));
    let mut pieces = Vec::new();
    let mut add = |name: &str, bytes: &[u8]| {
        for (part, piece) in bytes.chunks_exact(PIECE).enumerate() {
            pieces.push((hash(piece), format!("{name} {part}")));
        }
    };
    add("volume key", &key);
    add("key-encryption key", &kek);
    add("control", &bytes::<PIECE>(CONTROL));
    for (name, half) in [("K1", &key[..32]), ("K2", &key[32..])] {
        let round_keys = expand(half);
        // The first two are the key itself.
        add(&format!("{name} round key"), &round_keys.concat());
        let inverse: Vec<u8> = round_keys[1..14]
            .iter()
            .flat_map(inverse_mix_columns)
            .collect();
        add(&format!("{name} decryption round key"), &inverse);
    }
    for label in ["sealvol v1 superblock mac", "sealvol v1 map mac"] {
        let mut okm = [0; 32];
        let (prk, hkdf) = Hkdf::<Sha256>::extract(None, &key);
        hkdf.expand(label.as_bytes(), &mut okm).expect("32 bytes");
        add("HKDF pseudorandom key", &prk);
        add(label, &okm);
    }
    let mut wrapping = [0; 44];
    let (prk, hkdf) = Hkdf::<Sha256>::extract(Some(&blob[25..57]), &kek);
    hkdf.expand(b"sealvol v1 wrap volume key", &mut wrapping)
        .expect("44 bytes");
    add("HKDF pseudorandom key of the wrap", &prk);
    add("wrapping key", &wrapping[..32]);
    add("wrapping round key", &expand(&wrapping[..32])[2..].concat());
    let mut ghash_key = aes::Block::default();
    aes::Aes256Enc::new_from_slice(&wrapping[..32])
        .expect("a key")
        .encrypt_block(&mut ghash_key);
    add("GHASH key", &ghash_key);
    pieces
}

/// AES-256 key expansion (FIPS 197 section 5.2): 15 round keys.
fn expand(key: &[u8]) -> Vec<[u8; 16]> {
    let mut words: Vec<[u8; 4]> = key
        .chunks(4)
        .map(|word| word.try_into().expect("four bytes"))
        .collect();
    for at in 8..60 {
        let mut word = words[at - 1];
        if at % 8 == 0 {
            word.rotate_left(1);
        }
        if at % 4 == 0 {
            word = word.map(sub_byte);
        }
        if at % 8 == 0 {
            word[0] ^= 1 << (at / 8 - 1);
        }
        words.push(std::array::from_fn(|byte| words[at - 8][byte] ^ word[byte]));
    }
    words
        .chunks(4)
        .map(|four| four.concat().try_into().expect("16 bytes"))
        .collect()
}

/// Product in GF(2^8), x^8 = x^4 + x^3 + x + 1.
fn times(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a = a << 1 ^ if a & 0x80 != 0 { 0x1b } else { 0 };
        b >>= 1;
    }
    product
}

/// The S-box: x^254, then the affine map.
fn sub_byte(byte: u8) -> u8 {
    let inverse = (0..254).fold(1, |power, _| times(power, byte));
    (0..5).fold(0x63, |sum, turn| sum ^ inverse.rotate_left(turn))
}

/// What the decryption schedule makes of a round key (FIPS 197 section 5.3.5).
fn inverse_mix_columns(round_key: &[u8; 16]) -> [u8; 16] {
    std::array::from_fn(|at| {
        let (column, row) = (at / 4 * 4, at % 4);
        [14, 11, 13, 9]
            .into_iter()
            .enumerate()
            .fold(0, |sum, (offset, factor)| {
                sum ^ times(round_key[column + (row + offset) % 4], factor)
            })
    })
}

fn hash(piece: &[u8]) -> u64 {
    let word = |at: usize| u64::from_le_bytes(piece[at..at + 8].try_into().expect("eight bytes"));
    let mixed = word(0).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) ^ word(8);
    mixed.wrapping_mul(0xd6e8_feb8_6659_fd93)
}

fn child(case: &str) -> ExitCode {
    let mut blob = vec![0; wrap::WRAPPED_VOLUME_KEY_BYTES];
    io::stdin().read_exact(&mut blob).expect("the blob");
    let mut list = String::new();
    io::stdin().read_to_string(&mut list).expect("hashes");
    let pieces: HashMap<u64, &str> = list
        .lines()
        .map(|line| line.split_once(' ').expect("hash and name"))
        .map(|(hash, name)| (hash.parse().expect("a hash"), name))
        .collect();
    let (clear, only_set_up) = (case == CLEARED, case == SET_UP);
    let leave = case == NOT_CLEARED;
    let control = bytes::<PIECE>(CONTROL).to_vec();

    let (done, is_done) = mpsc::channel();
    let (release, is_released) = mpsc::channel::<()>();
    let worker = std::thread::spawn(move || {
        let memory = KeyMemory::new(Policy::default()).expect("memory for keys");
        let kek = kek(&memory);
        // Only unwrapped: the keys of a new wrap would be unknown to the search.
        let key = wrap::unwrap(&memory, &kek, &blob, &context()).expect("it unwraps");
        drop(volume_key(&memory));
        let cipher = key.expand();
        if !only_set_up {
            use_cipher(&cipher);
        }
        if clear {
            clear_residue();
        }
        let left = leave.then(|| aes::Aes256Enc::new(&bytes::<32>(VOLUME_KEY).into()));
        black_box(&left);
        done.send(()).expect("the main thread waits");
        let _ = is_released.recv();
        black_box(&left);
        drop((cipher, kek));
    });
    is_done.recv().expect("the worker works");
    let (found, read) = search(&pieces);
    assert!(read > 1 << 20, "only {read} bytes could be read");
    for name in found {
        println!("{name}");
    }
    black_box(&control);
    release.send(()).expect("the worker waits");
    worker.join().expect("the worker ends");
    ExitCode::SUCCESS
}

/// Every kind of cipher and MAC call, by one and by many data units; MAC calls first, which clear up.
fn use_cipher(cipher: &SectorCipher) {
    let mut data = vec![0; 64 << 10];
    black_box((cipher.superblock_mac(&[&data]), cipher.map_mac(&[&data])));
    for unit in [UnitSize::B512, UnitSize::B4096] {
        for len in [unit.bytes(), 4096, data.len()] {
            cipher.encrypt_in_place(unit, 5, &mut data[..len]);
            cipher.decrypt_in_place(unit, 9, &mut data[..len]);
        }
    }
    black_box(&data);
}

/// Reads all readable memory but the locked arenas and gives the names of the pieces in it, and the
/// number of bytes read.
fn search(pieces: &HashMap<u64, &str>) -> (Vec<String>, u64) {
    let memory = File::open("/proc/self/mem").expect("memory");
    let smaps = fs::read_to_string("/proc/self/smaps").expect("smaps");
    let (mut found, mut read) = (Vec::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    let mut range = None;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().expect("a word");
        if let (Some((start, end)), false) = (first.split_once('-'), first.ends_with(':')) {
            let number = |text| u64::from_str_radix(text, 16).expect("an address");
            let readable = words.next().expect("permissions").starts_with('r');
            let kernel = line.ends_with("[vvar]") || line.ends_with("[vvar_vclock]");
            range = (readable && !kernel).then(|| (number(start), number(end)));
        } else if first == "VmFlags:" {
            let locked = words.any(|flag| flag == "lo");
            let Some((mut at, end)) = range.take().filter(|_| !locked) else {
                continue;
            };
            while at < end {
                let len = (end - at).min(buffer.len() as u64);
                let part = &mut buffer[..usize::try_from(len).expect("a buffer")];
                match memory.read_exact_at(part, at) {
                    Ok(()) => read += len,
                    Err(error) => panic!("{line} at {at:x}: {error}"),
                }
                for window in 0..=(part.len() - PIECE) / 4 {
                    let piece = &part[window * 4..window * 4 + PIECE];
                    if let Some(name) = pieces.get(&hash(piece)) {
                        found.push(format!("{name} at {:x}", at + window as u64 * 4));
                    }
                }
                part.fill(0);
                at += len;
            }
        }
    }
    (found, read)
}
