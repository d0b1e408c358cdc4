//! Spans to a collector, by OTLP over HTTP.
//!
//! **Invariant:** only spans of this program that name their tenant leave, by its id, and with them fields of fixed
//! words, ids and numbers; events, which say more, stay in the log.
//! **Invariant:** a span that cannot be sent is dropped; nobody waits for it.

use std::time::Duration;

use async_trait::async_trait;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanLimits,
};
use serde::Deserialize;
use tokio::runtime::Handle;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use super::outside::{self, OutsideError};
use crate::domain::address::guarded;

/// How often spans are sent.
const EVERY: Duration = Duration::from_secs(2);

/// Where spans go, and which.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceSettings {
    /// The collector's address without a path, https or on loopback; empty: nowhere.
    pub url: String,
    /// The share of requests and jobs that is traced, 0 to 1.
    pub sample: f64,
    /// Spans that may wait; more are dropped.
    pub queue: usize,
    /// How long the collector may take, seconds.
    pub timeout_seconds: u64,
}

impl TraceSettings {
    pub(super) fn validate(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if !self.url.is_empty()
            && let Err(rule) = guarded(&self.url)
        {
            faults.push(format!("telemetry.traces.url: {rule}"));
        }
        if !(0.0..=1.0).contains(&self.sample) {
            faults.push("telemetry.traces.sample: 0 to 1".to_owned());
        }
        faults
    }
}

/// What sends spans.
#[derive(Debug, Clone)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// What sends spans to the collector that is configured; `None` when none is.
    ///
    /// # Errors
    /// [`OutsideError`], when its address cannot be used.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn start(settings: &TraceSettings, node: &str) -> Result<Option<Self>, OutsideError> {
        if settings.url.is_empty() {
            return Ok(None);
        }
        let url = guarded(&settings.url).map_err(OutsideError::Address)?;
        let timeout = Duration::from_secs(settings.timeout_seconds.max(1));
        let client = Sender { client: outside::client(&url, timeout)?, runtime: Handle::current() };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", settings.url.trim_end_matches('/')))
            .with_timeout(timeout)
            .build()
            .map_err(|_| OutsideError::Address("no exporter can be made for this address"))?;
        let batch = BatchConfigBuilder::default()
            .with_max_queue_size(settings.queue.max(1))
            .with_scheduled_delay(EVERY)
            .build();
        let limits =
            SpanLimits { max_attributes_per_span: 16, max_events_per_span: 0, ..SpanLimits::default() };
        let resource = Resource::builder_empty().with_attributes([
            KeyValue::new("service.name", "bulkhead"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", node.to_owned()),
        ]);
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batch).build())
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(settings.sample))))
            .with_span_limits(limits)
            .with_resource(resource.build())
            .build();
        Ok(Some(Self(provider)))
    }

    /// The layer that hands spans over.
    pub(super) fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> + use<S> {
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("bulkhead"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(leaves))
    }

    /// Sends what waits. Blocks for as long as the collector may take.
    pub fn finish(&self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

/// Whether what is told here may leave: a span of ours that names its tenant.
fn leaves(metadata: &Metadata<'_>) -> bool {
    metadata.is_span()
        && metadata.target().starts_with(env!("CARGO_CRATE_NAME"))
        && metadata.fields().field("tenant").is_some()
}

/// Sends on the server's own runtime, since the exporter has a thread without one.
#[derive(Debug)]
struct Sender {
    client: reqwest::Client,
    runtime: Handle,
}

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let request =
            self.client.request(parts.method, parts.uri.to_string()).headers(parts.headers).body(body);
        let sent = self.runtime.spawn(async move {
            let answer = request.send().await?;
            let (status, headers) = (answer.status(), answer.headers().clone());
            // What a collector answers is short: how many spans it did not take.
            Ok::<_, reqwest::Error>((status, headers, answer.bytes().await?))
        });
        let (status, headers, body) = sent.await??;
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }
}
