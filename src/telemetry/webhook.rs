//! Sends alarms to an address of the operator's, signed, one after the other.
//!
//! **Invariant:** an alarm is delivered, or counted as failed or lost; none goes silently.
//! **Invariant:** the receiver can tell that it is ours and when it was sent: the signature covers both.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use hmac::{Hmac, Mac};
use reqwest::{StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sha2::Sha256;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::alarms::{Alarm, Alarms, Deliveries};
use super::outside::{self, OutsideError};
use crate::domain::address::guarded;
use crate::domain::clock::Clock;
use crate::domain::ids::IdSource;

/// The time and the signature: `t=<Unix seconds>,v1=<HMAC-SHA-256 of "<t>.<body>", hexadecimal>`.
pub const SIGNATURE: &str = "x-bulkhead-signature";

/// How long what still waits may take when the server stops.
const LAST: Duration = Duration::from_secs(5);

/// Where alarms go.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookSettings {
    /// The address, https or on loopback; empty: nowhere.
    pub url: String,
    /// A file with the secret that signs.
    pub secret_file: Option<PathBuf>,
    /// Alarms that may wait.
    pub queue: usize,
    /// How often one is tried, with growing pauses of up to a minute.
    pub attempts: usize,
    /// How long the receiver may take, seconds.
    pub timeout_seconds: u64,
}

impl WebhookSettings {
    pub(super) fn validate(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.url.is_empty() {
            return faults;
        }
        if let Err(rule) = guarded(&self.url) {
            faults.push(format!("telemetry.webhook.url: {rule}"));
        }
        if self.secret_file.is_none() {
            faults.push(
                "telemetry.webhook.secret_file: alarms are signed; name a file with a secret".to_owned(),
            );
        }
        for (name, number) in [("queue", self.queue), ("attempts", self.attempts)] {
            if number == 0 {
                faults.push(format!("telemetry.webhook.{name}: at least 1"));
            }
        }
        faults
    }
}

/// Sends what is raised.
pub struct Webhook {
    queue: mpsc::Receiver<Alarm>,
    client: reqwest::Client,
    url: Url,
    secret: SecretString,
    attempts: usize,
    deliveries: Arc<Deliveries>,
    clock: Arc<dyn Clock>,
}

/// Where alarms are raised, and what sends them if anything does.
///
/// # Errors
/// [`OutsideError`], when the secret or the address cannot be used.
pub fn alarms(
    settings: &WebhookSettings,
    node: &str,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
) -> Result<(Alarms, Option<Webhook>), OutsideError> {
    let deliveries = Arc::<Deliveries>::default();
    let Some(secret_file) = settings.secret_file.as_ref().filter(|_| !settings.url.is_empty()) else {
        return Ok((Alarms::over(node, clock, ids, None, deliveries), None));
    };
    let url = guarded(&settings.url).map_err(OutsideError::Address)?;
    let (sender, queue) = mpsc::channel(settings.queue.max(1));
    let webhook = Webhook {
        queue,
        client: outside::client(&url, Duration::from_secs(settings.timeout_seconds.max(1)))?,
        url,
        secret: outside::secret(secret_file)?,
        attempts: settings.attempts,
        deliveries: Arc::clone(&deliveries),
        clock: Arc::clone(&clock),
    };
    Ok((Alarms::over(node, clock, ids, Some(sender), deliveries), Some(webhook)))
}

/// Why an alarm was not taken.
#[derive(Debug, thiserror::Error)]
enum Undelivered {
    #[error("the receiver cannot be reached")]
    Away(#[from] reqwest::Error),
    #[error("the receiver answered {0}")]
    Refused(StatusCode),
}

impl Undelivered {
    /// Whether it may be taken later.
    fn is_passing(&self) -> bool {
        match self {
            Self::Away(_) => true,
            Self::Refused(status) => status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429),
        }
    }
}

impl Webhook {
    /// Sends until it is told to stop; then tries once more what still waits.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut left = Vec::new();
        loop {
            let next = tokio::select! {
                biased;
                () = stop.cancelled() => None,
                alarm = self.queue.recv() => alarm,
            };
            let Some(alarm) = next else { break };
            tokio::select! {
                biased;
                delivered = self.insist(&alarm) => self.count(delivered),
                () = stop.cancelled() => left.push(alarm),
            }
        }
        while let Ok(alarm) = self.queue.try_recv() {
            left.push(alarm);
        }
        let mut tried = 0;
        let last = async {
            for alarm in &left {
                self.count(self.send(alarm).await);
                tried += 1;
            }
        };
        let _late = tokio::time::timeout(LAST, last).await;
        self.deliveries.failed.fetch_add((left.len() - tried) as u64, Ordering::Relaxed);
    }

    fn count(&self, delivered: Result<(), Undelivered>) {
        match delivered {
            Ok(()) => self.deliveries.delivered.fetch_add(1, Ordering::Relaxed),
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "an alarm could not be sent");
                self.deliveries.failed.fetch_add(1, Ordering::Relaxed)
            }
        };
    }

    async fn insist(&self, alarm: &Alarm) -> Result<(), Undelivered> {
        let pauses = ExponentialBuilder::default()
            .with_jitter()
            .with_min_delay(Duration::from_millis(500))
            .with_max_delay(Duration::from_mins(1))
            .with_max_times(self.attempts.saturating_sub(1));
        let send = || self.send(alarm);
        send.retry(pauses).when(Undelivered::is_passing).await
    }

    async fn send(&self, alarm: &Alarm) -> Result<(), Undelivered> {
        // Ids, numbers and fixed words, which JSON can always say.
        let body = serde_json::to_string(alarm).unwrap_or_default();
        let signature = signature(&self.secret, self.clock.now().timestamp(), &body);
        let request = self.client.post(self.url.clone()).header(SIGNATURE, signature);
        let answer = request.header("content-type", "application/json").body(body).send().await?;
        let status = answer.status();
        if status.is_success() { Ok(()) } else { Err(Undelivered::Refused(status)) }
    }
}

fn signature(secret: &SecretString, at: i64, body: &str) -> String {
    let mut digest = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes())
        .expect("HMAC takes a key of any length");
    digest.update(format!("{at}.{body}").as_bytes());
    format!("t={at},v1={}", hex::encode(digest.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_what_the_documents_say() {
        // printf '1700000000.{"id":1}' | openssl dgst -sha256 -hmac 0123456789abcdef
        let signed = signature(&"0123456789abcdef".into(), 1_700_000_000, "{\"id\":1}");
        let digest = "4bcaced68dfea90a68df035b89cb7fb26692d899d32a1ccb1b0616cf48e4d1ed";
        assert_eq!(signed, format!("t=1700000000,v1={digest}"));
    }

    #[test]
    fn a_webhook_without_a_secret_or_in_the_clear_is_a_fault() {
        let settings = WebhookSettings {
            url: "http://alarms.test/hook".to_owned(),
            secret_file: None,
            queue: 0,
            attempts: 1,
            timeout_seconds: 1,
        };
        let faults = settings.validate();
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert_eq!(WebhookSettings { url: String::new(), ..settings }.validate(), Vec::<String>::new());
    }
}
