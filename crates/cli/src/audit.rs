//! `audit verify`: reads logs and keys, and tells what `sealvol_audit` finds in them.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use sealvol_audit::{BadKey, ChainKey, Report, Verifier};
use sealvol_control::client::Client;
use serde::Serialize;
use thiserror::Error;

use crate::args::Verify;
use crate::run::{CommandError, Printer};

/// A line of a log that is longer is none: a record takes hundreds of bytes.
const LINE_MAX: u64 = 1 << 20;

/// Why a log was not checked.
#[derive(Debug, Error)]
pub(crate) enum AuditError {
    /// A file can't be read.
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    /// It holds no key.
    #[error("{}: {source}", path.display())]
    Key { path: PathBuf, source: BadKey },
}

/// What was found, for programs.
#[derive(Serialize)]
struct Verified {
    /// Lines that were read.
    lines: u64,
    /// The number of the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<u64>,
    /// The last, as an anchor for the next time.
    #[serde(skip_serializing_if = "Option::is_none")]
    head: Option<String>,
    /// Lines that a verification key was there for.
    checked_by_key: u64,
    findings: Vec<Finding>,
}

#[derive(Serialize)]
struct Finding {
    first: u64,
    last: u64,
    finding: String,
}

pub(crate) async fn verify(
    client: &Client,
    print: &Printer,
    options: Verify,
) -> Result<(), CommandError> {
    let mut logs = options.logs;
    if logs.is_empty() {
        logs.push(client.status().await?.audit.log);
    }
    let keys = options.keys.iter().map(|path| read_key(path));
    let keys = keys.collect::<Result<Vec<_>, _>>()?;
    let mut verifier = Verifier::new(keys, options.anchors).with_tpm_value(options.tpm_value);
    for path in &logs {
        read_log(path, &mut verifier).map_err(|source| AuditError::File {
            path: path.clone(),
            source,
        })?;
    }
    let verified = Verified::of(verifier.finish());
    let found = verified.findings.len();
    print.answer(&verified, render)?;
    if found > 0 {
        return Err(CommandError::AuditFindings(found));
    }
    Ok(())
}

fn read_key(path: &Path) -> Result<ChainKey, AuditError> {
    let text = std::fs::read_to_string(path).map_err(|source| AuditError::File {
        path: path.to_owned(),
        source,
    })?;
    ChainKey::from_text(&text).map_err(|source| AuditError::Key {
        path: path.to_owned(),
        source,
    })
}

fn read_log(path: &Path, verifier: &mut Verifier) -> io::Result<()> {
    let mut log = BufReader::new(File::open(path)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        if io::Read::take(&mut log, LINE_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        // What is no UTF-8 is no line, and found to be none.
        verifier.line(&String::from_utf8_lossy(&line));
    }
}

impl Verified {
    fn of(report: Report) -> Self {
        let finding = |finding: sealvol_audit::Finding| Finding {
            first: finding.seq,
            last: finding.last,
            finding: finding.what.to_string(),
        };
        Self {
            lines: report.lines,
            first: report.first,
            head: report.head.map(|head| head.to_string()),
            checked_by_key: report.keyed,
            findings: report.findings.into_iter().map(finding).collect(),
        }
    }
}

fn render(verified: &Verified) -> String {
    let mut text = String::new();
    for Finding {
        first,
        last,
        finding,
    } in &verified.findings
    {
        let place = if first == last {
            format!("record {first}")
        } else {
            format!("records {first} to {last}")
        };
        text += &format!("{place}: {finding}\n");
    }
    let keyed = match verified.checked_by_key {
        0 => "none by a verification key".to_owned(),
        keyed if keyed == verified.lines => "each by a verification key".to_owned(),
        keyed => format!("{keyed} of them by a verification key"),
    };
    let from = verified
        .first
        .filter(|&first| first > 1)
        .map(|first| format!(" from number {first} on"))
        .unwrap_or_default();
    text += &format!("{} records{from} checked, {keyed}\n", verified.lines);
    if let Some(head) = &verified.head {
        text += &format!("The last is {head}\n");
    }
    text
}
