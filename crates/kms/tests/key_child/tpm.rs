//! `tpm2` by a real swtpm, whose registers are changed by tpm2-tools.

use std::fs;
use std::path::PathBuf;

use sealvol_control::keychild::{
    Batch, Call, CallResult, PcrBank, Provider, Right, Service, Tpm2Service,
};

use crate::place::child;
use crate::subject::Subject;
use crate::swtpm::Swtpm;

/// A register that can be reset, so that a key sealed to it can be taken out of use and brought back.
pub(crate) const RESETTABLE: u8 = 16;

/// A TPM with the keys `default`, sealed to that register, and `other`, sealed to another.
pub(crate) struct Tpm {
    pub(crate) chip: Swtpm,
}

impl Tpm {
    pub(crate) async fn start() -> Self {
        let tpm = Self {
            chip: Swtpm::start(),
        };
        for (name, pcr) in [("default", RESETTABLE), ("other", 0)] {
            let service = Tpm2Service {
                pcrs: vec![pcr],
                ..tpm.service()
            };
            create(&service, name).await.expect("created");
        }
        tpm
    }

    pub(crate) fn service(&self) -> Tpm2Service {
        Tpm2Service {
            device: self.chip.socket(),
            directory: self.chip.place("keys"),
            bank: PcrBank::Sha256,
            pcrs: vec![RESETTABLE],
            parent: None,
            counter: None,
            audit: None,
            single_credential: true,
        }
    }

    pub(crate) fn file(&self, key: &str) -> PathBuf {
        self.service().directory.join(format!("{key}.sealed"))
    }
}

/// One call to a TPM that is configured so.
pub(crate) async fn asked(service: &Tpm2Service, right: Right, call: Call) -> CallResult {
    let batch = Batch {
        right,
        principal: sealvol_control::keychild::Principal::Daemon,
        provider: provider(service.clone()),
        require_secretmem: false,
        calls: vec![call],
        relied_on: None,
    };
    let mut answer = child().call(&batch).await.expect("the child replies");
    answer.results.remove(0)
}

pub(crate) async fn create(service: &Tpm2Service, name: &str) -> CallResult {
    let name = name.to_owned();
    asked(
        service,
        Right::Administer,
        Call::CreateKey {
            name,
            origin: sealvol_control::keychild::Origin::Local,
        },
    )
    .await
}

impl Subject for Tpm {
    fn provider(&self) -> Provider {
        provider(self.service())
    }

    /// A TPM knows no states of keys: another state of the machine takes those out of use that are sealed to it.
    fn disable(&self, key: &str) {
        assert_eq!(key, "default", "the other is sealed to what is never reset");
        self.chip.extend(RESETTABLE);
    }

    fn enable(&self, key: &str) {
        assert_eq!(key, "default");
        self.chip.tool("tpm2_pcrreset", &[&RESETTABLE.to_string()]);
    }

    fn destroy(&self, key: &str) {
        fs::remove_file(self.file(key)).expect("removed");
    }
}

fn provider(service: Tpm2Service) -> Provider {
    Provider {
        name: "tpm".to_owned(),
        service: Service::Tpm2(service),
    }
}
