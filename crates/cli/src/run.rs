//! Carries out what was typed: one call to the daemon, one answer, one exit code.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::CommandFactory as _;
use sealvol_control::api::{self, ErrorKind, SnapshotRef, VolumeName};
use sealvol_control::client::{Client, ClientError};
use serde::Serialize;
use thiserror::Error;

use crate::args::{
    Adopt, Attach, Audit, Cli, Create, Exported, GivenKey, Limit, Noun, RevokeMode, Volume,
};
use crate::audit::{self, AuditError};
use crate::doctor;
use crate::flatten::{self, Progress};
use crate::jobs;
use crate::render::{self, bench};
use crate::{key, snapshot};

/// Why a command did not do what it says.
#[derive(Debug, Error)]
pub(crate) enum CommandError {
    /// A log was not checked.
    #[error("audit: {0}")]
    Audit(#[from] AuditError),
    /// A log is not as the daemon wrote it.
    #[error("audit: {0} findings: this log is not as the daemon wrote it")]
    AuditFindings(usize),
    /// The daemon did not, or could not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A file that was named cannot be read, or be made.
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    /// The answer could not be printed.
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
    /// A path that was given cannot be made absolute.
    #[error("{0}: {1}")]
    Path(&'static str, io::Error),
    /// A key can't be read from there.
    #[error("{}: {_1}", .0.display())]
    KeySource(PathBuf, io::Error),
    /// Materialising was interrupted.
    #[error("volume {name}: stopped with {left} bytes of zeros left to write")]
    Stopped { name: VolumeName, left: u64 },
    /// Clients gave blocks back as fast as they were filled.
    #[error("volume {name}: {left} bytes were discarded or zeroed meanwhile, and hold no data")]
    Discarded { name: VolumeName, left: u64 },
    /// Something keeps the daemon from its work.
    #[error("doctor: {0} failures")]
    Ill(usize),
    /// Of several volumes some were not rewrapped; each was told.
    #[error("{left} of {count} volumes are not rewrapped")]
    NotAll {
        left: usize,
        count: usize,
        kind: ErrorKind,
    },
    /// What can be accepted of a volume, asked for with a snapshot.
    #[error("snapshot {0}: --accept-loss and --accept-rollback are about a volume's newest layer")]
    NotForSnapshots(SnapshotRef),
    /// A job that was watched did not do its work.
    #[error("job {id}: it failed: {reason}")]
    JobFailed { id: u64, reason: String },
    /// A job that was watched was ended early.
    #[error("job {0}: it was cancelled")]
    JobCancelled(u64),
    /// Watching was interrupted.
    #[error("job {0}: it goes on unwatched")]
    StoppedWatching(u64),
    /// The self-tests ran, and one failed.
    #[error("self-test: {0}")]
    SelfTest(String),
}

/// Runs the command and reports its failure, if any, on standard error.
pub(crate) async fn run(cli: Cli) -> ExitCode {
    let json = cli.json;
    match carry_out(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads has seen enough (`sealvol volume map | head`).
        Err(CommandError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => report(&error, json),
    }
}

async fn carry_out(cli: Cli) -> Result<(), CommandError> {
    let client = Client::new(cli.control);
    let print = Printer { json: cli.json };
    match cli.noun {
        Noun::Volume(verb) => volume(&client, &print, verb).await,
        Noun::Snapshot(verb) => snapshot::run(&client, &print, verb).await,
        Noun::Job(verb) => jobs::run(&client, &print, verb).await,
        Noun::Key(verb) => key::run(&client, &print, verb).await,
        Noun::Audit(Audit::Verify(options)) => audit::verify(&client, &print, options).await,
        Noun::Status => print.answer(&client.status().await?, render::status),
        Noun::Doctor => doctor::run(&client, &print).await,
        Noun::Stop { drop_ephemeral } => {
            let request = api::Stop { drop_ephemeral };
            print.answer(&client.stop(&request).await?, render::stopping)
        }
        Noun::Selftest => {
            let report = client.selftest().await?;
            print.answer(&report, render::selftest)?;
            report
                .failure
                .map_or(Ok(()), |failure| Err(CommandError::SelfTest(failure)))
        }
        Noun::Bench { seconds } => bench(&client, &print, seconds).await,
        Noun::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "sealvol", &mut script);
            Ok(io::stdout().write_all(&script)?)
        }
    }
}

async fn volume(client: &Client, print: &Printer, verb: Volume) -> Result<(), CommandError> {
    match verb {
        Volume::Create(create) => {
            let given = create.given.open()?;
            let request = create_request(create)?;
            let created = match &given {
                Some(key) => client.create_volume_with_key(&request, key.as_fd()).await,
                None => client.create_volume(&request).await,
            };
            print.answer(&created?, render::created)
        }
        Volume::List => print.answer(&client.volumes().await?, render::volume_list),
        Volume::Show { name } => print.answer(&client.volume(&name).await?, render::volume),
        Volume::Attach(options) => attach(client, print, options).await,
        Volume::Detach { name, force } => match name {
            Exported::Snapshot(name) => snapshot::detach(client, print, &name, force).await,
            Exported::Volume(name) => {
                let request = api::DetachVolume { force };
                let detached = client.detach_volume(&name, &request).await?;
                print.answer(&detached, render::detached)
            }
        },
        Volume::Resize { name, size } => {
            let request = api::ResizeVolume { size: size.bytes() };
            print.answer(
                &client.resize_volume(&name, &request).await?,
                render::resized,
            )
        }
        Volume::Limit(Limit { name, rates }) => {
            let request = api::LimitVolume {
                iops: rates.iops,
                bandwidth: rates.bandwidth,
                burst_seconds: rates.burst,
            };
            print.answer(
                &client.limit_volume(&name, &request).await?,
                render::limited,
            )
        }
        Volume::OnRevoke(options) => {
            let request = match options.mode {
                RevokeMode::Hold => api::OnRevoke::Hold,
                RevokeMode::Enforce => api::OnRevoke::Enforce {
                    every_seconds: options.every,
                    grace_seconds: options.grace,
                },
            };
            let set = client.set_on_revoke(&options.name, &request).await?;
            print.answer(&set, render::on_revoke)
        }
        Volume::Flatten { name, materialise } => {
            if materialise {
                return flatten::materialise(client, Progress::new(print.json), &name).await;
            }
            let request = api::FlattenVolume::default();
            let flattened = client.flatten_volume(&name, &request).await?;
            print.answer(&flattened, |flattened| render::flattened(&name, flattened))
        }
        Volume::Rekey(options) => jobs::rekey(client, print, options).await,
        Volume::Adopt(Adopt {
            name,
            layer_dir,
            key,
            device,
        }) => {
            let request = api::AdoptVolume {
                layer_dir: absolute("--layer-dir", layer_dir)?,
                key,
                device: device.map(|path| absolute("--device", path)).transpose()?,
            };
            print.answer(
                &client.adopt_volume(&name, &request).await?,
                render::adopted,
            )
        }
        Volume::Delete {
            name,
            shred,
            require_proof,
            snapshots,
        } => {
            let request = api::DeleteVolume {
                shred,
                require_proof,
                snapshots,
            };
            print.answer(
                &client.delete_volume(&name, &request).await?,
                render::deleted,
            )
        }
        Volume::Map { name } => print.answer(&client.volume_map(&name).await?, render::volume_map),
    }
}

async fn attach(client: &Client, print: &Printer, options: Attach) -> Result<(), CommandError> {
    let name = match &options.name {
        Exported::Snapshot(name) => {
            let name = name.clone();
            return snapshot::attach(client, print, &name, options).await;
        }
        Exported::Volume(name) => name,
    };
    let request = api::AttachVolume {
        read_only: options.read_only,
        direct: options.direct,
        allow: options.allow.clone(),
        accept_loss: options.accept_loss,
        accept_rollback: options.accept_rollback,
    };
    let attached = match options.given.open()? {
        Some(key) => {
            let key = key.as_fd();
            client.attach_volume_with_key(name, &request, key).await
        }
        None => client.attach_volume(name, &request).await,
    };
    print.answer(&attached?, render::attached)
}

/// One JSON document for both parts; as text, the first part while the second is measured.
async fn bench(client: &Client, print: &Printer, milliseconds: u64) -> Result<(), CommandError> {
    let request = api::bench::Bench { milliseconds };
    let cipher = client.bench_cipher(&request).await?;
    if print.json {
        let volume = client.bench_volume(&request).await?;
        return print.answer(&Bench { cipher, volume }, |_| String::new());
    }
    print.answer(&cipher, bench::cipher)?;
    print.answer(&client.bench_volume(&request).await?, bench::volume)
}

/// What `bench` prints as JSON.
#[derive(Serialize)]
struct Bench {
    cipher: api::bench::CipherReport,
    volume: api::bench::VolumeReport,
}

fn create_request(create: Create) -> Result<api::CreateVolume, CommandError> {
    let backing = create.backing.map(|path| absolute("--backing", path));
    let layers_dir = create.layers_dir.map(|path| absolute("--layers-dir", path));
    Ok(api::CreateVolume {
        name: create.name,
        size: create.size.map(|size| size.bytes()),
        key: create.key,
        key_set: create.key_set,
        sector_size: create.sector_size,
        backing: backing.transpose()?,
        layers_dir: layers_dir.transpose()?,
        from_snapshot: create.from_snapshot,
        ephemeral: create.ephemeral,
        fresh_key: create.fresh_key.then(|| api::FreshKey {
            rate: create.rate.map(|rate| rate.bytes()),
        }),
    })
}

impl GivenKey {
    /// The descriptor that the daemon is to read a key from. Nothing is read here.
    pub(crate) fn open(&self) -> Result<Option<OwnedFd>, CommandError> {
        let path = match (&self.key_file, self.key_fd) {
            (None, None) => return Ok(None),
            (Some(path), _) if path.as_os_str() == "-" => {
                let stdin = io::stdin().as_fd().try_clone_to_owned();
                return stdin
                    .map(Some)
                    .map_err(|error| CommandError::Path("--key-file", error));
            }
            (Some(path), _) => path.clone(),
            (None, Some(descriptor)) => PathBuf::from(format!("/proc/self/fd/{descriptor}")),
        };
        let file = File::open(&path);
        let file = file.map_err(|error| CommandError::KeySource(path, error))?;
        Ok(Some(file.into()))
    }
}

/// A relative path means the caller's folder, not the daemon's.
fn absolute(option: &'static str, path: PathBuf) -> Result<PathBuf, CommandError> {
    std::path::absolute(path).map_err(|error| CommandError::Path(option, error))
}

/// Prints an answer as it came or as text.
pub(crate) struct Printer {
    json: bool,
}

impl Printer {
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    pub(crate) fn answer<A: Serialize>(
        &self,
        answer: &A,
        render: impl FnOnce(&A) -> String,
    ) -> Result<(), CommandError> {
        let text = if self.json {
            let mut text = serde_json::to_string_pretty(answer).map_err(io::Error::from)?;
            text.push('\n');
            text
        } else {
            render(answer)
        };
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        Ok(stdout.flush()?)
    }
}

fn report(error: &CommandError, json: bool) -> ExitCode {
    let (kind, next_step) = match error {
        CommandError::Client(error) => (error.kind(), error.next_step()),
        CommandError::Audit(_) => (ErrorKind::Failed, None),
        CommandError::AuditFindings(_) => (
            ErrorKind::Refused,
            Some("Keep it, and compare it with copies from elsewhere".to_owned()),
        ),
        CommandError::NotAll { kind, .. } => (
            *kind,
            Some("Run it again when what kept them from it is mended".to_owned()),
        ),
        CommandError::Ill(_) => (
            ErrorKind::Failed,
            Some("Follow the advice beside each, and run it again".to_owned()),
        ),
        CommandError::File { .. } | CommandError::Output(_) => (ErrorKind::Failed, None),
        CommandError::KeySource(..) => (
            ErrorKind::Usage,
            Some("Name a file, or an open descriptor, with the 64 bytes of the key".to_owned()),
        ),
        CommandError::Path(..) => (ErrorKind::Usage, None),
        CommandError::NotForSnapshots(_) => (
            ErrorKind::Usage,
            Some("Attach the snapshot without them".to_owned()),
        ),
        CommandError::Stopped { .. } => (
            ErrorKind::Failed,
            Some("The volume is in good order; run it again to go on".to_owned()),
        ),
        CommandError::Discarded { .. } => (
            ErrorKind::Failed,
            Some("Unmount it, or mount it without discard, and run it again".to_owned()),
        ),
        CommandError::JobFailed { .. } => (ErrorKind::Failed, None),
        CommandError::JobCancelled(_) => (
            ErrorKind::Failed,
            Some("What it had done stays, in good order".to_owned()),
        ),
        CommandError::StoppedWatching(id) => (
            ErrorKind::Failed,
            Some(format!("End it with `sealvol job cancel {id}`")),
        ),
        CommandError::SelfTest(_) => (
            ErrorKind::Failed,
            Some("Do not use this build on this machine".to_owned()),
        ),
    };
    let error = api::ApiError {
        kind,
        message: error.to_string(),
        next_step,
    };
    if json {
        let reply = serde_json::to_string(&api::ErrorReply { error }).unwrap_or_default();
        eprintln!("{reply}");
    } else {
        let next_step = error
            .next_step
            .map(|step| format!(". {step}"))
            .unwrap_or_default();
        eprintln!("sealvol: {}{next_step}", error.message);
    }
    ExitCode::from(kind.exit_code())
}
