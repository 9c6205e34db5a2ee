//! Every call by its method, path and right, and what is no call.

use sealvol_control::api;

use super::*;

fn parse(method: Method, uri: &str) -> Result<Route, Error> {
    let (path, query) = uri
        .split_once('?')
        .map_or((uri, None), |(p, q)| (p, Some(q)));
    route(&method, path, query)
}

#[test]
fn every_documented_call_is_routed_with_its_right() {
    let v: VolumeName = "v".parse().expect("a name");
    let snapshot = || "v@s".parse().expect("a name");
    let table = [
        (Method::GET, api::STATUS.to_owned(), Route::Status, None),
        (
            Method::POST,
            api::SELFTEST.to_owned(),
            Route::SelfTest,
            Some(Right::Administer),
        ),
        (
            Method::GET,
            api::doctor::DOCTOR.to_owned(),
            Route::Doctor,
            Some(Right::Administer),
        ),
        (
            Method::POST,
            api::STOP.to_owned(),
            Route::Stop,
            Some(Right::Administer),
        ),
        (
            Method::POST,
            api::bench::CIPHER.to_owned(),
            Route::BenchCipher,
            Some(Right::Administer),
        ),
        (
            Method::POST,
            api::bench::VOLUME.to_owned(),
            Route::BenchVolume,
            Some(Right::Administer),
        ),
        (
            Method::GET,
            api::VOLUMES.to_owned(),
            Route::ListVolumes,
            None,
        ),
        (
            Method::POST,
            api::VOLUMES.to_owned(),
            Route::CreateVolume,
            Some(Right::Create),
        ),
        (
            Method::GET,
            "/v1/volumes/v".into(),
            Route::ShowVolume(v.clone()),
            None,
        ),
        (
            Method::DELETE,
            "/v1/volumes/v".into(),
            Route::DeleteVolume(v.clone()),
            Some(Right::Administer),
        ),
        (
            Method::POST,
            "/v1/volumes/v/attach".into(),
            Route::Attach(v.clone()),
            Some(Right::Attach),
        ),
        (
            Method::POST,
            "/v1/volumes/v/detach".into(),
            Route::Detach(v.clone()),
            Some(Right::Attach),
        ),
        (
            Method::POST,
            "/v1/volumes/v/resize".into(),
            Route::Resize(v.clone()),
            Some(Right::Administer),
        ),
        (
            Method::POST,
            "/v1/volumes/v/limit".into(),
            Route::Limit(v.clone()),
            Some(Right::Administer),
        ),
        (
            Method::POST,
            "/v1/volumes/v/on-revoke".into(),
            Route::OnRevoke(v.clone()),
            Some(Right::Administer),
        ),
        (
            Method::GET,
            "/v1/volumes/v/flatten".into(),
            Route::FlattenPlan(v.clone()),
            Some(Right::Administer),
        ),
        (
            Method::POST,
            "/v1/volumes/v/flatten".into(),
            Route::Flatten(v.clone()),
            Some(Right::Administer),
        ),
        (
            Method::POST,
            "/v1/volumes/v/adopt".into(),
            Route::Adopt(v.clone()),
            Some(Right::Administer),
        ),
        (
            Method::POST,
            "/v1/volumes/v/rewrap".into(),
            Route::Rewrap(v.clone()),
            Some(Right::Administer),
        ),
        (
            Method::GET,
            "/v1/volumes/v/map?offset=4096".into(),
            Route::Map(v.clone(), 4096),
            Some(Right::Administer),
        ),
        (
            Method::GET,
            api::KEYS.to_owned(),
            Route::ListKeys(None),
            None,
        ),
        (
            Method::GET,
            "/v1/snapshots?volume=v".into(),
            Route::ListSnapshots(Some(v.clone())),
            None,
        ),
        (
            Method::POST,
            api::SNAPSHOTS.to_owned(),
            Route::CreateSnapshots,
            Some(Right::Create),
        ),
        (
            Method::GET,
            "/v1/snapshots/v@s".into(),
            Route::ShowSnapshot(snapshot()),
            None,
        ),
        (
            Method::DELETE,
            "/v1/snapshots/v%40s".into(),
            Route::DeleteSnapshot(snapshot()),
            Some(Right::Administer),
        ),
        (
            Method::POST,
            "/v1/snapshots/v@s/attach".into(),
            Route::AttachSnapshot(snapshot()),
            Some(Right::Attach),
        ),
        (
            Method::POST,
            "/v1/snapshots/v@s/detach".into(),
            Route::DetachSnapshot(snapshot()),
            Some(Right::Attach),
        ),
        (
            Method::POST,
            "/v1/snapshots/v@s/copy".into(),
            Route::CopySnapshot(snapshot()),
            Some(Right::Create),
        ),
        (
            Method::GET,
            "/v1/snapshots/v@s/changes?offset=7".into(),
            Route::SnapshotChanges(snapshot(), 7),
            Some(Right::Administer),
        ),
        (
            Method::POST,
            "/v1/volumes/v/rekey".into(),
            Route::Rekey(v),
            Some(Right::Administer),
        ),
        (Method::GET, api::JOBS.to_owned(), Route::ListJobs, None),
        (
            Method::GET,
            "/v1/jobs/7".into(),
            Route::ShowJob(JobId(7)),
            None,
        ),
        (
            Method::POST,
            "/v1/jobs/7/cancel".into(),
            Route::CancelJob(JobId(7)),
            Some(Right::Administer),
        ),
        (
            Method::GET,
            "/v1/keys?provider=local".into(),
            Route::ListKeys(Some("local".into())),
            None,
        ),
        (
            Method::POST,
            api::KEYS.to_owned(),
            Route::CreateKey,
            Some(Right::Administer),
        ),
        (
            Method::GET,
            "/v1/keys/aws:arn%3Akey%2F1".into(),
            Route::ShowKey("aws:arn:key/1".into()),
            None,
        ),
        (
            Method::POST,
            "/v1/keys/local:k/change".into(),
            Route::ChangeKey("local:k".into()),
            Some(Right::Administer),
        ),
        (
            Method::POST,
            "/v1/keys/local/accept-table".into(),
            Route::AcceptKeyTable("local".into()),
            Some(Right::Administer),
        ),
        (
            Method::POST,
            "/v1/keys/local/backup".into(),
            Route::BackUpKeys("local".into()),
            Some(Right::Administer),
        ),
        (
            Method::POST,
            "/v1/keys/local:k/import-parameters".into(),
            Route::ImportParameters("local:k".into()),
            Some(Right::Administer),
        ),
        (
            Method::GET,
            "/v1/keys/local:k/policy".into(),
            Route::KeyPolicy("local:k".into()),
            Some(Right::Administer),
        ),
        (
            Method::POST,
            "/v1/keys/local:k/policy".into(),
            Route::SetKeyPolicy("local:k".into()),
            Some(Right::Administer),
        ),
        (
            Method::POST,
            "/v1/keys/local:k/import".into(),
            Route::ImportKeyMaterial("local:k".into()),
            Some(Right::Administer),
        ),
        (
            Method::GET,
            api::KEY_SETS.to_owned(),
            Route::ListKeySets,
            None,
        ),
        (
            Method::POST,
            api::KEY_SETS.to_owned(),
            Route::CreateKeySet,
            Some(Right::Administer),
        ),
        (
            Method::GET,
            "/v1/key-sets/s".into(),
            Route::ShowKeySet("s".parse().expect("a name")),
            None,
        ),
        (
            Method::POST,
            "/v1/key-sets/s/update".into(),
            Route::UpdateKeySet("s".parse().expect("a name")),
            Some(Right::Administer),
        ),
        (
            Method::DELETE,
            "/v1/key-sets/s".into(),
            Route::DeleteKeySet("s".parse().expect("a name")),
            Some(Right::Administer),
        ),
        (
            Method::GET,
            "/v1/aliases?provider=local".into(),
            Route::ListAliases(Some("local".into())),
            None,
        ),
        (
            Method::POST,
            api::ALIASES.to_owned(),
            Route::CreateAlias,
            Some(Right::Administer),
        ),
        (
            Method::POST,
            "/v1/aliases/local:alias%2Fa".into(),
            Route::UpdateAlias("local:alias/a".into()),
            Some(Right::Administer),
        ),
        (
            Method::DELETE,
            "/v1/aliases/local:alias%2Fa".into(),
            Route::DeleteAlias("local:alias/a".into()),
            Some(Right::Administer),
        ),
    ];
    for (method, uri, expected, right) in table {
        let found = parse(method, &uri).expect(&uri);
        assert_eq!(found, expected, "{uri}");
        assert_eq!(found.right(), right, "{uri}");
    }
}

#[test]
fn what_is_no_call_is_refused() {
    for (method, uri) in [
        (Method::GET, "/"),
        (Method::GET, "/v2/status"),
        (Method::POST, "/v1/status"),
        (Method::PUT, "/v1/volumes"),
        (Method::GET, "/v1/volumes/v/attach"),
        (Method::GET, "/v1/volumes/v/map/x"),
        (Method::GET, "/v1/jobs/x"),
        (Method::POST, "/v1/jobs/7"),
        (Method::GET, "/v1/keys/%zz"),
        (Method::GET, "/v1/keys/%+1"),
        (Method::GET, "/v1/keys/%ff"),
    ] {
        let refused = parse(method, uri);
        assert!(
            matches!(refused, Err(Error::NoSuchCall { .. })),
            "{uri}: {refused:?}"
        );
    }
    for uri in [
        "/v1/volumes/v/map?offset=x",
        "/v1/volumes/v/map?limit=1",
        "/v1/keys?a=b",
    ] {
        assert!(
            matches!(parse(Method::GET, uri), Err(Error::BadRequest(_))),
            "{uri}"
        );
    }
    for uri in [
        "/v1/volumes/..",
        "/v1/volumes/%2e%2e%2fx",
        "/v1/volumes/a%20b",
    ] {
        assert!(
            matches!(parse(Method::GET, uri), Err(Error::BadName(_))),
            "{uri}"
        );
    }
}
