//! A directory with a `local` provider in it, and calls to it through the real `sealvol-keys`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use sealvol_control::keychild::{
    AliasChange, Answer, Batch, Call, CallResult, Context, Done, FailureClass, ImportParameters,
    KeyChange, KeyChild, KeyFailure, LocalService, MasterKey, Origin, Principal, Provider, Right,
    Service, Tombstones, Wrapped, WrappingAlgorithm, WrappingKeySpec,
};
use sealvol_crypto::VolumeKey;
use sealvol_crypto::locked::{KeyMemory, Policy};
use tempfile::TempDir;

/// Longer than any call takes on a slow machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct Place {
    pub(crate) directory: TempDir,
    pub(crate) master_key: MasterKey,
}

impl Place {
    /// A provider whose master key is a file, with the key `default`.
    pub(crate) async fn with_default_key() -> Self {
        let place = Self::empty();
        place
            .create_key("default")
            .await
            .expect("the first key is created");
        place
    }

    /// A provider whose master key is a file; neither file nor database are there.
    pub(crate) fn empty() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let master_key = MasterKey::File {
            path: directory.path().join("local/master.key"),
        };
        Self {
            directory,
            master_key,
        }
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.directory.path().join("local/keys.db")
    }

    pub(crate) fn master_key_file(&self) -> PathBuf {
        self.directory.path().join("local/master.key")
    }

    pub(crate) fn batch(&self, right: Right, calls: Vec<Call>) -> Batch {
        let service = Service::Local(LocalService {
            database: self.database(),
            master_key: self.master_key.clone(),
            create: true,
        });
        let provider = Provider {
            name: "local".to_owned(),
            service,
        };
        Batch {
            right,
            principal: Principal::Daemon,
            provider,
            require_secretmem: false,
            calls,
            relied_on: None,
        }
    }

    pub(crate) async fn answer(&self, right: Right, calls: Vec<Call>) -> Answer {
        child()
            .call(&self.batch(right, calls))
            .await
            .expect("the child replies")
    }

    pub(crate) async fn call(&self, right: Right, call: Call) -> CallResult {
        let mut answer = self.answer(right, vec![call]).await;
        answer.results.remove(0)
    }

    pub(crate) async fn create_key(&self, name: &str) -> CallResult {
        self.call(
            Right::Administer,
            Call::CreateKey {
                name: name.to_owned(),
                origin: Origin::Local,
            },
        )
        .await
    }

    pub(crate) async fn create_external_key(&self, name: &str) {
        let call = Call::CreateKey {
            name: name.to_owned(),
            origin: Origin::External,
        };
        self.call(Right::Administer, call).await.expect("created");
    }

    /// As an operator does who has material of 32 bytes that are all `byte`.
    pub(crate) async fn import(&self, key: &str, byte: u8) -> CallResult {
        let made = self.import_parameters(key).await;
        let material = made.encrypt(&[byte; 32]);
        self.call(Right::Administer, made.import(key, material))
            .await
    }

    /// Of RSA-2048, which is the fastest.
    pub(crate) async fn import_parameters(&self, key: &str) -> Import {
        let algorithm = WrappingAlgorithm::RsaesOaepSha256;
        self.import_parameters_of(key, WrappingKeySpec::Rsa2048, algorithm)
            .await
    }

    pub(crate) async fn import_parameters_of(
        &self,
        key: &str,
        spec: WrappingKeySpec,
        algorithm: WrappingAlgorithm,
    ) -> Import {
        let call = import_parameters(key, spec, algorithm);
        match self.call(Right::Administer, call).await {
            Ok(Done::ImportParameters(parameters)) => Import {
                parameters,
                algorithm,
            },
            other => panic!("import parameters: {other:?}"),
        }
    }

    pub(crate) async fn change(&self, key: &str, how: KeyChange) -> CallResult {
        self.call(Right::Administer, change(key, how)).await
    }

    pub(crate) async fn change_alias(&self, alias: &str, how: AliasChange) -> CallResult {
        let call = Call::ChangeAlias {
            alias: alias.to_owned(),
            change: how,
        };
        self.call(Right::Administer, call).await
    }

    pub(crate) async fn generate(&self, key: &str, context: &Context) -> Wrapped {
        match self.call(Right::Create, generate(key, context)).await {
            Ok(Done::Generate(wrapped)) => wrapped,
            other => panic!("generate: {other:?}"),
        }
    }

    /// Unwraps by a child and hands the key over as the daemon does.
    pub(crate) async fn unwrap(&self, call: Call) -> Result<VolumeKey, KeyFailure> {
        let mut answer = self.answer(Right::Attach, vec![call]).await;
        answer.results.remove(0)?;
        Ok(VolumeKey::read_from(&memory(), &mut answer.keys).expect("64 bytes follow"))
    }

    /// A call in the name of a user.
    pub(crate) async fn call_as(&self, uid: u32, right: Right, call: Call) -> CallResult {
        let batch = Batch {
            principal: Principal::Uid(uid),
            ..self.batch(right, vec![call])
        };
        let mut answer = child().call(&batch).await.expect("the child replies");
        answer.results.remove(0)
    }

    pub(crate) async fn refusal(&self, right: Right, call: Call) -> (FailureClass, String) {
        let failure = self
            .call(right, call)
            .await
            .expect_err("the call is refused");
        assert!(
            !failure.message.is_empty() && !failure.next_step.is_empty(),
            "{failure:?}"
        );
        (failure.class, failure.provider_error)
    }

    /// Changes the database behind the provider's back.
    pub(crate) fn sql(&self, statement: &str) {
        let connection = rusqlite::Connection::open(self.database()).unwrap();
        assert!(
            connection.execute(statement, []).unwrap() > 0,
            "{statement}: changes something"
        );
    }
}

/// What an operator gets to import material with.
pub(crate) struct Import {
    pub(crate) parameters: ImportParameters,
    pub(crate) algorithm: WrappingAlgorithm,
}

impl Import {
    /// By an implementation that is not ours.
    pub(crate) fn encrypt(&self, material: &[u8]) -> Vec<u8> {
        let directory = TempDir::new().expect("a temporary directory");
        let public_key = directory.path().join("public.der");
        fs::write(&public_key, &self.parameters.public_key).expect("written");
        let digits: String = material.iter().map(|byte| format!("{byte:02x}")).collect();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/encrypt_material.py");
        let output = Command::new("python3")
            .arg(script)
            .arg("--public-key")
            .arg(&public_key)
            .args(["--algorithm", self.algorithm.as_str(), &digits])
            .output()
            .expect("python3 runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        output.stdout
    }

    /// The call that gives it to a key, without an expiry.
    pub(crate) fn import(&self, key: &str, material: Vec<u8>) -> Call {
        Call::ImportMaterial {
            key: key.to_owned(),
            material,
            token: self.parameters.token.clone(),
            expires: None,
        }
    }
}

pub(crate) fn import_parameters(
    key: &str,
    spec: WrappingKeySpec,
    algorithm: WrappingAlgorithm,
) -> Call {
    Call::ImportParameters {
        key: key.to_owned(),
        spec,
        algorithm,
    }
}

pub(crate) fn child() -> KeyChild {
    KeyChild::new(program(), DEADLINE)
}

pub(crate) fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_sealvol-keys"))
}

pub(crate) fn memory() -> Arc<KeyMemory> {
    KeyMemory::new(Policy {
        require_secretmem: false,
    })
    .expect("memory for keys")
}

pub(crate) fn context(volume: &str) -> Context {
    [("sealvol:volume", volume), ("sealvol:data-key", "2")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

pub(crate) fn change(key: &str, change: KeyChange) -> Call {
    Call::Change {
        key: key.to_owned(),
        change,
    }
}

pub(crate) fn generate(key: &str, context: &Context) -> Call {
    Call::Generate {
        key: key.to_owned(),
        context: context.clone(),
    }
}

pub(crate) fn tombstone(volumes: &[&str], data_keys: &[&str]) -> Call {
    let owned = |ids: &[&str]| ids.iter().map(|&id| id.to_owned()).collect();
    Call::Tombstone(Tombstones {
        volumes: owned(volumes),
        data_keys: owned(data_keys),
    })
}

pub(crate) fn unwrap(key: &str, wrapped: &[u8], context: &Context) -> Call {
    Call::Unwrap {
        key: key.to_owned(),
        wrapped: wrapped.to_vec(),
        context: context.clone(),
    }
}

pub(crate) fn rewrap(from: (&str, &[u8], &Context), to: (&str, &Context)) -> Call {
    Call::Rewrap {
        key: from.0.to_owned(),
        wrapped: from.1.to_vec(),
        old_context: from.2.clone(),
        new_key: to.0.to_owned(),
        new_context: to.1.clone(),
    }
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
