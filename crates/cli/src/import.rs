//! `key import-parameters` and `key import`: material that somebody else made, encrypted all the way through here.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use base64ct::{Base64, Encoding as _};
use sealvol_control::api;
use sealvol_control::client::Client;
use sealvol_control::keychild::KeyChange;

use crate::args::{Import, ImportParameters};
use crate::key;
use crate::run::{CommandError, Printer};

pub(crate) async fn parameters(
    client: &Client,
    print: &Printer,
    options: ImportParameters,
) -> Result<(), CommandError> {
    let request = api::GetImportParameters {
        spec: options.bits,
        algorithm: options.algorithm,
    };
    let made = client.import_parameters(&options.key, &request).await?;
    write_new(&options.public_key, &made.public_key)?;
    write_new(&options.token, &format!("{}\n", made.token))?;
    print.answer(&made, |made| told(made, &options.public_key))
}

pub(crate) async fn material(
    client: &Client,
    print: &Printer,
    options: Import,
) -> Result<(), CommandError> {
    let read = |path: &PathBuf| fs::read(path).map_err(|error| of_file(path, error));
    let token = String::from_utf8_lossy(&read(&options.token)?).into_owned();
    let request = api::ImportMaterial {
        material: Base64::encode_string(&read(&options.material)?),
        token: token.trim().to_owned(),
        expires: options.expires,
    };
    let imported = client.import_key_material(&options.key, &request).await?;
    print.answer(&imported, |imported| {
        key::changed(imported, &KeyChange::Enable)
    })
}

/// One that is there stays as it is: it may be the key of another import.
fn write_new(path: &Path, text: &str) -> Result<(), CommandError> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| of_file(path, error))
}

fn of_file(path: &Path, source: std::io::Error) -> CommandError {
    CommandError::File {
        path: path.to_owned(),
        source,
    }
}

fn told(made: &api::ImportParameters, public_key: &Path) -> String {
    format!(
        "Encrypt 32 bytes to {} by {} for key {} until {}\n",
        public_key.display(),
        made.algorithm.as_str(),
        made.key,
        made.expires
    )
}

#[cfg(test)]
mod tests {
    use sealvol_control::keychild::WrappingAlgorithm;

    use super::*;

    #[test]
    fn the_parameters_of_an_import_say_what_to_do_with_them() {
        let made = api::ImportParameters {
            key: "local:own".into(),
            key_id: "0d7c".into(),
            algorithm: WrappingAlgorithm::RsaesOaepSha256,
            public_key: "PEM".into(),
            token: "U1Zp".into(),
            expires: "2026-02-03T04:05:06Z".into(),
        };
        assert_eq!(
            told(&made, Path::new("own.pem")),
            "Encrypt 32 bytes to own.pem by RSAES_OAEP_SHA_256 for key local:own until 2026-02-03T04:05:06Z\n"
        );
    }
}
