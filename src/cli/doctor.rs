//! `bulkhead doctor`: what is wrong with machine, configuration or stores, why it matters and how to mend it.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use super::Global;
use super::action::Action;
use super::desk::Desk;
use super::output::{self, table};
use crate::app::{Settings, doctor};
use crate::domain::finding::{Finding, Report, Severity};

/// Tell what is wrong with machine, configuration and stores, why it matters and how to mend it.
///
/// Speaks to the running server; without one it opens the data folder and starts the database itself. Changes
/// nothing. Ends with 0 when nothing is wrong, with 1 when something will be (warnings), with 2 when something is
/// (errors).
#[derive(Debug, Args)]
pub(super) struct Doctor {}

impl Doctor {
    /// Looks, and tells.
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<ExitCode> {
        let report = match crate::config::load::<Settings>(global.config.as_deref()) {
            Ok(settings) => {
                let waiting = output::waiting("looking at machine, files and stores");
                let report = examine(global, &settings).await;
                waiting.finish_and_clear();
                report
            }
            Err(error) => doctor::misconfigured(&error),
        };
        let report = report.sorted();
        let text = if global.json { serde_json::to_string_pretty(&answer(&report))? } else { told(&report) };
        output::print(&text)?;
        Ok(code(&report))
    }
}

async fn examine(global: &Global, settings: &Settings) -> Report {
    let socket = settings.data_dir.join("admin.sock");
    let connected = UnixStream::connect(&socket);
    let mut report = doctor::around(settings, connected.is_ok()).await;
    match connected {
        Ok(_) => match served(global, settings).await {
            Ok(stores) => report.merge(stores),
            Err(error) => {
                let why = "Operators cannot act, and the stores were not looked at.";
                let mend = "Give the credential with --operator-key; or look at the server's log, and stop it to have this \
                            command open the stores itself.";
                let what = format!("the running server does not tell of its stores: {error:#}");
                report.findings.push(Finding::new(Severity::Error, "server", what, why, mend));
            }
        },
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            report.skip("stores", format!("{} is the server's own user's alone", socket.display()));
        }
        Err(_) => report.merge(doctor::stores(settings).await),
    }
    report
}

/// What the running server tells.
async fn served(global: &Global, settings: &Settings) -> anyhow::Result<Report> {
    let desk = Desk::open(global, settings).await?;
    let answer = desk.ask(&Action::Diagnose).await;
    desk.close().await?;
    serde_json::from_value(answer?).context("the server's answer cannot be read; is it of another version?")
}

fn code(report: &Report) -> ExitCode {
    match report.worst() {
        Severity::Note => ExitCode::SUCCESS,
        Severity::Warning => ExitCode::from(1),
        Severity::Error => ExitCode::from(2),
    }
}

fn answer(report: &Report) -> Value {
    let mut answer = json!(report);
    answer["worst"] = json!(report.worst());
    answer
}

fn told(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let Finding { severity, check, what, why, mend, command } = finding;
        // Writing to a text cannot fail.
        let _ = writeln!(text, "{} ({check}): {what}\n  why   {why}\n  mend  {mend}", severity.name());
        if let Some(command) = command {
            let _ = writeln!(text, "        {command}");
        }
    }
    let facts = &report.facts;
    if let (Some(postgresql), Some(pgvector)) = (&facts.postgresql, &facts.pgvector) {
        let _ = writeln!(text, "\nPostgreSQL {postgresql}, pgvector {pgvector}");
    }
    let rows = |rows: Value| rows.as_array().cloned().unwrap_or_default();
    let of = facts.max_connections.map(|most| format!(" (at most {most})")).unwrap_or_default();
    for (title, rows, fields) in [
        (format!("Connections{of}"), rows(json!(facts.connections)), ["role", "count"]),
        (
            "Connections that tenants hold".to_owned(),
            rows(json!(facts.tenant_connections)),
            ["tenant_id", "count"],
        ),
        ("Largest tenants, in chunks".to_owned(), rows(json!(facts.largest_tenants)), ["tenant_id", "count"]),
    ] {
        if !rows.is_empty() {
            let _ = write!(text, "\n{title}\n{}", table(&rows, &fields, ""));
        }
    }
    for skipped in &report.skipped {
        let _ = write!(text, "\nnot looked at: {}, since {}", skipped.check, skipped.why);
    }
    let count = |severity| report.findings.iter().filter(|finding| finding.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let _ = write!(text, "\n\n{errors} errors, {warnings} warnings.");
    text.trim_start().to_owned()
}
