//! `pkcs11` by a real SoftHSM token, whose operator uses another program than ours.

use std::path::{Path, PathBuf};
use std::process::Output;

use sealvol_control::keychild::{Call, Pkcs11Service, Provider, Right, Service, WrapMechanism};

use crate::softhsm::{MODULE, SoftHsm, TOKEN};
use crate::subject::{Subject, call};

/// A token with the keys `default` and `other`.
pub(crate) struct Hsm {
    pub(crate) token: SoftHsm,
    pub(crate) mechanism: WrapMechanism,
}

impl Hsm {
    /// One that wraps by AES-GCM.
    pub(crate) async fn start() -> Self {
        Self::on(SoftHsm::start(), WrapMechanism::AesGcm).await
    }

    /// One that has no AES-GCM.
    pub(crate) async fn without_gcm() -> Self {
        let token = SoftHsm::with_mechanisms("-,CKM_AES_GCM");
        Self::on(token, WrapMechanism::AesKeyWrapPad).await
    }

    /// `mechanism` is the one that the provider has to find.
    async fn on(token: SoftHsm, mechanism: WrapMechanism) -> Self {
        let hsm = Self { token, mechanism };
        for name in ["default", "other"] {
            hsm.create(name).await;
        }
        hsm
    }

    pub(crate) async fn create(&self, name: &str) {
        let name = name.to_owned();
        call(
            self,
            Right::Administer,
            Call::CreateKey {
                name,
                origin: sealvol_control::keychild::Origin::Local,
            },
        )
        .await
        .expect("created");
    }

    /// As the manual configures it.
    pub(crate) fn service(&self) -> Pkcs11Service {
        Pkcs11Service {
            module: MODULE.into(),
            token: format!("pkcs11:token={}", TOKEN.replace(' ', "%20")),
            pin_file: self.token.pin_file(),
            single_credential: true,
            mechanism: None,
            environment: [(
                "SOFTHSM2_CONF".to_owned(),
                self.token.configuration().display().to_string(),
            )]
            .into(),
            read: vec![self.token.configuration()],
            write: vec![self.token.tokens()],
            ports: Vec::new(),
        }
    }

    pub(crate) fn operate(&self, arguments: &[&str]) -> Output {
        self.token.operate(&script(), arguments)
    }

    fn allow(&self, key: &str, yes: &str) {
        let uses = match self.mechanism {
            WrapMechanism::AesGcm => "encrypt,decrypt",
            WrapMechanism::AesKeyWrapPad => "wrap,unwrap",
        };
        let _ = self.operate(&["allow", key, uses, yes]);
    }
}

impl Subject for Hsm {
    fn provider(&self) -> Provider {
        provider(self.service())
    }

    /// PKCS #11 knows no states; whoever looks after a token takes from a key what it may be used for.
    fn disable(&self, key: &str) {
        self.allow(key, "no");
    }

    fn enable(&self, key: &str) {
        self.allow(key, "yes");
    }

    fn destroy(&self, key: &str) {
        let _ = self.operate(&["destroy", key]);
    }

    fn tells_age(&self) -> bool {
        false
    }
}

pub(crate) fn provider(service: Pkcs11Service) -> Provider {
    Provider {
        name: "hsm".to_owned(),
        service: Service::Pkcs11(service),
    }
}

pub(crate) fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/operate_token.py")
}
