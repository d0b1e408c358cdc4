//! What a server tells of itself: logs for people or as JSON, metrics, whether it is ready.
//!
//! **Invariant:** no credential, document text, question or prompt is ever logged, counted or traced.

pub mod alarms;
pub mod memory;
pub mod metrics;
mod outside;
pub mod page;
mod process;
mod quantiles;
mod readiness;
pub mod tenants;
pub mod traces;
pub mod webhook;

use std::net::SocketAddr;

pub use alarms::{AlarmKind, Alarms};
pub use metrics::Metrics;
pub use outside::OutsideError;
pub use readiness::Readiness;
use serde::Deserialize;
use traces::{TraceSettings, Traces};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer as _};
use webhook::WebhookSettings;

/// How logs are written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetrySettings {
    /// The form.
    pub format: LogFormat,
    /// What is logged, as `info,bulkhead=debug`.
    pub filter: String,
    /// Where metrics are served, and probes besides; absent: nowhere.
    pub metrics_address: Option<SocketAddr>,
    /// That address may be beyond loopback, where whoever reaches it reads it.
    pub metrics_open: bool,
    /// Tenants that metrics name by their ids; the others are `other`.
    pub named_tenants: usize,
    /// Tenants whose requests are told apart for operators.
    pub remembered_tenants: usize,
    /// `[telemetry.webhook]`
    pub webhook: WebhookSettings,
    /// `[telemetry.traces]`
    pub traces: TraceSettings,
}

impl TelemetrySettings {
    /// All faults, as sentences for the person who wrote the configuration. Empty: none.
    #[must_use]
    pub fn validate(&self) -> Vec<String> {
        let mut faults = self.webhook.validate();
        faults.extend(self.traces.validate());
        if self.metrics_address.is_some_and(|address| !address.ip().is_loopback()) && !self.metrics_open {
            faults.push(
                "telemetry.metrics_address: beyond loopback, without a credential; set telemetry.metrics_open \
                 when only those reach it who may read it"
                    .to_owned(),
            );
        }
        if self.named_tenants > self.remembered_tenants {
            faults.push("telemetry.named_tenants: at most telemetry.remembered_tenants".to_owned());
        }
        faults
    }
}

/// The form of logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// A line for people.
    Text,
    /// An object a line.
    Json,
}

/// Why nothing can be told.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Something else logs already.
    #[error(transparent)]
    Log(#[from] TryInitError),
    /// The collector of traces cannot be spoken to.
    #[error("telemetry.traces cannot be used")]
    Traces(#[from] OutsideError),
}

/// Begins to log, and to trace where a collector is configured; `node` is this server's name there.
///
/// # Errors
/// [`TelemetryError`].
///
/// # Panics
/// Outside of a tokio runtime.
pub fn start(settings: &TelemetrySettings, node: &str) -> Result<Option<Traces>, TelemetryError> {
    let traces = Traces::start(&settings.traces, node)?;
    // Of the log alone: what is traced does not depend on what is logged.
    let filter = EnvFilter::try_new(&settings.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(traces.as_ref().map(Traces::layer));
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match settings.format {
        LogFormat::Text => registry.with(log.with_filter(filter)).try_init()?,
        LogFormat::Json => registry.with(log.json().with_filter(filter)).try_init()?,
    }
    Ok(traces)
}
