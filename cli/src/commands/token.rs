//! `token`

use std::io::{self, IsTerminal as _};

use anyhow::Context as _;
use minisvc_proto::{
    Object, ObjectKey, client::ListParams, join::JoinToken, path::Target, resource::JOIN_TOKENS,
};
use serde_json::json;

use super::{DONE, Outcome, Session, complain};
use crate::{
    args::{TokenCommand, TokenCreate, TokenList, TokenRevoke},
    output::{self, TablePrinter, TableStyle},
};

pub(super) async fn run(session: &Session, command: TokenCommand) -> Outcome {
    match command {
        TokenCommand::Create(args) => create(session, args).await,
        TokenCommand::List(args) => list(session, args).await,
        TokenCommand::Revoke(args) => revoke(session, args).await,
    }
}

async fn create(session: &Session, args: TokenCreate) -> Outcome {
    let mut token = Object::new(&JOIN_TOKENS, None, "");
    token.metadata_mut().remove("name");
    let spec = token.spec_mut();
    spec.insert("ttlSeconds".into(), args.ttl.as_secs().into());
    if let Some(uses) = args.uses {
        spec.insert("uses".into(), uses.into());
    }
    if let Some(text) = args.description {
        spec.insert("description".into(), text.into());
    }
    let made = session.client.create(&Target::collection(&JOIN_TOKENS, None), &token, false).await?;
    let text =
        made.str_at("/status/token").context("the server's answer holds no token: is it an older one?")?;
    output::line(text)?;
    // Scripts take stdout; who sits before a terminal wants to know what to do with it.
    if io::stderr().is_terminal() {
        output::note(&format!(
            "On the machine that is to join: minisvc agent --server {} --token {text}",
            session.client.server()
        ));
    }
    Ok(DONE)
}

async fn list(session: &Session, args: TokenList) -> Outcome {
    let target = Target::collection(&JOIN_TOKENS, None);
    let table = session.client.table(&target, &ListParams::default()).await?;
    if table.rows.is_empty() {
        output::note("No join tokens: `minisvc token create` makes one");
    }
    let style = TableStyle { headless: args.no_headers, ..TableStyle::default() };
    output::bytes(TablePrinter::new(style).render(&table).as_bytes())?;
    Ok(DONE)
}

async fn revoke(session: &Session, args: TokenRevoke) -> Outcome {
    let mut code = DONE;
    for text in args.ids {
        // The whole token is what people have at hand. Its secret goes nowhere.
        let id = text.parse::<JoinToken>().map_or(text, |token| token.id);
        if !id.bytes().all(|c| c.is_ascii_alphanumeric()) || id.is_empty() {
            code = complain(anyhow::anyhow!(
                "this is neither a token's id, as `minisvc token list` shows it, nor a whole token"
            ));
            continue;
        }
        let key = ObjectKey::cluster(&JOIN_TOKENS, &id);
        match session.client.delete(&Target::object(&key), &json!({})).await {
            Ok(_) => output::line(&format!("join token {id} revoked"))?,
            Err(e @ minisvc_proto::client::ClientError::Api(_)) => code = complain(e),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(code)
}
