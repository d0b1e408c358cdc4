//! What is wrong with a deployment and how to mend it, with a server, without one, and with one that does not start.
//!
//! Machine, files, model, certificate and programs are looked at here. Of the stores a running server tells
//! (`GET /admin/doctor`); without one they are opened here, without the corrections and migrations of a start.
//!
//! **Invariant:** nothing is changed: no role, no table, no mode, no secret. A PostgreSQL that is started is stopped.

mod files;
mod machine;

use std::path::{Path, PathBuf};

use chrono::{DateTime, Duration, Utc};

use super::Settings;
use crate::config::ConfigError;
use crate::domain::clock::{Clock as _, SystemClock};
use crate::domain::finding::{Finding, Report, Severity};
use crate::http;
use crate::inference::{Embedder, EmbedderError, EmbeddingSettings};
use crate::store::postgres::RoleAddresses;
use crate::store::postgres::address::ServerAddresses;
use crate::store::postgres::diagnose;
use crate::store::postgres::roles::Role;
use crate::store::postgres::secrets::{RoleSecrets, SystemEntropy};
use crate::store::postgres::server::{self, DataLock, LockError, PrivateServer, ServerPaths};
use files::Holder;
use machine::Readings;

/// Days before the end of a certificate from which it is told.
const EXPIRES_SOON: Duration = Duration::days(21);
const STORES: &str = "stores";

/// What a configuration that cannot be used has to say. Nothing else can be looked at: without settings nobody knows
/// where anything is.
#[must_use]
pub fn misconfigured(error: &ConfigError) -> Report {
    let faults = match error {
        ConfigError::Invalid(faults) => faults.clone(),
        ConfigError::Load(error) => vec![error.to_string()],
    };
    let mut report = Report::default();
    report.findings.extend(faults.into_iter().map(|fault| {
        let why = "The server does not start.";
        let mend = "Correct the setting; this lists all of them with their defaults:";
        Finding::new(Severity::Error, "configuration", fault, why, mend).typing("bulkhead config")
    }));
    report.skip("everything else", "the configuration says where it is");
    report
}

/// Looks at machine, files, model, certificate and programs. `running`: a server answers on its socket.
pub async fn around(settings: &Settings, running: bool) -> Report {
    let mut report = Report::default();
    let server = match files::holder(&settings.data_dir) {
        Holder::Process(pid) if running => Some(pid),
        Holder::Gone(pid) if !running => {
            report.findings.push(Finding::new(
                Severity::Note,
                "files.lock",
                format!(
                    "process {pid}, the last to hold the data folder's lock, has ended; the lock is free"
                ),
                "A lock goes with its process: what lies in the file is only its number.",
                "Nothing. Do not delete the file.",
            ));
            None
        }
        _ => None,
    };
    files::examine(&mut report, &settings.data_dir, &settings.uploads_in(&settings.data_dir));
    machine::examine(&mut report, &Readings::take(&settings.data_dir, server), settings, running);
    if let Some(tls) = &settings.http.tls {
        let until = http::valid_until(tls);
        certificate(&mut report, &tls.certificate, until, SystemClock.now());
    }
    models(&mut report, &settings.embedding).await;
    if is_private(settings)
        && let Err(error) = server::inspect(&settings.database.install)
    {
        let why = "The private database does not start.";
        let mend = "Set-up brings the programs that are tested with this server:";
        let finding = Finding::new(Severity::Error, "database.programs", error.to_string(), why, mend);
        report.findings.push(finding.typing("make setup"));
    }
    report
}

fn is_private(settings: &Settings) -> bool {
    settings.database.url.is_empty() && settings.database.url_file.is_none()
}

fn certificate(
    report: &mut Report,
    file: &Path,
    until: Result<DateTime<Utc>, http::TlsError>,
    now: DateTime<Utc>,
) {
    const CHECK: &str = "http.certificate";
    let why = "Callers refuse the server.";
    let mend =
        "Renew it and put certificate and key in their places; a running server takes them up by itself.";
    let finding = match until {
        Err(error) => Finding::new(Severity::Error, CHECK, error.to_string(), why, mend),
        Ok(until) if until - now > EXPIRES_SOON => return,
        Ok(until) => {
            let severity = if until <= now { Severity::Error } else { Severity::Warning };
            let verb = if until <= now { "expired" } else { "expires" };
            let what = format!("the certificate {} {verb} {}", file.display(), until.format("%F %T UTC"));
            Finding::new(severity, CHECK, what, why, mend)
        }
    };
    report.findings.push(finding);
}

/// Whether ONNX Runtime and every model's files are there. Weights are read and not loaded; nothing is fetched.
async fn models(report: &mut Report, settings: &EmbeddingSettings) {
    const CHECK: &str = "embedding.model";
    let named = std::iter::once(&settings.model).chain(&settings.further);
    for model in named {
        let settings = EmbeddingSettings { model: model.clone(), ..settings.clone() };
        let identified = tokio::task::spawn_blocking(move || Embedder::identify(&settings)).await;
        let error = match identified {
            Ok(Ok(_)) => continue,
            Ok(Err(error)) => error,
            Err(error) => EmbedderError::Model(error.to_string()),
        };
        let why = "The server does not start: documents and questions have no vectors.";
        let mend = "Set-up brings ONNX Runtime and the model; or name another in [embedding].";
        let finding = Finding::new(Severity::Error, CHECK, format!("{model}: {error}"), why, mend);
        report.findings.push(finding.typing("make setup"));
    }
}

/// Looks at the stores when no server answers: under the data folder's lock, with a PostgreSQL started for that.
pub async fn stores(settings: &Settings) -> Report {
    let mut report = Report::default();
    if !settings.data_dir.is_dir() {
        report.skip(STORES, "there is no data folder yet");
        return report;
    }
    let lock = match DataLock::acquire(&settings.data_dir) {
        Ok(lock) => lock,
        Err(error @ LockError::LockedBy { pid, .. }) => {
            let what = format!("{error}, and no server answers on admin.sock");
            let why = "Nobody else can use the folder until that process ends.";
            let mend = "If it is starting or stopping, wait. If it hangs, look at its log; then end it, and start again:";
            let finding = Finding::new(Severity::Error, "files.lock", what, why, mend);
            report.findings.push(match pid {
                Some(pid) => finding.typing(format!("kill {pid}")),
                None => finding,
            });
            report.skip(STORES, "another process holds the data folder");
            return report;
        }
        Err(error) => {
            let why = "The server does not start.";
            let mend = "Run this command as the server's user.";
            report.findings.push(Finding::new(Severity::Error, "files.lock", full(&error), why, mend));
            report.skip(STORES, "the data folder cannot be locked");
            return report;
        }
    };
    let secrets = lock.data_dir().join("secrets");
    // A missing one would be made by those who read them.
    if let Some(missing) =
        Role::ALL.into_iter().map(|role| secrets.join(format!("postgres-{role}"))).find(|file| !file.exists())
    {
        if missing.with_file_name(format!("postgres-{}", Role::Owner)).exists() {
            let why = "The database does not let the server in with another one.";
            let mend = "Bring the folder `secrets` back from a backup; it belongs to this database.";
            let what = format!("{} is missing", missing.display());
            report.findings.push(Finding::new(Severity::Error, "files.secrets", what, why, mend));
        }
        report.skip(STORES, "there is no database of this data folder yet, or its secrets are missing");
        return report;
    }
    match open(settings, &lock).await {
        Ok((server, addresses)) => {
            report.merge(diagnose::diagnose(&addresses, || SystemClock.now()).await);
            if let Some(server) = server
                && let Err(error) = server.stop().await
            {
                report.skip(STORES, format!("PostgreSQL was started for this and does not stop: {error}"));
            }
            report.skip("audit.lost", "only a running server knows what it lost");
            report.skip("connections by tenant", "only a running server knows them");
        }
        Err(error) => {
            let why = "The server does not start either.";
            let mend = "The words above say what to do; PostgreSQL's own log is in the folder postgres-logs.";
            report.findings.push(Finding::new(
                Severity::Error,
                "database.start",
                format!("{error:#}"),
                why,
                mend,
            ));
            report.skip(STORES, "the database cannot be reached");
        }
    }
    report
}

/// The database as it is: not prepared, not migrated.
async fn open(
    settings: &Settings,
    lock: &DataLock,
) -> anyhow::Result<(Option<PrivateServer>, RoleAddresses)> {
    let name = settings.database.name.as_str();
    if let Some(url) = settings.database.administrator()? {
        let secrets = RoleSecrets::load_or_create(&lock.data_dir().join("secrets"), &SystemEntropy)?;
        let (admin, _others) = ServerAddresses::parse(&url)?.primary().await?;
        return Ok((None, RoleAddresses::of(&admin, None, &secrets, name)));
    }
    let install: PathBuf = std::path::absolute(&settings.database.install)?;
    let paths = ServerPaths { install, data_dir: lock.data_dir().to_owned() };
    let server = PrivateServer::start(&paths, &settings.database.server, &SystemEntropy, lock).await?;
    let addresses = server.addresses(name);
    Ok((Some(server), addresses))
}

/// An error with its causes, in one line.
fn full(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        line = format!("{line}: {next}");
        cause = next.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_told_before_it_ends_and_after() {
        let now = SystemClock.now();
        for (days, severity) in [(-1, Some(Severity::Error)), (5, Some(Severity::Warning)), (60, None)] {
            let mut report = Report::default();
            certificate(&mut report, Path::new("chain.pem"), Ok(now + Duration::days(days)), now);
            assert_eq!(report.findings.first().map(|finding| finding.severity), severity, "{days}");
        }
    }
}
