//! Messages of `sealvol bench`: how fast this machine and this daemon are, now.
//!
//! What was measured is told in integers of plain units. A measurement says nothing about another machine, and little
//! about this one when it does something else meanwhile.

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// Path of [`CipherReport`].
pub const CIPHER: &str = "/v1/bench/cipher";
/// Path of [`VolumeReport`].
pub const VOLUME: &str = "/v1/bench/volume";

/// What [`Bench::milliseconds`] may be.
pub const MILLISECONDS: RangeInclusive<u64> = 50..=30_000;

/// Ask for a measurement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bench {
    /// How long each row is measured; within [`MILLISECONDS`].
    pub milliseconds: u64,
}

/// What one processor core does with bytes that are in its caches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CipherReport {
    /// Bytes that each call was given.
    pub bytes_per_call: u64,
    /// AES-256-XTS, a row for each size of data unit.
    pub ciphers: Vec<CipherSpeed>,
    /// Copying the same bytes: what no cipher on this core can beat by much.
    pub copy_bytes_per_second: u64,
}

/// The cipher with data units of one size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CipherSpeed {
    /// Bytes of a data unit: the sector size of a volume.
    pub unit: u32,
    /// Plaintext encrypted.
    pub encrypt_bytes_per_second: u64,
    /// Ciphertext decrypted.
    pub decrypt_bytes_per_second: u64,
}

/// What one client got from a temporary volume over the daemon's own socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeReport {
    /// Bytes of the temporary volume, all of them written before.
    pub size: u64,
    /// Where its ciphertext was.
    pub backing: std::path::PathBuf,
    /// How the store was reached.
    pub access: String,
    /// What was measured, in order.
    pub loads: Vec<LoadReport>,
}

/// One load on the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Read or write.
    pub operation: LoadOperation,
    /// At random places; else one after the other.
    pub random: bool,
    /// Bytes of a request.
    pub block: u32,
    /// Requests in flight, of the one connection.
    pub depth: u32,
    /// Requests answered in a second.
    pub iops: u64,
    /// Bytes moved in a second.
    pub bytes_per_second: u64,
    /// Percent of the time that the client's thread was running; none if the kernel does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_percent: Option<u32>,
    /// Percent of the time that the connection's worker thread was running; none if the kernel does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_percent: Option<u32>,
    /// What it could not go faster for.
    pub limit: Limit,
}

/// What a load does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoadOperation {
    /// `NBD_CMD_READ`
    Read,
    /// `NBD_CMD_WRITE`, without FUA or FLUSH
    Write,
}

impl fmt::Display for LoadOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

/// What held a load up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// The client's thread was running all the time: more clients would get more.
    Client,
    /// The connection's worker was running all the time: more connections would get more, if there are more cores.
    Server,
    /// Client or worker waited for a processor that something else had.
    Processors,
    /// Client and worker ran by turns, each waiting for the other.
    Turns,
    /// Neither was running for a good part of the time: the store had to answer.
    Store,
    /// The kernel does not say how long a thread ran.
    Unknown,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Client => "client",
            Self::Server => "server CPU",
            Self::Processors => "busy processors",
            Self::Turns => "client and server by turns",
            Self::Store => "store",
            Self::Unknown => "unknown",
        })
    }
}
