//! Configuration of the `tpm2` provider: the TPM, the state of the machine that keys are sealed to, and where they are.
//!
//! What always holds: a [`Tpm2Service`] that exists seals to at least one register, and was told that a TPM tells no two
//! credentials apart. It holds no secret.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Keys sealed in a TPM 2.0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", try_from = "Written")]
pub struct Tpm2Service {
    /// The TPM: a device of the kernel with its resource manager, or a Unix socket.
    pub device: PathBuf,
    /// Where the sealed keys are, one file each.
    pub directory: PathBuf,
    /// The bank of the registers that new keys are sealed to.
    pub bank: PcrBank,
    /// Their numbers, ascending, each once.
    pub pcrs: Vec<u8>,
    /// A persistent handle to seal under; the storage primary key of the owner hierarchy, made for each batch, if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<u32>,
    /// An NV index that counts: a new key opens only as long as it stands where it stood when the key was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counter: Option<u32>,
    /// An NV index of the type *extend*: heads of the audit log go in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<u32>,
    /// Always true: whoever may have volumes made may have them opened. It has to be said.
    pub single_credential: bool,
}

/// A bank of platform configuration registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PcrBank {
    /// SHA-256.
    #[default]
    Sha256,
    /// SHA-384.
    Sha384,
}

/// The same, as it stands in the configuration and in messages.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Written {
    #[serde(default)]
    device: Option<PathBuf>,
    directory: PathBuf,
    #[serde(default)]
    bank: PcrBank,
    pcrs: Vec<u8>,
    #[serde(default)]
    parent: Option<u32>,
    #[serde(default)]
    counter: Option<u32>,
    #[serde(default)]
    audit: Option<u32>,
    #[serde(default)]
    single_credential: bool,
}

/// Registers of a PC's TPM.
const PCRS: u8 = 24;

impl TryFrom<Written> for Tpm2Service {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        let mut pcrs = written.pcrs;
        pcrs.sort_unstable();
        let twice = pcrs.windows(2).any(|pair| pair[0] == pair[1]);
        let device = written.device.unwrap_or_else(|| DEVICE.into());
        if !written.single_credential {
            Err(
                "tpm2: a TPM has no credential that makes and cannot open: say that this is meant with \
                 single-credential = true",
            )
        } else if !device.is_absolute() || !written.directory.is_absolute() {
            Err("tpm2: `device` and `directory` are absolute paths")
        } else if pcrs.is_empty() || twice || pcrs.iter().any(|&pcr| pcr >= PCRS) {
            Err(
                "tpm2: `pcrs` are one or more numbers from 0 to 23, each once: what keys are sealed to",
            )
        } else if written.parent.is_some_and(|handle| handle >> 24 != 0x81) {
            Err("tpm2: `parent` is a persistent handle, 0x81000000 to 0x81ffffff")
        } else if written.counter.is_some_and(|index| !is_nv_index(index)) {
            Err("tpm2: `counter` is an NV index, 0x01000000 to 0x01ffffff")
        } else if written.audit.is_some_and(|index| !is_nv_index(index)) {
            Err("tpm2: `audit` is an NV index, 0x01000000 to 0x01ffffff")
        } else {
            Ok(Self {
                device,
                directory: written.directory,
                bank: written.bank,
                pcrs,
                parent: written.parent,
                counter: written.counter,
                audit: written.audit,
                single_credential: true,
            })
        }
    }
}

fn is_nv_index(handle: u32) -> bool {
    handle >> 24 == 0x01
}

/// The kernel's TPM, with its resource manager.
const DEVICE: &str = "/dev/tpmrm0";

#[cfg(test)]
mod tests {
    use super::*;

    fn service(text: &str) -> Result<Tpm2Service, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_service_that_could_not_be_used_as_it_says_is_refused_by_name() {
        let sound = r#""directory":"/k","pcrs":[7,0],"single-credential":true"#;
        let understood = service(&format!("{{{sound}}}")).unwrap();
        assert_eq!(
            (understood.pcrs.as_slice(), understood.bank),
            (&[0, 7][..], PcrBank::Sha256)
        );
        assert_eq!(understood.device.to_str(), Some(DEVICE));
        let again = serde_json::to_string(&understood).unwrap();
        assert_eq!(service(&again), Ok(understood));
        let with = |more: &str| format!("{sound},{more}");
        for (text, named) in [
            (sound.replace("true", "false"), "single-credential"),
            (sound.replace("[7,0]", "[]"), "pcrs"),
            (sound.replace("[7,0]", "[7,7]"), "pcrs"),
            (sound.replace("[7,0]", "[24]"), "pcrs"),
            (sound.replace("/k", "k"), "absolute"),
            (with(r#""device":"tpm""#), "absolute"),
            (with(r#""parent":1073741825"#), "parent"),
            (with(r#""counter":2164260865"#), "counter"),
            (with(r#""audit":2164260865"#), "audit"),
            (with(r#""bank":"sha1""#), "sha1"),
            (with(r#""password":"x""#), "password"),
        ] {
            let error = service(&format!("{{{text}}}")).expect_err(&text);
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
