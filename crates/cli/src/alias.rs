//! `key alias`: second names of keys.

use sealvol_control::api;
use sealvol_control::client::Client;

use crate::args::Alias;
use crate::run::{CommandError, Printer};
use crate::table::{left, table};

pub(crate) async fn run(client: &Client, print: &Printer, verb: Alias) -> Result<(), CommandError> {
    match verb {
        Alias::Create { alias, key } => {
            let request = api::CreateAlias { alias, key };
            print.answer(&client.create_alias(&request).await?, means)
        }
        Alias::List { provider } => print.answer(&client.aliases(provider.as_deref()).await?, list),
        Alias::Update { alias, key } => {
            let request = api::UpdateAlias { key };
            print.answer(&client.update_alias(&alias, &request).await?, means)
        }
        Alias::Delete { alias } => print.answer(&client.delete_alias(&alias).await?, deleted),
    }
}

fn means(alias: &api::Alias) -> String {
    let mut text = format!(
        "{} means {} now: id {}",
        alias.alias, alias.key, alias.key_id
    );
    if let Some(former) = &alias.former {
        text += &format!("; volumes made before keep id {former}");
    }
    text + "\n"
}

fn list(list: &api::AliasList) -> String {
    let row = |alias: &api::Alias| [alias.alias.clone(), alias.key.clone(), alias.key_id.clone()];
    let rows: Vec<_> = list.aliases.iter().map(row).collect();
    table([left("ALIAS"), left("KEY"), left("ID")], &rows)
}

fn deleted(alias: &api::Alias) -> String {
    format!("{} is gone; {} stays as it is\n", alias.alias, alias.key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_is_told_with_what_it_means() {
        let alias = api::Alias {
            alias: "local:alias/www".into(),
            key: "local:second".into(),
            key_id: "0d7c".into(),
            former: None,
        };
        assert_eq!(
            list(&api::AliasList {
                aliases: vec![alias.clone()]
            }),
            "\
ALIAS            KEY           ID
local:alias/www  local:second  0d7c
"
        );
        assert_eq!(
            deleted(&alias),
            "local:alias/www is gone; local:second stays as it is\n"
        );
        let moved = api::Alias {
            former: Some("1b2c".into()),
            ..alias.clone()
        };
        assert_eq!(
            means(&alias),
            "local:alias/www means local:second now: id 0d7c\n"
        );
        assert_eq!(
            means(&moved),
            "local:alias/www means local:second now: id 0d7c; volumes made before keep id 1b2c\n"
        );
    }
}
