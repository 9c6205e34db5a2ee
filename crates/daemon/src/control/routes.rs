//! Which call a request means, which right it needs, and the operation behind it.
//!
//! Each call runs as a task of its own: hyper drops what it awaits when a client goes away, and an
//! operation on a volume must be carried to its end. A measurement is told, and ends itself.

use std::fs::File;
use std::sync::{Arc, Weak};

use hyper::Method;
use hyper::body::Bytes;
use hyper::http::request::Parts;
use sealvol_control::api::{KeySetName, SnapshotRef, VolumeName};
use sealvol_control::keychild::Right;
use sealvol_crypto::VolumeKey;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::daemon::Daemon;
use crate::error::Error;
use crate::jobs::JobId;
use crate::rights::Caller;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Route {
    Status,
    SelfTest,
    Doctor,
    Stop,
    BenchCipher,
    BenchVolume,
    ListVolumes,
    CreateVolume,
    ShowVolume(VolumeName),
    DeleteVolume(VolumeName),
    Attach(VolumeName),
    Detach(VolumeName),
    Resize(VolumeName),
    Limit(VolumeName),
    OnRevoke(VolumeName),
    Map(VolumeName, u64),
    FlattenPlan(VolumeName),
    Flatten(VolumeName),
    Adopt(VolumeName),
    Rewrap(VolumeName),
    ListSnapshots(Option<VolumeName>),
    CreateSnapshots,
    ShowSnapshot(SnapshotRef),
    DeleteSnapshot(SnapshotRef),
    AttachSnapshot(SnapshotRef),
    DetachSnapshot(SnapshotRef),
    SnapshotChanges(SnapshotRef, u64),
    CopySnapshot(SnapshotRef),
    Rekey(VolumeName),
    ListJobs,
    ShowJob(JobId),
    CancelJob(JobId),
    ListKeys(Option<String>),
    CreateKey,
    ShowKey(String),
    ChangeKey(String),
    AcceptKeyTable(String),
    BackUpKeys(String),
    ListKeySets,
    CreateKeySet,
    ShowKeySet(KeySetName),
    UpdateKeySet(KeySetName),
    DeleteKeySet(KeySetName),
    KeyPolicy(String),
    SetKeyPolicy(String),
    ImportParameters(String),
    ImportKeyMaterial(String),
    ListAliases(Option<String>),
    CreateAlias,
    UpdateAlias(String),
    DeleteAlias(String),
}

impl Route {
    /// The right that it needs; none: any right will do.
    fn right(&self) -> Option<Right> {
        match self {
            Self::Status
            | Self::ListVolumes
            | Self::ShowVolume(_)
            | Self::ListSnapshots(_)
            | Self::ShowSnapshot(_)
            | Self::ListJobs
            | Self::ShowJob(_)
            | Self::ListKeys(_)
            | Self::ShowKey(_)
            | Self::ListKeySets
            | Self::ListAliases(_)
            | Self::ShowKeySet(_) => None,
            Self::CreateVolume | Self::CreateSnapshots | Self::CopySnapshot(_) => {
                Some(Right::Create)
            }
            Self::Attach(_)
            | Self::Detach(_)
            | Self::AttachSnapshot(_)
            | Self::DetachSnapshot(_) => Some(Right::Attach),
            Self::SelfTest
            | Self::Doctor
            | Self::Stop
            | Self::BenchCipher
            | Self::BenchVolume
            | Self::DeleteVolume(_)
            | Self::Resize(_)
            | Self::Limit(_)
            | Self::OnRevoke(_)
            | Self::Map(..)
            | Self::FlattenPlan(_)
            | Self::Flatten(_)
            | Self::Adopt(_)
            | Self::Rewrap(_)
            | Self::Rekey(_)
            | Self::CancelJob(_)
            | Self::DeleteSnapshot(_)
            | Self::SnapshotChanges(..)
            | Self::AcceptKeyTable(_)
            | Self::BackUpKeys(_)
            | Self::CreateKeySet
            | Self::UpdateKeySet(_)
            | Self::DeleteKeySet(_)
            | Self::ChangeKey(_)
            | Self::KeyPolicy(_)
            | Self::SetKeyPolicy(_)
            | Self::ImportParameters(_)
            | Self::ImportKeyMaterial(_)
            | Self::CreateAlias
            | Self::UpdateAlias(_)
            | Self::DeleteAlias(_)
            | Self::CreateKey => Some(Right::Administer),
        }
    }
}

/// The call that a request means, if its caller may make it.
fn permitted(daemon: &Daemon, caller: Caller, head: &Parts) -> Result<Route, Error> {
    // A stranger learns nothing, not even which calls and volumes there are.
    daemon.require_any(caller)?;
    let route = route(&head.method, head.uri.path(), head.uri.query())?;
    if let Some(right) = route.right() {
        daemon.require(caller, right)?;
    }
    Ok(route)
}

/// What a descriptor that comes with a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bringing {
    /// Something that a data key is read from.
    Key,
    /// A file that is written to.
    File,
}

/// What came with a call.
#[derive(Default)]
pub(super) struct Brought {
    pub(super) key: Option<VolumeKey>,
    pub(super) file: Option<File>,
}

/// What the caller may bring with that call, if it may make it.
pub(super) fn may_bring(daemon: &Daemon, caller: Caller, head: &Parts) -> Result<Bringing, Error> {
    match permitted(daemon, caller, head)? {
        Route::CreateVolume | Route::Attach(_) | Route::AttachSnapshot(_) => Ok(Bringing::Key),
        Route::BackUpKeys(_) => Ok(Bringing::File),
        _ => Err(Error::BadRequest("no key belongs to this call".to_owned())),
    }
}

/// Carries out a request, with what came with it, and gives the answer as JSON.
pub(super) async fn call(
    daemon: Arc<Daemon>,
    caller: Caller,
    head: &Parts,
    body: Bytes,
    given: Brought,
) -> Result<Vec<u8>, Error> {
    let route = permitted(&daemon, caller, head)?;
    let leave = daemon.leave().await?;
    // Lives as long as somebody waits for the answer: what only answers can end with it.
    let waits = Arc::new(());
    let wanted = Arc::downgrade(&waits);
    let task = tokio::spawn(async move {
        let answer = carry_out(&daemon, caller, route, &body, given, wanted).await;
        drop(leave);
        answer
    });
    task.await
        .unwrap_or_else(|error| Err(Error::Internal(error.to_string())))
}

async fn carry_out(
    daemon: &Arc<Daemon>,
    caller: Caller,
    route: Route,
    body: &Bytes,
    Brought { key: given, file }: Brought,
    wanted: Weak<()>,
) -> Result<Vec<u8>, Error> {
    match route {
        Route::Status => json(&daemon.status().await?),
        Route::SelfTest => json(&daemon.memory.selftest()?),
        Route::Doctor => json(&daemon.doctor().await?),
        Route::Stop => json(&daemon.stop(message_or_default(body)?).await?),
        Route::BenchCipher => json(&daemon.bench_cipher(message(body)?, wanted).await?),
        Route::BenchVolume => json(&daemon.bench_volume(caller, message(body)?, wanted).await?),
        Route::ListVolumes => json(&daemon.list_volumes().await?),
        Route::CreateVolume => json(&daemon.create_volume(caller, message(body)?, given).await?),
        Route::ShowVolume(name) => json(&daemon.show_volume(&name).await?),
        Route::DeleteVolume(name) => json(
            &daemon
                .delete_volume(caller, name, message_or_default(body)?)
                .await?,
        ),
        Route::Attach(name) => json(
            &daemon
                .attach_volume(caller, name, message_or_default(body)?, given)
                .await?,
        ),
        Route::Detach(name) => json(
            &daemon
                .detach_volume(caller, name, message_or_default(body)?)
                .await?,
        ),
        Route::Resize(name) => json(&daemon.resize_volume(name, message(body)?).await?),
        Route::OnRevoke(name) => json(&daemon.set_on_revoke(name, message(body)?).await?),
        Route::Limit(name) => json(&daemon.limit_volume(name, message(body)?).await?),
        Route::Map(name, offset) => json(&daemon.map_volume(&name, offset).await?),
        Route::FlattenPlan(name) => json(&daemon.flatten_plan(&name).await?),
        Route::Flatten(name) => json(
            &daemon
                .flatten_volume(&name, message_or_default(body)?)
                .await?,
        ),
        Route::Adopt(name) => json(&daemon.adopt_volume(caller, name, message(body)?).await?),
        Route::Rewrap(name) => json(
            &daemon
                .rewrap_volume(caller, name, message_or_default(body)?)
                .await?,
        ),
        Route::ListSnapshots(volume) => json(&daemon.list_snapshots(volume).await?),
        Route::CreateSnapshots => json(&daemon.create_snapshots(caller, message(body)?).await?),
        Route::ShowSnapshot(name) => json(&daemon.show_snapshot(&name).await?),
        Route::DeleteSnapshot(name) => json(&daemon.delete_snapshot(caller, name).await?),
        Route::AttachSnapshot(name) => json(
            &daemon
                .attach_snapshot(caller, name, message_or_default(body)?, given)
                .await?,
        ),
        Route::DetachSnapshot(name) => json(
            &daemon
                .detach_snapshot(name, message_or_default(body)?)
                .await?,
        ),
        Route::SnapshotChanges(name, offset) => {
            json(&daemon.snapshot_changes(&name, offset).await?)
        }
        Route::CopySnapshot(name) => {
            json(&daemon.copy_snapshot(caller, name, message(body)?).await?)
        }
        Route::Rekey(name) => json(
            &daemon
                .rekey_volume(caller, name, message_or_default(body)?)
                .await?,
        ),
        Route::ListJobs => json(&daemon.list_jobs().await?),
        Route::ShowJob(id) => json(&daemon.show_job(id).await?),
        Route::CancelJob(id) => json(&daemon.cancel_job(id).await?),
        Route::ListKeys(provider) => json(&daemon.list_keys(provider.as_deref()).await?),
        Route::CreateKey => json(&daemon.create_key(caller, message(body)?).await?),
        Route::ShowKey(key) => json(&daemon.show_key(&key).await?),
        Route::ChangeKey(key) => json(&daemon.change_key(caller, &key, message(body)?).await?),
        Route::AcceptKeyTable(provider) => json(&daemon.accept_key_table(caller, &provider).await?),
        Route::BackUpKeys(provider) => {
            let missing = || Error::BadRequest("its file does not come".to_owned());
            let (request, file) = (message(body)?, file.ok_or_else(missing)?);
            json(
                &daemon
                    .back_up_keys(caller, &provider, request, file)
                    .await?,
            )
        }
        Route::ListKeySets => json(&daemon.list_key_sets().await?),
        Route::CreateKeySet => json(&daemon.create_key_set(caller, message(body)?).await?),
        Route::ShowKeySet(name) => json(&daemon.show_key_set(name).await?),
        Route::UpdateKeySet(name) => {
            json(&daemon.update_key_set(caller, name, message(body)?).await?)
        }
        Route::DeleteKeySet(name) => json(&daemon.delete_key_set(caller, name).await?),
        Route::KeyPolicy(key) => json(&daemon.key_policy(caller, &key).await?),
        Route::SetKeyPolicy(key) => {
            json(&daemon.set_key_policy(caller, &key, message(body)?).await?)
        }
        Route::ImportParameters(key) => json(
            &daemon
                .import_parameters(caller, &key, message_or_default(body)?)
                .await?,
        ),
        Route::ImportKeyMaterial(key) => json(
            &daemon
                .import_key_material(caller, &key, message(body)?)
                .await?,
        ),
        Route::ListAliases(provider) => json(&daemon.list_aliases(provider.as_deref()).await?),
        Route::CreateAlias => json(&daemon.create_alias(caller, message(body)?).await?),
        Route::UpdateAlias(alias) => {
            json(&daemon.update_alias(caller, &alias, message(body)?).await?)
        }
        Route::DeleteAlias(alias) => json(&daemon.delete_alias(caller, &alias).await?),
    }
}

fn route(method: &Method, path: &str, query: Option<&str>) -> Result<Route, Error> {
    let no_such_call = || Error::NoSuchCall {
        method: method.to_string(),
        path: path.to_owned(),
    };
    let segments: Vec<String> = path
        .strip_prefix("/v1/")
        .ok_or_else(no_such_call)?
        .split('/')
        .map(percent_decoded)
        .collect::<Option<_>>()
        .ok_or_else(no_such_call)?;
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let get = method == Method::GET;
    let post = method == Method::POST;
    let delete = method == Method::DELETE;
    Ok(match segments[..] {
        ["status"] if get => Route::Status,
        ["selftest"] if post => Route::SelfTest,
        ["doctor"] if get => Route::Doctor,
        ["stop"] if post => Route::Stop,
        ["bench", "cipher"] if post => Route::BenchCipher,
        ["bench", "volume"] if post => Route::BenchVolume,
        ["volumes"] if get => Route::ListVolumes,
        ["volumes"] if post => Route::CreateVolume,
        ["volumes", name] if get => Route::ShowVolume(name.parse()?),
        ["volumes", name] if delete => Route::DeleteVolume(name.parse()?),
        ["volumes", name, "attach"] if post => Route::Attach(name.parse()?),
        ["volumes", name, "detach"] if post => Route::Detach(name.parse()?),
        ["volumes", name, "resize"] if post => Route::Resize(name.parse()?),
        ["volumes", name, "on-revoke"] if post => Route::OnRevoke(name.parse()?),
        ["volumes", name, "limit"] if post => Route::Limit(name.parse()?),
        ["volumes", name, "flatten"] if get => Route::FlattenPlan(name.parse()?),
        ["volumes", name, "flatten"] if post => Route::Flatten(name.parse()?),
        ["volumes", name, "adopt"] if post => Route::Adopt(name.parse()?),
        ["volumes", name, "rewrap"] if post => Route::Rewrap(name.parse()?),
        ["volumes", name, "map"] if get => Route::Map(name.parse()?, offset(query)?),
        ["snapshots"] if get => {
            let volume = parameter(query, "volume")?;
            Route::ListSnapshots(volume.map(|name| name.parse()).transpose()?)
        }
        ["snapshots"] if post => Route::CreateSnapshots,
        ["snapshots", name] if get => Route::ShowSnapshot(name.parse()?),
        ["snapshots", name] if delete => Route::DeleteSnapshot(name.parse()?),
        ["snapshots", name, "attach"] if post => Route::AttachSnapshot(name.parse()?),
        ["snapshots", name, "detach"] if post => Route::DetachSnapshot(name.parse()?),
        ["snapshots", name, "copy"] if post => Route::CopySnapshot(name.parse()?),
        ["snapshots", name, "changes"] if get => {
            Route::SnapshotChanges(name.parse()?, offset(query)?)
        }
        ["volumes", name, "rekey"] if post => Route::Rekey(name.parse()?),
        ["jobs"] if get => Route::ListJobs,
        ["jobs", id] if get => Route::ShowJob(id.parse().map_err(|_| no_such_call())?),
        ["jobs", id, "cancel"] if post => Route::CancelJob(id.parse().map_err(|_| no_such_call())?),
        ["keys"] if get => Route::ListKeys(parameter(query, "provider")?),
        ["keys"] if post => Route::CreateKey,
        ["keys", key] if get => Route::ShowKey(key.to_owned()),
        ["keys", key, "change"] if post => Route::ChangeKey(key.to_owned()),
        ["key-sets"] if get => Route::ListKeySets,
        ["key-sets"] if post => Route::CreateKeySet,
        ["key-sets", name] if get => Route::ShowKeySet(name.parse()?),
        ["key-sets", name] if delete => Route::DeleteKeySet(name.parse()?),
        ["key-sets", name, "update"] if post => Route::UpdateKeySet(name.parse()?),
        ["keys", key, "import-parameters"] if post => Route::ImportParameters(key.to_owned()),
        ["keys", key, "policy"] if get => Route::KeyPolicy(key.to_owned()),
        ["keys", key, "policy"] if post => Route::SetKeyPolicy(key.to_owned()),
        ["keys", key, "import"] if post => Route::ImportKeyMaterial(key.to_owned()),
        ["aliases"] if get => Route::ListAliases(parameter(query, "provider")?),
        ["aliases"] if post => Route::CreateAlias,
        ["aliases", alias] if post => Route::UpdateAlias(alias.to_owned()),
        ["aliases", alias] if delete => Route::DeleteAlias(alias.to_owned()),
        ["keys", provider, "accept-table"] if post => Route::AcceptKeyTable(provider.to_owned()),
        ["keys", provider, "backup"] if post => Route::BackUpKeys(provider.to_owned()),
        _ => return Err(no_such_call()),
    })
}

/// The byte to begin at, in the query.
fn offset(query: Option<&str>) -> Result<u64, Error> {
    parameter(query, "offset")?.map_or(Ok(0), |text| {
        text.parse()
            .map_err(|_| Error::BadRequest(format!("offset={text} is no number")))
    })
}

/// The value of the one query parameter that a path has; another one is refused.
fn parameter(query: Option<&str>, name: &str) -> Result<Option<String>, Error> {
    let Some(query) = query.filter(|query| !query.is_empty()) else {
        return Ok(None);
    };
    let unknown = || Error::BadRequest(format!("the query `{query}` is not understood"));
    let value = query
        .strip_prefix(name)
        .and_then(|rest| rest.strip_prefix('='));
    let value = value
        .filter(|value| !value.contains(['&', '=']))
        .ok_or_else(unknown)?;
    percent_decoded(value).map(Some).ok_or_else(unknown)
}

/// `text` without percent-encoding (RFC 3986, section 2.1), if that is UTF-8.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first != b'%' {
            bytes.push(first);
            rest = after;
            continue;
        }
        let digits = std::str::from_utf8(after.get(..2)?).ok()?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).ok()
}

fn message<T: DeserializeOwned>(body: &Bytes) -> Result<T, Error> {
    serde_json::from_slice(body)
        .map_err(|error| Error::BadRequest(format!("its body is not understood: {error}")))
}

fn message_or_default<T: DeserializeOwned + Default>(body: &Bytes) -> Result<T, Error> {
    if body.is_empty() {
        Ok(T::default())
    } else {
        message(body)
    }
}

fn json<T: Serialize>(answer: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(answer).map_err(|error| Error::Internal(error.to_string()))
}

#[cfg(test)]
mod tests;
