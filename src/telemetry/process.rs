//! What this process takes of its machine, under the names that every Prometheus client uses.

use std::fs;

use super::page::{Page, Written};

/// Writes memory, processor time and descriptors. What the system does not tell is left out.
pub(super) fn write(page: &mut Page<'_, '_>) -> Written {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    if let Some(kilobytes) = resident.and_then(|text| text.trim().parse::<f64>().ok()) {
        let help = "Resident memory of the server alone, without its database and parsers";
        page.gauge("process_resident_memory_bytes", help, kilobytes * 1024.0)?;
    }
    if let Some(bytes) = super::memory::allocated() {
        let help = "Memory that the server has allocated; the rest of what is resident, its allocator keeps for a while";
        page.gauge("bulkhead_memory_allocated_bytes", help, number(bytes))?;
    }
    if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
        page.gauge("process_open_fds", "Open descriptors", number(descriptors.count()))?;
    }
    if let Ok(usage) = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF) {
        let seconds = [usage.user_time(), usage.system_time()]
            .map(|time| std::time::Duration::from_micros(micros(time)).as_secs_f64());
        page.counter("process_cpu_seconds", "Processor time used", seconds.iter().sum())?;
    }
    Ok(())
}

fn micros(time: nix::sys::time::TimeVal) -> u64 {
    u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000 + u64::try_from(time.tv_usec()).unwrap_or(0)
}

#[expect(clippy::cast_precision_loss, reason = "a count far below 2^52")]
fn number(count: usize) -> f64 {
    count as f64
}
