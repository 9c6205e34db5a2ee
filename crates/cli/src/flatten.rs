//! `volume flatten --materialise`: asks for one part after the other, and tells how far it has come.
//!
//! The daemon remembers nothing of it: the volume's map does. So whoever stops this, by Ctrl-C or worse, leaves a volume in
//! good order, and running it again goes on.

use std::io::{self, IsTerminal as _, Write as _};
use std::pin::pin;

use sealvol_control::api::{self, VolumeName};
use sealvol_control::client::Client;
use sealvol_control::size::Size;
use serde::Serialize;

use crate::run::CommandError;

/// Passes over the volume: a second one finds what clients discarded behind the first.
const PASSES: usize = 3;

/// Where progress is told: JSON lines, a line that is written over on a terminal, or the first and the last word only.
pub(crate) struct Progress {
    json: bool,
    terminal: bool,
}

/// A JSON line while the work goes on.
#[derive(Serialize)]
struct Line {
    written: u64,
    left: u64,
    done: bool,
}

/// Fills every block of an attached volume that holds no data.
pub(crate) async fn materialise(
    client: &Client,
    progress: Progress,
    name: &VolumeName,
) -> Result<(), CommandError> {
    let mut plan = client.flatten_plan(name).await?;
    progress.begin(name, &plan)?;
    let mut interrupted = pin!(tokio::signal::ctrl_c());
    let mut written = 0;
    for _ in 0..PASSES {
        let mut left = plan.zeros;
        let mut from = Some(0);
        while let Some(at) = from {
            let request = api::FlattenVolume {
                materialise: true,
                from: at,
                bytes_max: None,
            };
            let part = tokio::select! {
                biased;
                _ = &mut interrupted => {
                    progress.end_line();
                    return Err(CommandError::Stopped { name: name.clone(), left });
                }
                part = client.flatten_volume(name, &request) => part,
            };
            let part = part.inspect_err(|_| progress.end_line())?;
            written += part.written;
            left = left.saturating_sub(part.written);
            progress.part(written, left)?;
            from = part.next;
        }
        plan = client.flatten_plan(name).await?;
        if plan.zeros == 0 {
            progress.end_line();
            return Ok(progress.done(name, written)?);
        }
    }
    progress.end_line();
    Err(CommandError::Discarded {
        name: name.clone(),
        left: plan.zeros,
    })
}

impl Progress {
    pub(crate) fn new(json: bool) -> Self {
        Self {
            json,
            terminal: io::stderr().is_terminal(),
        }
    }

    fn begin(&self, name: &VolumeName, plan: &api::FlattenPlan) -> io::Result<()> {
        if self.json {
            return line(plan);
        }
        let free = plan
            .free
            .map_or_else(String::new, |free| format!(", {} free there", Size(free)));
        let mut stdout = io::stdout().lock();
        let zeros = plan.zeros;
        writeln!(
            stdout,
            "Volume {name}: {} ({zeros} bytes) of encrypted zeros to be written{free}",
            Size(zeros)
        )?;
        stdout.flush()
    }

    fn part(&self, written: u64, left: u64) -> io::Result<()> {
        if self.json {
            return line(&Line {
                written,
                left,
                done: false,
            });
        }
        if self.terminal {
            let percent = (u128::from(written) * 100)
                .checked_div(u128::from(written + left))
                .unwrap_or(100);
            eprint!(
                "\r{percent:3} %  {} written, {} left   ",
                Size(written),
                Size(left)
            );
        }
        Ok(())
    }

    /// Ends the line that is written over.
    fn end_line(&self) {
        if self.terminal && !self.json {
            eprintln!();
        }
    }

    fn done(&self, name: &VolumeName, written: u64) -> io::Result<()> {
        if self.json {
            return line(&Line {
                written,
                left: 0,
                done: true,
            });
        }
        writeln!(
            io::stdout(),
            "Volume {name} holds data in every block; {written} bytes written"
        )
    }
}

fn line<T: Serialize>(message: &T) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, message)?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}
