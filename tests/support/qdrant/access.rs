//! Who may do what, by Qdrant's rules: the API key everything, a token what its `access` says, and one without `access`
//! everything too.

use std::sync::PoisonError;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use super::State;

/// A call, and with what credential.
#[derive(Debug, Clone)]
pub struct Seen {
    pub call: &'static str,
    pub credential: String,
}

/// What a call needs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Needs<'a> {
    /// To read this collection.
    Read(&'a str),
    /// To write to this collection.
    Write(&'a str),
    /// To make and delete collections.
    Manage,
}

#[derive(Deserialize)]
struct Claims {
    access: Option<Access>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Access {
    Global(String),
    Collections(Vec<Grant>),
}

#[derive(Deserialize)]
struct Grant {
    collection: String,
    access: String,
}

fn credential(metadata: &MetadataMap) -> Option<String> {
    let text = |name| metadata.get(name)?.to_str().ok();
    let bearer = || text("authorization")?.strip_prefix("Bearer ");
    text("api-key").or_else(bearer).map(str::to_owned)
}

impl State {
    /// Lets a call through, or says why not.
    pub(crate) fn check<T>(
        &self,
        request: &Request<T>,
        call: &'static str,
        needs: Needs<'_>,
    ) -> Result<(), Status> {
        let Some(credential) = credential(request.metadata()) else {
            return Err(Status::unauthenticated("Must provide an API key or an Authorization bearer token"));
        };
        let seen = Seen { call, credential: credential.clone() };
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
        if credential == self.api_key {
            return Ok(());
        }
        let mut rules = Validation::new(Algorithm::HS256);
        rules.leeway = 0;
        rules.required_spec_claims.clear();
        let key = DecodingKey::from_secret(self.api_key.as_bytes());
        let token = jsonwebtoken::decode::<Claims>(&credential, &key, &rules).map_err(|error| match error
            .kind()
        {
            ErrorKind::ExpiredSignature | ErrorKind::InvalidSignature => {
                Status::permission_denied(error.to_string())
            }
            _ => Status::unauthenticated("Invalid API key or JWT"),
        })?;
        let is_allowed = match (token.claims.access, needs) {
            (None, _) => true,
            (Some(Access::Global(access)), Needs::Read(_)) => access == "r" || access == "m",
            (Some(Access::Global(access)), _) => access == "m",
            (Some(Access::Collections(_)), Needs::Manage) => false,
            (Some(Access::Collections(grants)), Needs::Read(name)) => {
                grants.iter().any(|grant| grant.collection == name)
            }
            (Some(Access::Collections(grants)), Needs::Write(name)) => {
                grants.iter().any(|grant| grant.collection == name && grant.access == "rw")
            }
        };
        if is_allowed { Ok(()) } else { Err(Status::permission_denied("Forbidden")) }
    }
}
