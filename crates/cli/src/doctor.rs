//! `doctor`: what the daemon found, one line for each thing, and what to do under those that are not well.

use sealvol_control::api::doctor::{Check, Doctor, Health};
use sealvol_control::client::Client;

use crate::run::{CommandError, Printer};

pub(crate) async fn run(client: &Client, print: &Printer) -> Result<(), CommandError> {
    let doctor = client.doctor().await?;
    print.answer(&doctor, render)?;
    let ill = doctor.checks.iter();
    let ill = ill.filter(|check| check.health == Health::Failure).count();
    if ill > 0 {
        return Err(CommandError::Ill(ill));
    }
    Ok(())
}

fn render(doctor: &Doctor) -> String {
    let width = doctor.checks.iter().map(|check| check.subject.len()).max();
    let width = width.unwrap_or(0);
    doctor
        .checks
        .iter()
        .map(|check| line(check, width))
        .collect()
}

fn line(check: &Check, width: usize) -> String {
    let health = match check.health {
        Health::Ok => "ok",
        Health::Warning => "warning",
        Health::Failure => "FAILURE",
    };
    let mut text = format!("{health:<8} {:<width$}  {}\n", check.subject, check.found);
    if let Some(advice) = &check.advice {
        text += &format!("{:8} {:width$}  -> {advice}\n", "", "");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_stands_under_what_it_is_about() {
        let check = |subject: &str, health, advice: Option<&str>| Check {
            subject: subject.to_owned(),
            health,
            found: "found".to_owned(),
            advice: advice.map(str::to_owned),
        };
        let doctor = Doctor {
            checks: vec![
                check("swap", Health::Ok, None),
                check("key memory", Health::Warning, Some("do this")),
                check("clock", Health::Failure, Some("do that")),
            ],
        };
        assert_eq!(
            render(&doctor),
            "ok       swap        found\n\
             warning  key memory  found\n                     -> do this\n\
             FAILURE  clock       found\n                     -> do that\n"
        );
    }
}
