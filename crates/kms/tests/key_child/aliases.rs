//! Aliases: what each call about them answers, and that a wrapped key remembers none.

use sealvol_control::keychild::{
    ALIASES_MAX, AliasChange, AliasChanged, Call, Done, FailureClass, KeyChange, KeyDescription,
    Origin, Right,
};

use crate::place::{Place, change, context, generate, rewrap, unwrap};

const WWW: &str = "alias/www";

fn create(key: &str) -> AliasChange {
    AliasChange::Create {
        key: key.to_owned(),
    }
}

fn update(key: &str) -> AliasChange {
    AliasChange::Update {
        key: key.to_owned(),
    }
}

impl Place {
    async fn describe(&self, key: &str) -> KeyDescription {
        let key = key.to_owned();
        match self.call(Right::Attach, Call::Describe { key }).await {
            Ok(Done::Describe(key)) => key,
            other => panic!("describe: {other:?}"),
        }
    }

    async fn changed(&self, alias: &str, how: AliasChange) -> AliasChanged {
        match self.change_alias(alias, how).await {
            Ok(Done::ChangeAlias(changed)) => changed,
            other => panic!("alias: {other:?}"),
        }
    }

    async fn alias_refusal(&self, alias: &str, how: AliasChange) -> String {
        let refused = self.change_alias(alias, how.clone()).await;
        refused
            .expect_err(&format!("{alias} {how:?}"))
            .provider_error
    }
}

#[tokio::test]
async fn an_alias_means_one_key_until_it_means_another() {
    let place = Place::with_default_key().await;
    place.create_key("second").await.unwrap();
    let first = place.describe("default").await.key_id;
    let second = place.describe("second").await.key_id;
    let made = place.changed(WWW, create("default")).await;
    assert_eq!((made.key_id, made.former), (Some(first.clone()), None));
    let key = place.describe(WWW).await;
    assert_eq!(
        (&key.key_id, &key.aliases[..]),
        (&first, &[WWW.to_owned()][..])
    );
    // By the alias as by its name: what is wrapped names the key.
    let ctx = context("1");
    let old = place.generate(WWW, &ctx).await;
    assert_eq!(old.key_id, first);
    place.unwrap(unwrap(WWW, &old.blob, &ctx)).await.unwrap();

    let moved = place.changed(WWW, update(&second)).await;
    assert_eq!(moved.key_id.as_ref(), Some(&second));
    assert_eq!(moved.former.as_ref(), Some(&first));
    let new = place.generate(WWW, &ctx).await;
    assert_eq!(new.key_id, second);
    place.unwrap(unwrap(&first, &old.blob, &ctx)).await.unwrap();
    let refused = place.unwrap(unwrap(WWW, &old.blob, &ctx)).await;
    let refused = refused.err().expect("the alias means another key");
    assert_eq!(refused.provider_error, "IncorrectKeyException");
    let to_alias = rewrap((&first, &old.blob, &ctx), (WWW, &ctx));
    let Ok(Done::Rewrap(again)) = place.call(Right::Administer, to_alias).await else {
        panic!("not rewrapped")
    };
    assert_eq!(again.key_id, second);

    let gone = place.changed(WWW, AliasChange::Delete).await;
    assert_eq!((gone.key_id, gone.former), (None, Some(second.clone())));
    let refused = place.refusal(Right::Create, generate(WWW, &ctx)).await;
    assert_eq!(
        refused,
        (FailureClass::GoneForEver, "NotFoundException".into())
    );
    assert!(place.describe("second").await.aliases.is_empty());
}

#[tokio::test]
async fn each_call_about_an_alias_is_refused_by_the_name_that_aws_kms_gives_it() {
    let place = Place::with_default_key().await;
    place.create_key("dying").await.unwrap();
    place.changed(WWW, create("default")).await;
    place.changed("alias/old", create("dying")).await;
    place.changed("alias/older", create("dying")).await;
    let schedule = KeyChange::ScheduleDeletion { days: 7 };
    place.change("dying", schedule).await.unwrap();
    for (alias, how, expected) in [
        (WWW, create("default"), "AlreadyExistsException"),
        ("alias/new", create("nothing"), "NotFoundException"),
        ("alias/new", create(WWW), "ValidationException"),
        ("alias/new", update("default"), "NotFoundException"),
        ("alias/new", AliasChange::Delete, "NotFoundException"),
        ("alias/new", create("dying"), "KMSInvalidStateException"),
        (WWW, update("dying"), "KMSInvalidStateException"),
        ("www", create("default"), "InvalidAliasNameException"),
        ("alias/", create("default"), "InvalidAliasNameException"),
        ("alias/a b", create("default"), "InvalidAliasNameException"),
    ] {
        assert_eq!(
            place.alias_refusal(alias, how.clone()).await,
            expected,
            "{alias} {how:?}"
        );
    }
    let long = format!("alias/{}", "a".repeat(251));
    assert_eq!(
        place.alias_refusal(&long, create("default")).await,
        "InvalidAliasNameException"
    );
    // Away from a key that is pending deletion it may go.
    place.changed("alias/old", update("default")).await;
    place.changed("alias/older", AliasChange::Delete).await;
    // What changes a key names the key.
    let refused = place.change(WWW, KeyChange::Disable).await.unwrap_err();
    assert_eq!(refused.provider_error, "ValidationException");
    // Other rights than to administer change nothing.
    for right in [Right::Create, Right::Attach] {
        let call = Call::ChangeAlias {
            alias: WWW.to_owned(),
            change: AliasChange::Delete,
        };
        assert_eq!(place.refusal(right, call).await.1, "AccessDeniedException");
    }
    let key = Call::CreateKey {
        name: "alias/key".to_owned(),
        origin: Origin::Local,
    };
    assert_eq!(
        place.refusal(Right::Administer, key).await.1,
        "ValidationException"
    );
}

#[tokio::test]
async fn a_key_has_fifty_aliases_and_no_more_and_they_go_with_it() {
    let place = Place::with_default_key().await;
    place.create_key("second").await.unwrap();
    let name = |number: usize| format!("alias/{number}");
    let calls = (0..=ALIASES_MAX).map(|number| Call::ChangeAlias {
        alias: name(number),
        change: create("default"),
    });
    let mut results = place
        .answer(Right::Administer, calls.collect())
        .await
        .results;
    let last = results.pop().expect("an answer").unwrap_err();
    assert_eq!(last.provider_error, "LimitExceededException");
    assert!(results.iter().all(Result::is_ok));
    // One that it has may be named for it again; one of another key may not come to it.
    place.changed(&name(0), update("default")).await;
    place.changed("alias/other", create("second")).await;
    assert_eq!(
        place.alias_refusal("alias/other", update("default")).await,
        "LimitExceededException"
    );
    assert_eq!(place.describe("default").await.aliases.len(), ALIASES_MAX);
    crate::subject::Subject::destroy(&place, "default");
    for gone in ["alias/0", "alias/49"] {
        let call = Call::Describe {
            key: gone.to_owned(),
        };
        assert_eq!(
            place.refusal(Right::Attach, call).await.1,
            "NotFoundException"
        );
    }
    assert_eq!(place.describe("alias/other").await.name, "second");
    // Their names are free.
    place.changed("alias/0", create("second")).await;
    let calls = vec![
        change("second", KeyChange::Disable),
        change("second", KeyChange::Enable),
    ];
    let results = place.answer(Right::Administer, calls).await.results;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}

#[tokio::test]
async fn a_key_that_an_earlier_release_called_like_an_alias_keeps_its_name() {
    let place = Place::with_default_key().await;
    let mine = place.describe("default").await.key_id;
    place.make_format(2);
    place.sql("UPDATE keys SET name = 'alias/mine'");
    place.mac_anew(2);
    assert_eq!(place.describe("alias/mine").await.key_id, mine);
    place.create_key("other").await.unwrap();
    let taken = place.alias_refusal("alias/mine", create("other")).await;
    assert_eq!(taken, "AlreadyExistsException");
    place
        .change("alias/mine", KeyChange::Disable)
        .await
        .unwrap();
}
