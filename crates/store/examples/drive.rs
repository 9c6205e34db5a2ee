//! Drives a file through a store on one thread, to hold it against fio on the same file.
//!
//! ```text
//! drive FILE cached|direct read|write random|sequential BYTES DEPTH SECONDS
//! ```
//! Prints operations and megabytes a second. The file is there, and stays as long as it is.

#[path = "../tests/worker/mod.rs"]
mod worker;

use std::error::Error;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use sealvol_store::{Access, Caching, Durability, FileStore, IoBuf, Store};

struct Job {
    write: bool,
    random: bool,
    bytes: usize,
    depth: usize,
    time: Duration,
}

/// Where the next operation goes.
struct Offsets {
    random: bool,
    state: u64,
    blocks: u64,
    bytes: u64,
}

impl Offsets {
    fn next(&mut self) -> u64 {
        if self.random {
            // xorshift64 (Marsaglia 2003)
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
        } else {
            self.state += 1;
        }
        self.state % self.blocks * self.bytes
    }
}

async fn one(store: &FileStore, write: bool, buf: IoBuf, offset: u64) -> IoBuf {
    let (buf, result) = if write {
        store.write_at(buf, offset, Durability::Volatile).await
    } else {
        store.read_at(buf, offset).await
    };
    result.expect("the disk works");
    buf
}

/// Operations done, and the time they took.
async fn drive(store: &FileStore, job: &Job) -> (u64, Duration) {
    let mut offsets = Offsets {
        random: job.random,
        state: 88_172_645_463_325_252,
        blocks: store.len() / job.bytes as u64,
        bytes: job.bytes as u64,
    };
    let began = Instant::now();
    let mut flying = FuturesUnordered::new();
    for _ in 0..job.depth {
        let mut buf = IoBuf::zeroed(job.bytes);
        buf.fill(0x5A);
        flying.push(one(store, job.write, buf, offsets.next()));
    }
    let mut done = 0;
    while let Some(buf) = flying.next().await {
        done += 1;
        if began.elapsed() < job.time {
            flying.push(one(store, job.write, buf, offsets.next()));
        }
    }
    (done, began.elapsed())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, caching, what, order, bytes, depth, seconds] = arguments.as_slice() else {
        return Err(
            "drive FILE cached|direct read|write random|sequential BYTES DEPTH SECONDS".into(),
        );
    };
    let caching = if caching == "direct" {
        Caching::Direct
    } else {
        Caching::PageCache
    };
    let job = Job {
        write: what == "write",
        random: order == "random",
        bytes: bytes.parse()?,
        depth: depth.parse()?,
        time: Duration::from_secs(seconds.parse()?),
    };
    let store = FileStore::open_file(path, Access::Writable, caching)?;
    let (done, time) = worker::run(drive(&store, &job));
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let rate = done as f64 / time.as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let megabytes = rate * job.bytes as f64 / 1e6;
    println!(
        "{rate:.0} operations/s, {megabytes:.0} MB/s ({})",
        store.access()
    );
    Ok(())
}
