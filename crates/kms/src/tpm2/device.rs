//! The TPM as one batch uses it: the few commands [TPM 2.0 Library, part 3] that sealing takes, over a device or a Unix socket.
//!
//! What always holds: a key goes from locked memory into a command and from an answer into locked memory, and lies nowhere
//! between; every object and session that is made is flushed, also where a command fails; an answer that does not have the
//! form of the specification is refused whole.
//!
//! Commands are sent with plain parameters: on the bus of a TPM that is a chip of its own, a sealed key can be read by who
//! has probes on it (`SECURITY.md`).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use sealvol_control::keychild::PcrBank;
use sealvol_crypto::locked::KeyMemory;
use sealvol_crypto::{KEY_ENCRYPTION_KEY_BYTES, KeyEncryptionKey, KeyError, SecretBytes, random};

/// Bytes of a header, of command and answer.
const HEADER_BYTES: usize = 10;
/// Longest answer that is read into ordinary memory; the specification's maximum.
const ANSWER_MAX: usize = 4096;
/// `TPM_RC_TESTING`, `TPM_RC_RETRY`, `TPM_RC_YIELDED`: the command was not begun, and is to be sent again.
const NOT_NOW: [u32; 3] = [0x90A, 0x922, 0x908];
/// `TPM_RC_NV_UNINITIALIZED`: an index that nothing was ever written to.
const NV_UNINITIALIZED: u32 = 0x14A;
const RESUBMITS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(25);
const NO_SESSIONS: u16 = 0x8001;
const SESSIONS: u16 = 0x8002;
const OWNER: u32 = 0x4000_0001;
const NULL: u32 = 0x4000_0007;
/// An authorization area with an empty password.
const PASSWORD: [u8; 13] = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0];

/// The public area of the storage primary key: ECC P-256, AES-128-CFB; fixedTPM, fixedParent, sensitiveDataOrigin,
/// userWithAuth, noDA, restricted, decrypt. The same each time, so that the TPM makes the same key.
const PRIMARY: [u8; 26] = [
    0, 0x23, 0, 0x0B, 0, 3, 4, 0x72, 0, 0, // ECC, SHA-256, attributes, no policy
    0, 6, 0, 128, 0, 0x43, 0, 0x10, // AES-128-CFB, no scheme
    0, 3, 0, 0x10, 0, 0, 0, 0, // P-256, no KDF, no point
];
/// What a sealed key may be: fixedTPM, fixedParent, adminWithPolicy, noDA. Without userWithAuth, so by the policy only.
const SEALED: u32 = 0x0000_0492;

/// Why a command came to nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// The way to the TPM.
    Io(io::Error),
    /// The TPM says so, to that command.
    Code(u32, &'static str),
    /// The answer has no form that is known.
    Nonsense(&'static str),
    /// The key has no place here.
    Key(KeyError),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What a key is sealed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) bank: PcrBank,
    pub(super) pcrs: Vec<u8>,
    /// An NV index that counts, and where it must stand.
    pub(super) counter: Option<(u32, [u8; 8])>,
}

/// A command: its code and its name.
type Name = (u32, &'static str);

const CREATE: Name = (0x153, "TPM2_Create");
const CREATE_PRIMARY: Name = (0x131, "TPM2_CreatePrimary");
const FLUSH: Name = (0x165, "TPM2_FlushContext");
const LOAD: Name = (0x157, "TPM2_Load");
/// What a refusal of it is known by.
pub(super) const NV_EXTEND_NAME: &str = "TPM2_NV_Extend";
const NV_EXTEND: Name = (0x136, NV_EXTEND_NAME);
const NV_READ: Name = (0x14E, "TPM2_NV_Read");
const POLICY_DIGEST: Name = (0x189, "TPM2_PolicyGetDigest");
const POLICY_NV: Name = (0x149, "TPM2_PolicyNV");
const POLICY_PCR: Name = (0x17F, "TPM2_PolicyPCR");
const START_SESSION: Name = (0x176, "TPM2_StartAuthSession");
const UNSEAL: Name = (0x15E, "TPM2_Unseal");

/// A TPM that answers.
pub(super) struct Tpm {
    way: Way,
}

enum Way {
    Device(File),
    Socket(UnixStream),
}

impl Tpm {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let socket = path.metadata()?.file_type().is_socket();
        let way = if socket {
            Way::Socket(UnixStream::connect(path)?)
        } else {
            Way::Device(OpenOptions::new().read(true).write(true).open(path)?)
        };
        Ok(Self { way })
    }

    /// The storage primary key.
    pub(super) fn primary(&mut self) -> Result<u32, Failure> {
        let mut body = Vec::new();
        body.extend(OWNER.to_be_bytes());
        body.extend(PASSWORD);
        body.extend([0, 4, 0, 0, 0, 0]); // no password, no data of ours
        sized(&mut body, &PRIMARY);
        body.extend([0; 6]); // nothing from outside, no registers recorded
        Fields::of(&self.ask(SESSIONS, CREATE_PRIMARY, &body)?).u32()
    }

    /// Seals `key` under `parent`; gives the public and the private part.
    pub(super) fn seal(
        &mut self,
        parent: u32,
        digest: &[u8],
        key: &KeyEncryptionKey,
        memory: &Arc<KeyMemory>,
    ) -> Result<(Vec<u8>, Vec<u8>), Failure> {
        let mut before = parent.to_be_bytes().to_vec();
        before.extend(PASSWORD);
        before.extend([0, 36, 0, 0, 0, 32]); // no password, then the key
        let mut public = vec![0, 8, 0, 0x0B]; // KEYEDHASH, SHA-256
        public.extend(SEALED.to_be_bytes());
        sized(&mut public, digest);
        public.extend([0, 0x10, 0, 0]); // no scheme, nothing unique
        let mut after = Vec::new();
        sized(&mut after, &public);
        after.extend([0; 6]);
        let length = before.len() + KEY_ENCRYPTION_KEY_BYTES + after.len();
        let command = secret_command(CREATE, length, &before, key, &after, memory)?;
        let answer = self.exchange(command.as_ref(), CREATE.1)?;
        let mut answer = Fields::of(&answer);
        answer.u32()?; // length of the parameters
        let private = answer.sized()?.to_vec();
        Ok((answer.sized()?.to_vec(), private))
    }

    pub(super) fn load(
        &mut self,
        parent: u32,
        public: &[u8],
        private: &[u8],
    ) -> Result<u32, Failure> {
        let mut body = parent.to_be_bytes().to_vec();
        body.extend(PASSWORD);
        sized(&mut body, private);
        sized(&mut body, public);
        Fields::of(&self.ask(SESSIONS, LOAD, &body)?).u32()
    }

    /// What the policy comes to as the machine is now: a sealed key with this digest can be opened.
    pub(super) fn digest(&mut self, policy: &Policy) -> Result<Vec<u8>, Failure> {
        let session = self.session(3, policy)?;
        let body = session.to_be_bytes();
        let answer = self.ask(NO_SESSIONS, POLICY_DIGEST, &body);
        let digest = answer.and_then(|answer| Ok(Fields::of(&answer).sized()?.to_vec()));
        self.flush(session)?;
        digest
    }

    /// The key of a loaded object, if the policy holds.
    pub(super) fn unseal(
        &mut self,
        object: u32,
        policy: &Policy,
        memory: &Arc<KeyMemory>,
    ) -> Result<KeyEncryptionKey, Failure> {
        let session = self.session(1, policy)?;
        let mut body = object.to_be_bytes().to_vec();
        body.extend(9_u32.to_be_bytes());
        body.extend(session.to_be_bytes());
        body.extend([0; 5]); // no nonce, the session ends, no HMAC: nothing secret is in it
        let key = self.unsealed(&body, memory);
        if key.is_err() {
            self.flush(session)?;
        }
        key
    }

    /// The answer is read straight into locked memory.
    fn unsealed(
        &mut self,
        body: &[u8],
        memory: &Arc<KeyMemory>,
    ) -> Result<KeyEncryptionKey, Failure> {
        let locked = |error| Failure::Key(KeyError::Locked(error));
        let mut secret = SecretBytes::new(memory).map_err(locked)?;
        let room = secret
            .grow(SecretBytes::CAPACITY)
            .map_err(|_| Failure::Nonsense("a slot of another size"))?;
        let command = command(SESSIONS, UNSEAL, body);
        let length = self.way.exchange(&command, room, UNSEAL.1)?;
        let mut answer = Fields::of(&room[HEADER_BYTES..length]);
        answer.u32()?;
        let mut key = answer.sized()?;
        KeyEncryptionKey::read_from(memory, &mut key).map_err(Failure::Key)
    }

    /// A session for a policy (1), or a trial of one (3), with the policy carried out.
    fn session(&mut self, kind: u8, policy: &Policy) -> Result<u32, Failure> {
        let mut nonce = [0; 32];
        random(&mut nonce);
        let mut body = [NULL.to_be_bytes(), NULL.to_be_bytes()].concat();
        sized(&mut body, &nonce);
        body.extend([0, 0, kind, 0, 0x10, 0, 0x0B]); // no salt, no encryption, SHA-256
        let answer = self.ask(NO_SESSIONS, START_SESSION, &body)?;
        let session = Fields::of(&answer).u32()?;
        let carried_out = self.carry_out(session, policy);
        if carried_out.is_err() {
            self.flush(session)?;
        }
        carried_out.map(|()| session)
    }

    fn carry_out(&mut self, session: u32, policy: &Policy) -> Result<(), Failure> {
        let mut body = session.to_be_bytes().to_vec();
        body.extend([0, 0]); // the registers as they are
        body.extend(selection(policy));
        self.ask(NO_SESSIONS, POLICY_PCR, &body)?;
        if let Some((index, stands)) = policy.counter {
            let mut body = [
                index.to_be_bytes(),
                index.to_be_bytes(),
                session.to_be_bytes(),
            ]
            .concat();
            body.extend(PASSWORD);
            sized(&mut body, &stands);
            body.extend([0; 4]); // from its beginning, equal
            self.ask(SESSIONS, POLICY_NV, &body)?;
        }
        Ok(())
    }

    /// Where a counter stands.
    pub(super) fn counter(&mut self, index: u32) -> Result<[u8; 8], Failure> {
        let stands = self.nv_read(index, 8)?.try_into();
        stands.map_err(|_| Failure::Nonsense("a counter of another length"))
    }

    /// Where an index that is extended with SHA-256 stands; `None` if it never was.
    pub(super) fn extended(&mut self, index: u32) -> Result<Option<Vec<u8>>, Failure> {
        match self.nv_read(index, 32) {
            Ok(value) => Ok(Some(value)),
            Err(Failure::Code(NV_UNINITIALIZED, _)) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Extends an index by `data`, with an empty password.
    pub(super) fn extend(&mut self, index: u32, data: &[u8]) -> Result<(), Failure> {
        let mut body = [index.to_be_bytes(), index.to_be_bytes()].concat();
        body.extend(PASSWORD);
        sized(&mut body, data);
        self.ask(SESSIONS, NV_EXTEND, &body).map(drop)
    }

    fn nv_read(&mut self, index: u32, bytes: u8) -> Result<Vec<u8>, Failure> {
        let mut body = [index.to_be_bytes(), index.to_be_bytes()].concat();
        body.extend(PASSWORD);
        body.extend([0, bytes, 0, 0]); // from its beginning
        let answer = self.ask(SESSIONS, NV_READ, &body)?;
        let mut answer = Fields::of(&answer);
        answer.u32()?;
        Ok(answer.sized()?.to_vec())
    }

    /// Takes an object or a session out of the TPM.
    pub(super) fn flush(&mut self, handle: u32) -> Result<(), Failure> {
        self.ask(NO_SESSIONS, FLUSH, &handle.to_be_bytes())
            .map(drop)
    }

    /// Nothing secret is in question or answer.
    fn ask(&mut self, tag: u16, name: Name, body: &[u8]) -> Result<Vec<u8>, Failure> {
        self.exchange(&command(tag, name, body), name.1)
    }

    fn exchange(&mut self, command: &[u8], name: &'static str) -> Result<Vec<u8>, Failure> {
        let mut room = [0; ANSWER_MAX];
        let length = self.way.exchange(command, &mut room, name)?;
        Ok(room[HEADER_BYTES..length].to_vec())
    }
}

impl Way {
    fn write_all(&mut self, command: &[u8]) -> io::Result<()> {
        match self {
            Self::Device(file) => file.write_all(command),
            Self::Socket(socket) => socket.write_all(command),
        }
    }

    /// Sends a command until the TPM takes it up, and reads its answer into `room`; gives the answer's length.
    fn exchange(
        &mut self,
        command: &[u8],
        room: &mut [u8],
        name: &'static str,
    ) -> Result<usize, Failure> {
        for _ in 0..RESUBMITS {
            self.write_all(command)?;
            match self.receive(room, name) {
                Err(Failure::Code(code, _)) if NOT_NOW.contains(&code) => thread::sleep(PAUSE),
                other => return other,
            }
        }
        self.write_all(command)?;
        self.receive(room, name)
    }

    /// One answer, if it is no refusal.
    fn receive(&mut self, room: &mut [u8], name: &'static str) -> Result<usize, Failure> {
        let mut got = 0;
        let mut length = HEADER_BYTES;
        while got < length {
            let read = match self {
                // A device gives an answer whole, to one read.
                Self::Device(file) => file.read(&mut room[got..]),
                Self::Socket(socket) => socket.read(&mut room[got..length]),
            };
            match read {
                Ok(0) => return Err(Failure::Io(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => got += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
            if got >= HEADER_BYTES {
                let stated = u32::from_be_bytes([room[2], room[3], room[4], room[5]]);
                length = usize::try_from(stated).unwrap_or(usize::MAX);
                if !(HEADER_BYTES..=room.len()).contains(&length) || got > length {
                    return Err(Failure::Nonsense("an answer of a length that is none"));
                }
            }
        }
        let code = u32::from_be_bytes([room[6], room[7], room[8], room[9]]);
        if code != 0 {
            return Err(Failure::Code(code, name));
        }
        Ok(length)
    }
}

/// What is left of an answer.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn of(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Failure> {
        let split = self.rest.split_at_checked(count);
        let (bytes, rest) = split.ok_or(Failure::Nonsense("an answer that ends too early"))?;
        self.rest = rest;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, Failure> {
        let bytes = self.bytes(4)?;
        Ok(u32::from_be_bytes(bytes.try_into().expect("four bytes")))
    }

    /// Bytes after their length, which is one of 16 bits.
    fn sized(&mut self) -> Result<&'a [u8], Failure> {
        let length = self.bytes(2)?;
        let length = u16::from_be_bytes(length.try_into().expect("two bytes"));
        self.bytes(length.into())
    }
}

/// The policy digest that a sealed object has in its public part.
pub(super) fn sealed_to(public: &[u8]) -> Option<&[u8]> {
    let mut fields = Fields::of(public);
    fields.bytes(8).ok()?; // type, name algorithm, attributes
    fields.sized().ok()
}

fn command(tag: u16, name: Name, body: &[u8]) -> Vec<u8> {
    let mut command = header(tag, name, body.len());
    command.extend(body);
    command
}

fn header(tag: u16, name: Name, body: usize) -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + body).expect("commands are short");
    let mut header = tag.to_be_bytes().to_vec();
    header.extend(length.to_be_bytes());
    header.extend(name.0.to_be_bytes());
    header
}

/// A command with a key in it, in locked memory.
fn secret_command(
    name: Name,
    length: usize,
    before: &[u8],
    key: &KeyEncryptionKey,
    after: &[u8],
    memory: &Arc<KeyMemory>,
) -> Result<SecretBytes, Failure> {
    let locked = |error| Failure::Key(KeyError::Locked(error));
    let mut command = SecretBytes::new(memory).map_err(locked)?;
    let write = |command: &mut SecretBytes| {
        command.push(&header(SESSIONS, name, length)).ok()?;
        command.push(before).ok()?;
        let mut room = command.grow(KEY_ENCRYPTION_KEY_BYTES).ok()?;
        key.write_to(&mut room).ok()?;
        command.push(after).ok()
    };
    write(&mut command).ok_or(Failure::Nonsense("a command that is too long"))?;
    Ok(command)
}

/// Bytes after their length.
fn sized(to: &mut Vec<u8>, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).expect("fields are short");
    to.extend(length.to_be_bytes());
    to.extend(bytes);
}

fn selection(policy: &Policy) -> Vec<u8> {
    let bank: u16 = match policy.bank {
        PcrBank::Sha256 => 0x0B,
        PcrBank::Sha384 => 0x0C,
    };
    let mut bits = [0; 3];
    for &pcr in &policy.pcrs {
        if let Some(byte) = bits.get_mut(usize::from(pcr / 8)) {
            *byte |= 1 << (pcr % 8);
        }
    }
    let mut selection = vec![0, 0, 0, 1];
    selection.extend(bank.to_be_bytes());
    selection.push(3);
    selection.extend(bits);
    selection
}
