//! `doctor`: what is wrong with this machine, these files, these key services, and what to do about it.
//!
//! | looked at | file |
//! |---|---|
//! | what the kernel gives a process that holds keys | `machine.rs` |
//! | what the daemon wrote and reads | `files.rs` |
//! | whether each key service answers | `services.rs` |
//!
//! Always: each thing is looked at whatever was wrong with those before it, and each advice names the next step.
//! Never: a change to anything, and a key.

mod files;
mod machine;
mod services;

use sealvol_control::api::doctor::{Check, Doctor, Health};

use crate::daemon::Daemon;
use crate::error::Error;

impl Daemon {
    pub(crate) async fn doctor(&self) -> Result<Doctor, Error> {
        let mut checks = machine::look(self);
        checks.extend(files::look(self));
        checks.extend(services::look(self).await);
        checks.push(services::orphans(self).await?);
        Ok(Doctor { checks })
    }
}

fn ok(subject: &str, found: impl Into<String>) -> Check {
    Check {
        subject: subject.to_owned(),
        health: Health::Ok,
        found: found.into(),
        advice: None,
    }
}

fn warning(subject: &str, found: impl Into<String>, advice: impl Into<String>) -> Check {
    Check {
        subject: subject.to_owned(),
        health: Health::Warning,
        found: found.into(),
        advice: Some(advice.into()),
    }
}

fn failure(subject: &str, found: impl Into<String>, advice: impl Into<String>) -> Check {
    Check {
        health: Health::Failure,
        ..warning(subject, found, advice)
    }
}
