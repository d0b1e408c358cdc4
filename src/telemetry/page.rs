//! The page of metrics as numbers are written on it that others count.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// Whether a number could be written.
pub type Written = std::fmt::Result;

/// A page that is being written. Counters get `_total` after their names.
pub struct Page<'a, 'b> {
    encoder: &'a mut DescriptorEncoder<'b>,
}

impl Page<'_, '_> {
    /// A number that goes up and down.
    ///
    /// # Errors
    /// When the page cannot be written.
    pub fn gauge(&mut self, name: &str, help: &str, value: f64) -> Written {
        self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    /// A number that only grows.
    ///
    /// # Errors
    /// When the page cannot be written.
    pub fn counter(&mut self, name: &str, help: &str, value: f64) -> Written {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, f64>(&value, None)
    }

    /// Numbers that go up and down, told apart by labels.
    ///
    /// # Errors
    /// When the page cannot be written.
    pub fn gauges<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([(&'l str, &'l str); N], f64)>,
    ) -> Written {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in values {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// Numbers that only grow, told apart by labels.
    ///
    /// # Errors
    /// When the page cannot be written.
    pub fn counters<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([(&'l str, &'l str); N], f64)>,
    ) -> Written {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in values {
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
        }
        Ok(())
    }

    /// A number, or a family of them, that is kept as the page shows it; of a family that is empty, nothing.
    ///
    /// # Errors
    /// When the page cannot be written.
    pub fn metric(&mut self, name: &str, help: &str, metric: &impl EncodeMetric) -> Written {
        if metric.is_empty() {
            return Ok(());
        }
        metric.encode(self.encoder.encode_descriptor(name, help, None, metric.metric_type())?)
    }
}

/// Something that writes its numbers whenever the page is asked for.
pub(super) struct Writer<F>(pub(super) F);

impl<F> std::fmt::Debug for Writer<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

impl<F: Fn(&mut Page<'_, '_>) -> Written + Send + Sync + 'static> Collector for Writer<F> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Written {
        (self.0)(&mut Page { encoder: &mut encoder })
    }
}
