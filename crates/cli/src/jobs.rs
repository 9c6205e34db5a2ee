//! `sealvol job …` and `volume rekey`: jobs as text, and watching one until it has ended.
//!
//! Whoever stops watching, by Ctrl-C or worse, does not stop the job.

use std::io::{self, IsTerminal as _, Write as _};
use std::pin::pin;
use std::time::Duration;

use sealvol_control::api::{self, JobState, VolumeName};
use sealvol_control::client::Client;
use sealvol_control::size::Size;

use crate::args::{Job, Rekey};
use crate::rewrap;
use crate::run::{CommandError, Printer};
use crate::table::{fields, left, right, table};

pub(crate) async fn run(client: &Client, print: &Printer, verb: Job) -> Result<(), CommandError> {
    match verb {
        Job::List => print.answer(&client.jobs().await?, list),
        Job::Show { id } => print.answer(&client.job(id).await?, show),
        Job::Watch { id } => watch(client, print, id).await,
        Job::Cancel { id } => print.answer(&client.cancel_job(id).await?, cancelled),
    }
}

pub(crate) async fn rekey(
    client: &Client,
    print: &Printer,
    options: Rekey,
) -> Result<(), CommandError> {
    let request = api::RekeyVolume {
        key: options.key,
        rate: options.rate.map(Size::bytes),
        with_snapshots: options.with_snapshots,
    };
    let job = client.rekey_volume(&options.name, &request).await?;
    if options.wait {
        return watch(client, print, job.id).await;
    }
    print.answer(&job, begun)
}

/// Tells how a job goes on until it has ended.
pub(crate) async fn watch(client: &Client, print: &Printer, id: u64) -> Result<(), CommandError> {
    let screen = Screen::new(print);
    let mut interrupted = pin!(tokio::signal::ctrl_c());
    let mut told = None;
    loop {
        let job = client.job(id).await.inspect_err(|_| screen.end_line())?;
        if job.state.has_ended() {
            return ended(job, print, &screen);
        }
        if told.as_ref() != Some(&job) {
            screen.tell(&job)?;
        }
        told = Some(job);
        tokio::select! {
            biased;
            _ = &mut interrupted => {
                screen.end_line();
                return Err(CommandError::StoppedWatching(id));
            }
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}

fn ended(job: api::Job, print: &Printer, screen: &Screen) -> Result<(), CommandError> {
    screen.end_line();
    match screen {
        Screen::Lines => line(&job)?,
        Screen::Bar => print.answer(&job, done)?,
    }
    match job.state {
        JobState::Failed => Err(CommandError::JobFailed {
            id: job.id,
            reason: job.reason.unwrap_or_default(),
        }),
        JobState::Cancelled => Err(CommandError::JobCancelled(job.id)),
        JobState::Done | JobState::Running | JobState::Waiting => Ok(()),
    }
}

/// Where the progress of a job is told.
enum Screen {
    /// A terminal: one line that is written over.
    Bar,
    /// A JSON line each time that something has changed.
    Lines,
}

impl Screen {
    fn new(print: &Printer) -> Self {
        if print.is_json() || !io::stdout().is_terminal() {
            Self::Lines
        } else {
            Self::Bar
        }
    }

    fn tell(&self, job: &api::Job) -> io::Result<()> {
        match self {
            Self::Lines => line(job),
            Self::Bar => {
                let mut stdout = io::stdout().lock();
                write!(stdout, "\r{}\x1b[K", bar(job))?;
                stdout.flush()
            }
        }
    }

    fn end_line(&self) {
        if matches!(self, Self::Bar) {
            // What was written over makes room for the last word.
            print!("\r\x1b[K");
        }
    }
}

/// A job in one line for a terminal.
fn bar(job: &api::Job) -> String {
    let percent = percent(job);
    let filled = usize::try_from(percent * BAR / 100).unwrap_or(0);
    let width = usize::try_from(BAR).unwrap_or(0);
    let mut text = format!(
        "[{:<width$}] {percent:3} %  {} of {}",
        "#".repeat(filled),
        Size(job.bytes_done),
        Size(job.bytes_total)
    );
    if let Some(rate) = job.rate {
        text.push_str(&format!("  {}/s", Size(rate)));
        if let Some(seconds) =
            (job.bytes_total - job.bytes_done.min(job.bytes_total)).checked_div(rate)
        {
            text.push_str(&format!("  {} left", minutes(seconds)));
        }
    }
    if let Some(reason) = &job.reason {
        text.push_str(&format!("  {}: {reason}", job.state));
    }
    text
}

fn percent(job: &api::Job) -> u64 {
    let percent = (u128::from(job.bytes_done) * 100).checked_div(u128::from(job.bytes_total));
    // Of nothing to do nothing is done until it has ended.
    let percent = percent.map_or(0, |percent| u64::try_from(percent).unwrap_or(100));
    percent.min(if job.state == JobState::Done { 100 } else { 99 })
}

fn minutes(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}

fn line(job: &api::Job) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, job)?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}

fn begun(job: &api::Job) -> String {
    format!(
        "Job {0}: volume {1} gets another data key. Watch it with `sealvol job watch {0}`\n",
        job.id, job.volume
    )
}

fn cancelled(job: &api::Job) -> String {
    let left = job.reason.as_ref();
    let left = left.map_or_else(String::new, |left| format!(": {left}"));
    format!("Job {} is {}{left}\n", job.id, job.state)
}

/// The last word about a job.
fn done(job: &api::Job) -> String {
    let mut text = format!("Job {} is {}\n", job.id, job.state);
    text.push_str(&result_text(job));
    text
}

fn result_text(job: &api::Job) -> String {
    match &job.result {
        Some(api::JobResult::Rekey(rekeyed)) => rekeyed_text(&job.volume, rekeyed),
        Some(api::JobResult::SnapshotCopy(copied)) => format!(
            "Snapshot {} is there, under data key {}; it has nothing of its source\n",
            copied.snapshot, copied.data_key
        ),
        Some(api::JobResult::Rewrap(rewrapped)) => rewrap::one(rewrapped),
        None => String::new(),
    }
}

fn rekeyed_text(volume: &VolumeName, rekeyed: &api::Rekeyed) -> String {
    let mut text = format!("Volume {volume} is under another data key\n");
    if rekeyed.old_keys_open.is_empty() {
        text.push_str("Its old keys open nothing any more; their wrapped copies are destroyed\n");
    } else {
        text.push_str("Its old keys still open:\n");
        for opened in &rekeyed.old_keys_open {
            text.push_str(&format!(
                "  {}  (data key {})\n",
                opened.name, opened.data_key
            ));
        }
    }
    text
}

fn list(list: &api::JobList) -> String {
    let rows: Vec<_> = list
        .jobs
        .iter()
        .map(|job| {
            let left = match job.state {
                JobState::Running | JobState::Waiting => format!("{} %", percent(job)),
                _ => String::new(),
            };
            [
                job.id.to_string(),
                job.kind.to_string(),
                job.volume.to_string(),
                job.state.to_string(),
                left,
                job.created.clone(),
            ]
        })
        .collect();
    table(
        [
            right("ID"),
            left("KIND"),
            left("VOLUME"),
            left("STATE"),
            right("DONE"),
            left("CREATED"),
        ],
        &rows,
    )
}

fn show(job: &api::Job) -> String {
    let size = |bytes| format!("{} ({bytes} bytes)", Size(bytes));
    let mut pairs = vec![
        ("job", job.id.to_string()),
        ("kind", job.kind.to_string()),
        ("volume", job.volume.to_string()),
        ("state", job.state.to_string()),
    ];
    pairs.extend(job.reason.clone().map(|reason| ("reason", reason)));
    pairs.extend([
        ("created", job.created.clone()),
        ("by", format!("uid {}", job.by)),
    ]);
    pairs.extend(job.ended.clone().map(|ended| ("ended", ended)));
    pairs.extend([
        ("done", size(job.bytes_done)),
        ("in all", size(job.bytes_total)),
    ]);
    pairs.extend(job.rate.map(|rate| ("rate", format!("{}/s", Size(rate)))));
    let limit = job
        .rate_max
        .map(|rate| ("at most", format!("{}/s", Size(rate))));
    pairs.extend(limit);
    let mut text = fields(&pairs);
    text.push_str(&result_text(job));
    text
}

/// How often a job that is watched is asked for.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Characters of a bar.
const BAR: u64 = 30;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn job() -> api::Job {
        api::Job {
            id: 7,
            kind: api::JobKind::Rekey,
            volume: "web".parse().expect("a name"),
            state: JobState::Running,
            reason: None,
            by: 1000,
            created: "2026-02-03T04:05:06Z".to_owned(),
            ended: None,
            bytes_done: 1 << 30,
            bytes_total: 4 << 30,
            rate: Some(256 << 20),
            rate_max: None,
            result: None,
        }
    }

    #[test]
    fn a_bar_tells_what_is_done_how_fast_and_how_long_yet() {
        assert_eq!(
            bar(&job()),
            "[#######                       ]  25 %  1G of 4G  256M/s  0:12 left"
        );
        let waiting = api::Job {
            state: JobState::Waiting,
            reason: Some("the disk is full".to_owned()),
            rate: None,
            bytes_total: 0,
            bytes_done: 0,
            ..job()
        };
        assert_eq!(
            bar(&waiting),
            "[                              ]   0 %  0 of 0  waiting: the disk is full"
        );
        assert_eq!(minutes(3_600 * 26 + 61), "26:01:01");
    }

    #[test]
    fn jobs_are_listed_and_shown_for_people() {
        let jobs = api::JobList { jobs: vec![job()] };
        assert_eq!(
            list(&jobs),
            "ID  KIND   VOLUME  STATE    DONE  CREATED\n \
             7  rekey  web     running  25 %  2026-02-03T04:05:06Z\n"
        );
        let mut ended = job();
        ended.state = JobState::Done;
        ended.ended = Some("2026-02-03T04:06:06Z".to_owned());
        ended.rate = None;
        ended.bytes_done = ended.bytes_total;
        ended.rate_max = Some(200 << 20);
        ended.result = Some(api::JobResult::Rekey(api::Rekeyed {
            data_key: "1111".to_owned(),
            old_data_keys: vec!["2222".to_owned()],
            layers_removed: 0,
            old_keys_open: vec![api::Opened {
                name: "web@monday".to_owned(),
                data_key: "2222".to_owned(),
            }],
        }));
        assert_eq!(
            show(&ended),
            "job:      7\n\
             kind:     rekey\n\
             volume:   web\n\
             state:    done\n\
             created:  2026-02-03T04:05:06Z\n\
             by:       uid 1000\n\
             ended:    2026-02-03T04:06:06Z\n\
             done:     4G (4294967296 bytes)\n\
             in all:   4G (4294967296 bytes)\n\
             at most:  200M/s\n\
             Volume web is under another data key\n\
             Its old keys still open:\n  \
               web@monday  (data key 2222)\n"
        );
        assert!(done(&ended).starts_with("Job 7 is done\nVolume web"));
        ended.result = Some(api::JobResult::SnapshotCopy(api::Copied {
            snapshot: "web@monday".to_owned(),
            data_key: "1111".to_owned(),
            source_data_keys: vec!["2222".to_owned()],
        }));
        assert_eq!(
            done(&ended),
            "Job 7 is done\nSnapshot web@monday is there, under data key 1111; it has nothing of its source\n"
        );
    }
}
