//! Carries out what was typed: one call to the daemon, one answer, one exit code.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::CommandFactory as _;
use sealvol_control::api::{self, ErrorKind};
use sealvol_control::client::{Client, ClientError};
use serde::Serialize;
use thiserror::Error;

use crate::args::{Attach, Cli, Create, Key, Noun, Volume};
use crate::render;

/// Why a command did not do what it says.
#[derive(Debug, Error)]
enum CommandError {
    /// The daemon did not, or could not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The answer could not be printed.
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
    /// The path given cannot be made absolute.
    #[error("--backing: {0}")]
    Backing(io::Error),
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
        Noun::Key(verb) => key(&client, &print, verb).await,
        Noun::Status => print.answer(&client.status().await?, render::status),
        Noun::Selftest => {
            let report = client.selftest().await?;
            print.answer(&report, render::selftest)?;
            report
                .failure
                .map_or(Ok(()), |failure| Err(CommandError::SelfTest(failure)))
        }
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
            let request = create_request(create)?;
            print.answer(&client.create_volume(&request).await?, render::created)
        }
        Volume::List => print.answer(&client.volumes().await?, render::volume_list),
        Volume::Show { name } => print.answer(&client.volume(&name).await?, render::volume),
        Volume::Attach(Attach {
            name,
            read_only,
            allow,
            accept_loss,
        }) => {
            let request = api::AttachVolume {
                read_only,
                allow,
                accept_loss,
            };
            print.answer(
                &client.attach_volume(&name, &request).await?,
                render::attached,
            )
        }
        Volume::Detach { name, force } => {
            let request = api::DetachVolume { force };
            print.answer(
                &client.detach_volume(&name, &request).await?,
                render::detached,
            )
        }
        Volume::Resize { name, size } => {
            let request = api::ResizeVolume { size: size.bytes() };
            print.answer(
                &client.resize_volume(&name, &request).await?,
                render::resized,
            )
        }
        Volume::Delete { name, shred } => {
            let request = api::DeleteVolume { shred };
            print.answer(
                &client.delete_volume(&name, &request).await?,
                render::deleted,
            )
        }
        Volume::Map { name } => print.answer(&client.volume_map(&name).await?, render::volume_map),
    }
}

async fn key(client: &Client, print: &Printer, verb: Key) -> Result<(), CommandError> {
    match verb {
        Key::Create { key } => {
            let request = api::CreateKey { key };
            print.answer(&client.create_key(&request).await?, render::key_created)
        }
        Key::List { provider } => {
            print.answer(&client.keys(provider.as_deref()).await?, render::key_list)
        }
        Key::Show { key } => print.answer(&client.key(&key).await?, render::key),
    }
}

fn create_request(create: Create) -> Result<api::CreateVolume, CommandError> {
    // A relative path means the caller's folder, not the daemon's.
    let backing = create.backing.map(std::path::absolute).transpose();
    Ok(api::CreateVolume {
        name: create.name,
        size: create.size.bytes(),
        key: create.key,
        sector_size: Some(create.sector_size),
        backing: backing.map_err(CommandError::Backing)?,
    })
}

/// Prints an answer as it came or as text.
struct Printer {
    json: bool,
}

impl Printer {
    fn answer<A: Serialize>(
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
        CommandError::Output(_) => (ErrorKind::Failed, None),
        CommandError::Backing(_) => (ErrorKind::Usage, None),
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
