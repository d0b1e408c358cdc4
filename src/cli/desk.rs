//! Where operators' actions are done: by the running server, or here when none runs.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use uuid::Uuid;

use super::Global;
use super::action::Action;
use super::output;
use crate::admin::Administration;
use crate::app::{Foundation, Settings, while_working};
use crate::domain::ids::TenantId;
use crate::inference::Embedder;
use crate::store::postgres::server::LockError;
use crate::tenancy::{OperatorScope, PresentedCredentials};

/// A way to have an operator's actions done. To be closed.
pub(super) enum Desk {
    /// A server runs and is asked.
    Server { client: reqwest::Client, credential: SecretString },
    /// No server runs: this process is its own.
    Own(Box<Own>),
}

/// The stores, opened by this process, and the operator that it acts for.
pub(super) struct Own {
    foundation: Foundation,
    admin: Administration,
    operator: OperatorScope,
}

impl Desk {
    /// Finds the running server by its socket, or opens the stores.
    pub(super) async fn open(global: &Global, settings: &Settings) -> anyhow::Result<Self> {
        let socket = settings.data_dir.join("admin.sock");
        let file = global.operator_key.clone();
        let file = file.unwrap_or_else(|| settings.data_dir.join("secrets/operator.key"));
        match UnixStream::connect(&socket) {
            Ok(_) => Self::over(socket, &file),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                Err(error).with_context(|| format!("{} is the server's own user's alone", socket.display()))
            }
            // No socket, or one that a server left behind.
            Err(_) => Self::alone(settings, &socket, &file).await,
        }
    }

    fn over(socket: PathBuf, file: &Path) -> anyhow::Result<Self> {
        // A second call in one process changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().unix_socket(socket).build()?;
        Ok(Self::Server { client, credential: credential(file)? })
    }

    async fn alone(settings: &Settings, socket: &Path, file: &Path) -> anyhow::Result<Self> {
        let _waiting = output::waiting("no server runs: opening the stores");
        let embedding = settings.embedding.clone();
        let model = tokio::task::spawn_blocking(move || Embedder::identify(&embedding)).await??;
        let foundation = Box::pin(Foundation::open(settings, &model)).await.map_err(|error| {
            if matches!(error.downcast_ref(), Some(LockError::LockedBy { .. })) {
                let silent =
                    format!("it does not answer on {}; is it starting or stopping?", socket.display());
                error.context(silent)
            } else {
                error
            }
        })?;
        match Self::authenticated(&foundation, file).await {
            Ok((admin, operator)) => Ok(Self::Own(Box::new(Own { foundation, admin, operator }))),
            Err(error) => {
                foundation.close().await?;
                Err(error)
            }
        }
    }

    /// Whoever can read the data folder is not yet an operator: the credential counts here too.
    async fn authenticated(
        foundation: &Foundation,
        file: &Path,
    ) -> anyhow::Result<(Administration, OperatorScope)> {
        let credential = credential(file)?;
        let presented = PresentedCredentials {
            authorization: Vec::new(),
            x_api_key: vec![credential.expose_secret().as_bytes()],
        };
        let operator = foundation.authenticator.authenticate_operator(&presented).await;
        let operator = operator.map_err(|_| refused(file))?;
        Ok((foundation.administration(), operator))
    }

    /// Has it done.
    pub(super) async fn ask(&self, action: &Action) -> anyhow::Result<Value> {
        match self {
            Self::Own(own) => Ok(action.perform(&own.admin, &own.operator).await?),
            Self::Server { client, credential } => {
                let (method, path, body) = action.request();
                let mut request = client
                    .request(method, format!("http://localhost{path}"))
                    .bearer_auth(credential.expose_secret())
                    .timeout(action.patience());
                if let Some(body) = body {
                    request = request.json(&body);
                }
                let answer = request.send().await.context("the server does not answer")?;
                let status = answer.status();
                let body = answer.bytes().await.context("the server's answer broke off")?;
                let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                if status.is_success() { Ok(body) } else { bail!(problem(status.as_u16(), &body)) }
            }
        }
    }

    /// Waits for `work`, which the running server has a part in; without one, this process does that part.
    pub(super) async fn while_working<T>(
        &self,
        settings: &Settings,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        match self {
            Self::Own(own) => Box::pin(while_working(&own.foundation, settings, work)).await,
            Self::Server { .. } => work.await,
        }
    }

    /// Whether a server runs and is asked.
    pub(super) fn is_server(&self) -> bool {
        matches!(self, Self::Server { .. })
    }

    /// The tenant of this identity or slug.
    pub(super) async fn tenant(&self, named: &str) -> anyhow::Result<TenantId> {
        if let Ok(id) = Uuid::parse_str(named) {
            return Ok(TenantId(id));
        }
        let tenants = self.tenants().await?;
        let found = tenants.iter().find(|tenant| tenant["slug"] == named);
        let id = found.and_then(|tenant| Uuid::parse_str(tenant["tenant_id"].as_str()?).ok());
        id.map(TenantId).with_context(|| format!("there is no tenant with the slug {named:?}"))
    }

    /// Every tenant, page by page.
    pub(super) async fn tenants(&self) -> anyhow::Result<Vec<Value>> {
        let mut tenants = Vec::new();
        let mut after = None;
        loop {
            let mut page = self.ask(&Action::TenantList { after }).await?;
            if let Value::Array(rows) = page["tenants"].take() {
                tenants.extend(rows);
            }
            match page["next"].as_str().and_then(|next| Uuid::parse_str(next).ok()) {
                Some(next) => after = Some(TenantId(next)),
                None => return Ok(tenants),
            }
        }
    }

    /// Closes what was opened.
    pub(super) async fn close(self) -> anyhow::Result<()> {
        match self {
            Self::Own(own) => own.foundation.close().await,
            Self::Server { .. } => Ok(()),
        }
    }
}

/// Opens a desk, works at it, and closes it whatever came of the work.
pub(super) async fn at_desk<T>(
    global: &Global,
    work: impl AsyncFnOnce(&Desk) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    at_desk_with(global, &global.settings()?, work).await
}

/// The same with these settings.
pub(super) async fn at_desk_with<T>(
    global: &Global,
    settings: &Settings,
    work: impl AsyncFnOnce(&Desk) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let desk = Desk::open(global, settings).await?;
    let done = work(&desk).await;
    let closed = desk.close().await;
    let done = done?;
    closed?;
    Ok(done)
}

fn credential(file: &Path) -> anyhow::Result<SecretString> {
    let about = fs::metadata(file).with_context(|| {
        format!("the operator's credential {} cannot be read; --operator-key names another", file.display())
    })?;
    if about.permissions().mode() & 0o077 != 0 {
        bail!("{} can be read by others; allow it to its owner alone (chmod 600)", file.display());
    }
    let text = fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
    Ok(text.trim().into())
}

fn refused(file: &Path) -> anyhow::Error {
    anyhow::anyhow!("the credential in {} is not accepted", file.display())
}

/// A problem of the server (RFC 9457) in one line.
fn problem(status: u16, body: &Value) -> String {
    let text = |name: &str| body[name].as_str().filter(|text| !text.is_empty());
    let mut line = match (text("detail"), text("title")) {
        (Some(detail), _) => detail.to_owned(),
        (None, Some(title)) => title.to_owned(),
        (None, None) => format!("the server answered {status}"),
    };
    for error in body["detail"].as_array().into_iter().chain(body["errors"].as_array()).flatten() {
        if let Some(message) = error["msg"].as_str() {
            let field = error["loc"].as_array().and_then(|loc| loc.last()?.as_str()).unwrap_or("body");
            line += &["; ", field, ": ", message].concat();
        }
    }
    if let (500.., Some(id)) = (status, text("request_id")) {
        line += &[" (request ", id, ")"].concat();
    }
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_problem_becomes_one_line_for_people() {
        let conflict =
            json!({"title": "The request conflicts", "detail": "The slug is taken.", "status": 409});
        assert_eq!(problem(409, &conflict), "The slug is taken.");
        assert_eq!(problem(502, &Value::Null), "the server answered 502");
        let fault = json!({"detail": "Something went wrong here.", "request_id": "r1"});
        assert_eq!(problem(500, &fault), "Something went wrong here. (request r1)");
        let fields = json!({"title": "The request is invalid",
            "detail": [{"loc": ["body", "slug"], "msg": "1 to 63 of a-z"}]});
        assert_eq!(problem(422, &fields), "The request is invalid; slug: 1 to 63 of a-z");
    }

    #[test]
    fn a_credential_that_others_can_read_is_not_used() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("operator.key");
        fs::write(&file, "bo_1\n").expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("opened");
        assert!(credential(&file).is_err());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("closed");
        assert_eq!(credential(&file).expect("read").expose_secret(), "bo_1");
    }
}
