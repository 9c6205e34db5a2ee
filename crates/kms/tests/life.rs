//! The life of a key over months, on clocks that the tests set: the provider itself, in this process.

use std::cell::Cell;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use sealvol_control::keychild::{
    KeyChange, KeyDescription, KeyFailure, KeyState, LocalService, MasterKey, Origin, Principal,
    Right, WrappingAlgorithm, WrappingKeySpec,
};
use sealvol_crypto::EncryptionContext;
use sealvol_crypto::locked::{KeyMemory, Policy};
use sealvol_kms::local::clock::{Clock, DAY, Reading};
use sealvol_kms::local::{Local, Opening};
use sealvol_kms::{KeyService as _, Refusal, WrappedUnder};
use tempfile::TempDir;

/// Milliseconds of a day.
const DAY_MS: u64 = DAY * 1000;

/// A day in 2026.
const BEGIN: u64 = 1_790_000_000_000;

#[derive(Clone)]
struct Clocks(Rc<Cell<Reading>>);

impl Clock for Clocks {
    fn read(&self) -> io::Result<Reading> {
        Ok(self.0.get())
    }
}

struct Host {
    directory: TempDir,
    memory: Arc<KeyMemory>,
    clocks: Clocks,
}

impl Host {
    /// With the key `default`.
    async fn new() -> Self {
        let reading = Reading {
            boot: [1; 16],
            running: 5_000,
            wall: BEGIN,
        };
        let policy = Policy {
            require_secretmem: false,
        };
        let host = Self {
            directory: TempDir::new().expect("a directory"),
            memory: KeyMemory::new(policy).expect("memory for keys"),
            clocks: Clocks(Rc::new(Cell::new(reading))),
        };
        host.create("default").await;
        host
    }

    async fn create(&self, name: &str) {
        let created = self.provider().create_key(name, Origin::Local).await;
        created.expect("created");
    }

    fn database(&self) -> PathBuf {
        self.directory.path().join("keys.db")
    }

    /// Opens it anew, as each batch does.
    fn provider(&self) -> Local {
        let service = LocalService {
            database: self.database(),
            master_key: MasterKey::File {
                path: self.directory.path().join("master"),
            },
            create: true,
        };
        let opening = Opening {
            name: "local",
            service: &service,
            create: true,
            passphrase: None,
            data_keys: None,
            sink: None,
            relied_on: None,
            accept_table: false,
            principal: Principal::Daemon,
            right: Right::Administer,
            clock: Box::new(self.clocks.clone()),
        };
        Local::open(opening, &self.memory).expect("opened")
    }

    fn set(&self, change: impl FnOnce(&mut Reading)) {
        let mut reading = self.clocks.0.get();
        change(&mut reading);
        self.clocks.0.set(reading);
    }

    /// Time passes, and the daemon looks after the keys now and then.
    async fn run(&self, days: u64) {
        let mut left = days;
        while left > 0 {
            let step = left.min(30);
            self.set(|now| {
                now.running += step * DAY_MS;
                now.wall += step * DAY_MS;
            });
            self.tend().await;
            left -= step;
        }
    }

    /// What was rotated and what is due, by name.
    async fn tend(&self) -> (Vec<String>, Vec<String>) {
        let tended = self.provider().tend().await.expect("tended");
        let names = |keys: Vec<KeyDescription>| keys.into_iter().map(|key| key.name).collect();
        (names(tended.rotated), names(tended.due))
    }

    async fn change(&self, change: KeyChange) -> Result<KeyDescription, String> {
        let done = self.provider().change_key("default", &change).await;
        done.map_err(|refusal| named(&refusal))
    }

    async fn is_due(&self) -> bool {
        let (_, due) = self.tend().await;
        let destroyed = self.change(KeyChange::Destroy).await;
        assert_eq!(due == ["default"], destroyed.is_ok(), "{destroyed:?}");
        match destroyed {
            Ok(_) => true,
            Err(name) => {
                assert_eq!(name, "KMSInvalidStateException");
                false
            }
        }
    }

    async fn versions(&self) -> usize {
        let key = self.provider().describe("default").await;
        key.expect("described").versions.len()
    }
}

fn named(refusal: &Refusal) -> String {
    KeyFailure::from(refusal).provider_error
}

const WEEK: KeyChange = KeyChange::ScheduleDeletion { days: 7 };

#[tokio::test]
async fn a_key_is_destroyed_when_its_window_is_over_and_not_before() {
    let host = Host::new().await;
    let key = host.change(WEEK).await.expect("scheduled");
    assert_eq!(key.lifecycle.deletion, Some(BEGIN / 1000 + 7 * DAY));
    host.run(6).await;
    host.set(|now| now.wall += DAY_MS - 1);
    host.set(|now| now.running += DAY_MS - 1);
    assert!(!host.is_due().await);
    host.set(|now| now.wall += 1);
    host.set(|now| now.running += 1);
    assert!(host.is_due().await);
    let gone = host.provider().describe("default").await;
    assert_eq!(named(&gone.expect_err("gone")), "NotFoundException");
    // Its name is free.
    host.create("default").await;
}

#[tokio::test]
async fn a_wall_clock_that_jumps_ahead_destroys_nothing() {
    let host = Host::new().await;
    host.change(WEEK).await.expect("scheduled");
    host.set(|now| now.wall += 400 * DAY_MS);
    assert!(!host.is_due().await);
    // Not in small steps, and not by a restart, either.
    for boot in 2..30 {
        host.set(|now| {
            now.wall += 400 * DAY_MS;
            now.boot = [boot; 16];
            now.running = 60_000;
        });
        assert!(!host.is_due().await);
    }
    // Half an hour was counted by now; the rest has to run off.
    host.run(6).await;
    assert!(!host.is_due().await);
    host.run(1).await;
    assert!(host.is_due().await);
}

#[tokio::test]
async fn running_time_without_the_wall_clock_destroys_nothing() {
    let host = Host::new().await;
    host.change(WEEK).await.expect("scheduled");
    for _ in 0..30 {
        host.set(|now| now.running += DAY_MS);
        assert!(!host.is_due().await);
    }
    // Set back by a year, it has that year to make up for.
    host.set(|now| now.wall -= 365 * DAY_MS);
    host.run(30).await;
    assert!(!host.is_due().await);
    host.run(342).await;
    assert!(host.is_due().await);
}

#[tokio::test]
async fn a_cancelled_deletion_leaves_a_disabled_key_that_can_be_enabled() {
    let host = Host::new().await;
    let context = EncryptionContext::new([("sealvol:volume", "1")]).expect("a context");
    let wrapped = host
        .provider()
        .generate("default", &context)
        .await
        .expect("made");
    host.change(WEEK).await.expect("scheduled");
    host.run(6).await;
    let key = host
        .change(KeyChange::CancelDeletion)
        .await
        .expect("cancelled");
    assert_eq!(key.state, KeyState::Disabled);
    host.run(30).await;
    assert!(!host.is_due().await);
    host.change(KeyChange::Enable).await.expect("enabled");
    let from = WrappedUnder {
        key: "default",
        blob: &wrapped.blob,
        context: &context,
    };
    host.provider()
        .unwrap(&from, &host.memory)
        .await
        .expect("as before");
}

#[tokio::test]
async fn no_byte_of_a_destroyed_keys_material_is_left_in_the_files() {
    let host = Host::new().await;
    // Enough rows to fill many pages and move between them.
    for number in 0..40 {
        host.create(&format!("before-{number}")).await;
    }
    for _ in 0..20 {
        host.change(KeyChange::Rotate).await.expect("rotated");
    }
    for number in 0..40 {
        host.create(&format!("after-{number}")).await;
    }
    let sealed: Vec<Vec<u8>> = {
        let connection = rusqlite::Connection::open(host.database()).expect("opened");
        let sql = "SELECT sealed FROM versions WHERE key_id = (SELECT id FROM keys WHERE name = 'default')";
        let mut statement = connection.prepare(sql).expect("a query");
        let rows = statement.query_map([], |row| row.get(0)).expect("rows");
        rows.collect::<Result<_, _>>().expect("blobs")
    };
    assert_eq!(sealed.len(), 21);
    let found = |host: &Host| {
        let mut found = 0;
        for file in fs::read_dir(host.directory.path()).expect("a directory") {
            let content = fs::read(file.expect("a file").path()).expect("read");
            // What is secret of it: past header and nonce. Any 16 bytes of that would be too many.
            let pieces = sealed
                .iter()
                .flat_map(|sealed| sealed[57..].chunks_exact(16));
            let is_there = |piece: &&[u8]| content.windows(16).any(|part| part == *piece);
            found += pieces.filter(is_there).count();
        }
        found
    };
    assert_eq!(found(&host), 21 * 3, "they are found where they are");
    host.change(WEEK).await.expect("scheduled");
    host.run(7).await;
    assert!(host.is_due().await);
    assert_eq!(found(&host), 0);
    let keys = host.provider().list_keys().await.expect("listed");
    assert_eq!(keys.len(), 80, "the others are there");
}

#[tokio::test]
async fn a_key_is_rotated_each_period_and_keeps_every_version() {
    let host = Host::new().await;
    let context = EncryptionContext::new([("sealvol:volume", "1")]).expect("a context");
    let wrapped = host
        .provider()
        .generate("default", &context)
        .await
        .expect("made");
    let every = KeyChange::SetRotation { days: Some(90) };
    host.change(every).await.expect("set");
    host.run(89).await;
    assert_eq!(host.versions().await, 1);
    host.run(1).await;
    assert_eq!(host.versions().await, 2);
    host.run(180).await;
    assert_eq!(host.versions().await, 4);
    let from = WrappedUnder {
        key: "default",
        blob: &wrapped.blob,
        context: &context,
    };
    let opened = host
        .provider()
        .unwrap(&from, &host.memory)
        .await
        .expect("opened");
    assert_eq!(opened.key_version, 1);

    // Off for a year: one rotation when it runs again, not four.
    host.set(|now| {
        now.boot = [2; 16];
        now.running = 1_000;
        now.wall += 365 * DAY_MS;
    });
    assert_eq!(host.tend().await.0, ["default"]);
    assert_eq!(host.tend().await.0, [""; 0]);
    assert_eq!(host.versions().await, 5);
    host.change(KeyChange::SetRotation { days: None })
        .await
        .expect("off");
    host.run(100).await;
    assert_eq!(host.versions().await, 5);
}

#[tokio::test]
async fn a_clock_that_was_set_back_does_not_put_a_rotation_off() {
    let host = Host::new().await;
    let every = KeyChange::SetRotation { days: Some(90) };
    host.change(every).await.expect("set");
    host.set(|now| now.wall -= 3650 * DAY_MS);
    // What passes until the clock is read again after that is not counted.
    host.tend().await;
    host.run(89).await;
    assert_eq!(host.versions().await, 1);
    host.run(2).await;
    assert_eq!(host.versions().await, 2);
}

#[tokio::test]
async fn a_disabled_key_is_not_rotated_and_is_at_once_when_it_is_enabled() {
    let host = Host::new().await;
    let every = KeyChange::SetRotation { days: Some(90) };
    host.change(every).await.expect("set");
    host.change(KeyChange::Disable).await.expect("disabled");
    host.run(100).await;
    assert_eq!(host.versions().await, 1);
    let key = host.change(KeyChange::Enable).await.expect("enabled");
    assert_eq!(key.versions.len(), 2);
    let at = host.clocks.0.get().wall / 1000;
    assert_eq!(key.lifecycle.next_rotation, Some(at + 90 * DAY));
}

#[tokio::test]
async fn while_no_key_waits_for_anything_nothing_is_written() {
    let host = Host::new().await;
    let before = fs::read(host.database()).expect("read");
    host.run(3).await;
    assert_eq!(fs::read(host.database()).expect("read"), before);
}

/// Imports material that expires after so many days.
async fn import(host: &Host, days: u64) {
    let provider = host.provider();
    let spec = WrappingKeySpec::Rsa2048;
    let algorithm = WrappingAlgorithm::RsaesOaepSha256;
    let made = provider.import_parameters("own", spec, algorithm).await;
    let made = made.expect("made");
    let material = encrypted(&made.public_key);
    let at = host.clocks.0.get().wall / 1000 + days * DAY;
    let token = &made.token;
    let imported = provider.import_key_material("own", &material, token, Some(at));
    let key = imported.await.expect("imported");
    assert_eq!(key.state, KeyState::Enabled);
    assert_eq!(key.lifecycle.material_expires, Some(at));
}

/// 32 bytes, encrypted by RSA-OAEP.
fn encrypted(public_key: &[u8]) -> Vec<u8> {
    use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
    let key = PublicEncryptingKey::from_der(public_key).expect("a public key");
    let key = OaepPublicEncryptingKey::new(key).expect("a public key");
    let mut encrypted = vec![0; key.ciphertext_size()];
    key.encrypt(&OAEP_SHA256_MGF1SHA256, &[5; 32], &mut encrypted, None)
        .expect("encrypted");
    encrypted
}

impl Host {
    async fn with_external_key() -> Self {
        let host = Self::new().await;
        let created = host.provider().create_key("own", Origin::External).await;
        assert_eq!(created.expect("created").state, KeyState::PendingImport);
        host
    }

    async fn state(&self) -> KeyState {
        self.provider()
            .describe("own")
            .await
            .expect("described")
            .state
    }

    /// How much of the sealed material is in the database.
    fn material(&self) -> Vec<u8> {
        let connection = rusqlite::Connection::open(self.database()).expect("opened");
        let sql =
            "SELECT sealed FROM versions WHERE key_id = (SELECT id FROM keys WHERE name = 'own')";
        connection
            .query_row(sql, [], |row| row.get(0))
            .expect("a row")
    }

    fn holds(&self, secret: &[u8]) -> bool {
        let content = fs::read(self.database()).expect("read");
        content.windows(secret.len()).any(|part| part == secret)
    }
}

#[tokio::test]
async fn imported_material_that_expires_is_refused_and_destroyed_and_can_be_imported_again() {
    let host = Host::with_external_key().await;
    import(&host, 30).await;
    let context = EncryptionContext::new([("sealvol:volume", "1")]).expect("a context");
    let wrapped = host
        .provider()
        .generate("own", &context)
        .await
        .expect("made");
    let from = WrappedUnder {
        key: "own",
        blob: &wrapped.blob,
        context: &context,
    };
    host.run(29).await;
    host.provider()
        .unwrap(&from, &host.memory)
        .await
        .expect("not yet");
    let sealed = host.material();
    assert!(host.holds(&sealed[57..]));
    host.set(|now| {
        now.running += DAY_MS;
        now.wall += DAY_MS;
    });
    // It is refused at that moment, whether somebody looks after the keys or not.
    assert_eq!(host.state().await, KeyState::PendingImport);
    let refused = host.provider().unwrap(&from, &host.memory).await;
    assert_eq!(
        named(&refused.err().expect("refused")),
        "KMSInvalidStateException"
    );
    let tended = host.provider().tend().await.expect("tended");
    let expired: Vec<_> = tended.expired.iter().map(|key| &key.name[..]).collect();
    assert_eq!(expired, ["own"]);
    assert!(!host.holds(&sealed[57..]), "the material is in no file");
    assert!(
        host.provider()
            .tend()
            .await
            .expect("tended")
            .expired
            .is_empty()
    );
    import(&host, 300).await;
    host.provider()
        .unwrap(&from, &host.memory)
        .await
        .expect("as before");
}

#[tokio::test]
async fn a_clock_that_jumps_past_an_expiry_refuses_the_key_and_destroys_nothing() {
    let host = Host::with_external_key().await;
    import(&host, 30).await;
    let sealed = host.material();
    host.set(|now| now.wall += 400 * DAY_MS);
    assert_eq!(host.state().await, KeyState::PendingImport);
    assert!(
        host.provider()
            .tend()
            .await
            .expect("tended")
            .expired
            .is_empty()
    );
    host.set(|now| now.wall -= 400 * DAY_MS);
    assert_eq!(host.state().await, KeyState::Enabled);
    assert_eq!(host.material(), sealed);
    // A clock that was set back doesn't prolong its life, either: as much time has run.
    host.set(|now| now.wall -= 100 * DAY_MS);
    host.tend().await;
    host.run(30).await;
    assert_eq!(host.state().await, KeyState::PendingImport);
    assert_eq!(host.material(), sealed, "the calendar does not say so yet");
    host.run(101).await;
    assert!(!host.holds(&sealed[57..]));
}

#[tokio::test]
async fn material_that_is_deleted_is_in_no_file_and_saying_it_twice_does_no_harm() {
    let host = Host::with_external_key().await;
    import(&host, 30).await;
    let sealed = host.material();
    let deleted = host
        .provider()
        .change_key("own", &KeyChange::DeleteMaterial)
        .await;
    assert_eq!(deleted.expect("deleted").state, KeyState::PendingImport);
    assert!(!host.holds(&sealed[57..]));
    let deleted = host
        .provider()
        .change_key("own", &KeyChange::DeleteMaterial)
        .await;
    assert_eq!(deleted.expect("no effect").state, KeyState::PendingImport);
}

#[tokio::test]
async fn a_token_is_good_for_a_day_by_either_clock_and_its_private_key_goes_with_it() {
    let host = Host::with_external_key().await;
    for (running, wall) in [(DAY_MS, DAY_MS), (0, DAY_MS), (DAY_MS, 0)] {
        let spec = WrappingKeySpec::Rsa2048;
        let algorithm = WrappingAlgorithm::RsaesOaepSha256;
        let made = host
            .provider()
            .import_parameters("own", spec, algorithm)
            .await
            .expect("made");
        let material = encrypted(&made.public_key);
        if running > 0 && wall == 0 {
            // The wall clock is set back by a day and comes back to where it was.
            host.set(|now| now.wall -= DAY_MS);
            host.tend().await;
            host.set(|now| {
                now.wall += DAY_MS;
                now.running += DAY_MS;
            });
        } else {
            host.set(|now| {
                now.wall += wall;
                now.running += running;
            });
        }
        let provider = host.provider();
        let refused = provider.import_key_material("own", &material, &made.token, None);
        let refused = named(&refused.await.expect_err("expired"));
        assert_eq!(refused, "ExpiredImportTokenException", "{running} {wall}");
        host.tend().await;
        let connection = rusqlite::Connection::open(host.database()).expect("opened");
        let sql = "SELECT count(*) FROM import_keys";
        let left: i64 = connection
            .query_row(sql, [], |row| row.get(0))
            .expect("a count");
        assert_eq!(left, 0);
    }
}
