//! The machine: room on the disk, memory, descriptors.
//!
//! What is read of it is a value, so that a test can hold a machine that is full.

use std::fs;
use std::path::Path;

use super::Settings;
use crate::app::VectorBackend;
use crate::domain::finding::{Finding, Report, Severity};

/// Descriptors of an open shard: one that stays, as `/proc` of a server with six of them counts, and those that come
/// and go while it is written.
const DESCRIPTORS_OF_SHARD: u64 = 4;
/// Descriptors beside shards and connections: libraries, logs, sockets, pipes of parsers.
const OTHER_DESCRIPTORS: u64 = 256;
/// With fewer than this not even a small deployment works.
const TOO_FEW_DESCRIPTORS: u64 = 512;
/// Memory of one embedding model in its three sessions, and of the program beside everything that is configured.
const MODEL_MEMORY: u64 = 550 << 20;
const OTHER_MEMORY: u64 = 256 << 20;
/// Room on the disk below which it is time to make some, as a share and absolutely.
const SCARCE_PERCENT: u64 = 10;
const SCARCE: u64 = 2 << 30;

/// What was read of a machine; `None` where it does not tell.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Readings {
    /// Bytes of the data folder's file system that this user may still write, and all of it.
    pub disk: Option<(u64, u64)>,
    /// Inodes, likewise; absent on file systems that make them as they need.
    pub inodes: Option<(u64, u64)>,
    /// Bytes of memory that can be had without swapping, and all of it, as far as the control group allows.
    pub memory: Option<(u64, u64)>,
    /// Descriptors that the server may have open; without a server, those of this process.
    pub descriptors: Option<u64>,
}

impl Readings {
    /// Reads this machine; `server` is the process of the running server.
    pub(super) fn take(data_dir: &Path, server: Option<u32>) -> Self {
        // The folder may be missing yet: then the file system that it will be on.
        let place = data_dir.ancestors().find(|place| place.exists());
        let disk = place.and_then(|place| nix::sys::statvfs::statvfs(place).ok());
        let bytes = |blocks: u64, size: u64| blocks.saturating_mul(size);
        let process = server.map_or("self".to_owned(), |pid| pid.to_string());
        Self {
            disk: disk.map(|disk| {
                let size = disk.fragment_size();
                (bytes(disk.blocks_available(), size), bytes(disk.blocks(), size))
            }),
            inodes: disk.map(|disk| (disk.files_available(), disk.files())).filter(|(_, all)| *all > 0),
            memory: memory(),
            descriptors: descriptors(&process),
        }
    }
}

fn memory() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib * 1024)
    };
    let (mut free, mut all) = (field("MemAvailable")?, field("MemTotal")?);
    let group = |name: &str| {
        let text = fs::read_to_string(Path::new("/sys/fs/cgroup").join(name)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    if let Some(most) = group("memory.max") {
        all = all.min(most);
        free = free.min(most.saturating_sub(group("memory.current").unwrap_or(0)));
    }
    Some((free, all))
}

/// The soft limit of `Max open files` in `/proc/PID/limits`.
fn descriptors(process: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/limits")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let soft = line.split_whitespace().next()?;
    if soft == "unlimited" { Some(u64::MAX) } else { soft.parse().ok() }
}

/// Says what is wrong with a machine. `running`: its memory is in use by the server already.
pub(super) fn examine(report: &mut Report, machine: &Readings, settings: &Settings, running: bool) {
    disk(report, machine, settings);
    memory_suffices(report, machine, settings, running);
    match machine.descriptors {
        None => report.skip("machine.descriptors", "/proc does not tell the limit"),
        Some(limit) => report.findings.extend(descriptors_suffice(limit, settings)),
    }
}

fn disk(report: &mut Report, machine: &Readings, settings: &Settings) {
    const CHECK: &str = "machine.disk";
    let Some((free, all)) = machine.disk else {
        return report.skip(CHECK, "the file system does not tell its room");
    };
    let least = settings.vectors.min_free_bytes;
    let place = settings.data_dir.display();
    let why = "Documents are no longer accepted, and PostgreSQL stops when it cannot write its log.";
    let mend =
        "Make room: delete tenants or documents that are no longer needed, or give the file system more.";
    let said = format!("{} free of {} where {place} is", mebibytes(free), mebibytes(all));
    let no_inodes = machine.inodes.is_some_and(|(free, _)| free < 1000);
    let severity = if free < least || no_inodes {
        Severity::Error
    } else if free < SCARCE && free < all / 100 * SCARCE_PERCENT {
        Severity::Warning
    } else {
        return;
    };
    let what = match severity {
        Severity::Error if no_inodes && free >= least => {
            format!("the disk has no room for more files: {place}")
        }
        Severity::Error => {
            format!("the disk is full: {said}; vectors.min_free_bytes is {}", mebibytes(least))
        }
        _ => format!("the disk is nearly full: {said}"),
    };
    report.findings.push(
        Finding::new(severity, CHECK, what, why, mend)
            .typing(format!("du -xh {place} | sort -h | tail -n 30")),
    );
}

fn memory_suffices(report: &mut Report, machine: &Readings, settings: &Settings, running: bool) {
    const CHECK: &str = "machine.memory";
    let Some((free, all)) = machine.memory else {
        return report.skip(CHECK, "/proc/meminfo does not tell it");
    };
    let private = settings.database.url.is_empty() && settings.database.url_file.is_none();
    let database = &settings.database.server;
    let models = 1 + settings.embedding.further.len() as u64;
    let need = OTHER_MEMORY
        + models * MODEL_MEMORY
        + settings.retrieval.graph_memory_bytes
        + settings.parse.memory_bytes
        + u64::from(private)
            * (u64::from(database.shared_buffers_mib + database.maintenance_work_mem_mib) << 20);
    let why = "Under load the kernel ends PostgreSQL, the server or a parser.";
    let mend = "Give the machine or the control group more, or lower parse.memory_bytes, retrieval.graph_memory_bytes, \
                embedding.further and database.server.shared_buffers_mib.";
    let what = if all < need {
        format!("memory is short: {} in all, and the settings may use {}", mebibytes(all), mebibytes(need))
    } else if !running && free < need {
        format!(
            "memory is short: {} can be had, and the settings may use {}",
            mebibytes(free),
            mebibytes(need)
        )
    } else if running && free < OTHER_MEMORY {
        format!("memory is short: {} can still be had", mebibytes(free))
    } else {
        return;
    };
    report.findings.push(Finding::new(Severity::Warning, CHECK, what, why, mend));
}

fn descriptors_suffice(limit: u64, settings: &Settings) -> Option<Finding> {
    let pools = &settings.database.pools;
    let shards = if settings.vectors.backend == VectorBackend::Edge { settings.vectors.max_open } else { 0 };
    let need = OTHER_DESCRIPTORS
        + settings.http.max_connections as u64
        + u64::from(pools.query_connections + pools.ingest_connections)
        + shards as u64 * DESCRIPTORS_OF_SHARD;
    if limit >= need {
        return None;
    }
    let severity = if limit < TOO_FEW_DESCRIPTORS { Severity::Error } else { Severity::Warning };
    let finding = Finding::new(
        severity,
        "machine.descriptors",
        format!("the server may open {limit} files, and the settings may use {need}"),
        "At the limit connections are refused, uploads fail, and shards cannot be opened.",
        "Raise the limit where the server is started (LimitNOFILE of a systemd unit), or lower vectors.max_open and \
         http.max_connections. In a shell, before `bulkhead serve`:",
    );
    Some(finding.typing(format!("ulimit -n {need}")))
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(machine: &Readings, running: bool) -> Vec<(Severity, String)> {
        let settings: Settings = crate::config::load(None).expect("the defaults");
        let mut report = Report::default();
        examine(&mut report, machine, &settings, running);
        assert!(report.skipped.is_empty(), "{report:?}");
        assert!(report.findings.iter().all(|finding| !finding.mend.is_empty() && !finding.why.is_empty()));
        report.findings.into_iter().map(|finding| (finding.severity, finding.what)).collect()
    }

    const LARGE: Readings = Readings {
        disk: Some((100 << 30, 200 << 30)),
        inodes: Some((1 << 20, 1 << 21)),
        memory: Some((60 << 30, 64 << 30)),
        descriptors: Some(1 << 20),
    };

    #[test]
    fn a_machine_with_room_has_no_fault_and_one_without_is_told_each_by_its_number() {
        assert_eq!(found(&LARGE, false), []);
        for (machine, running, severity, word) in [
            (
                Readings { disk: Some((1 << 20, 200 << 30)), ..LARGE },
                false,
                Severity::Error,
                "the disk is full: 1 MiB free",
            ),
            (
                Readings { disk: Some((1 << 30, 200 << 30)), ..LARGE },
                false,
                Severity::Warning,
                "nearly full: 1024 MiB free",
            ),
            (
                Readings { inodes: Some((3, 1 << 21)), ..LARGE },
                false,
                Severity::Error,
                "no room for more files",
            ),
            (
                Readings { memory: Some((1 << 30, 1 << 30)), ..LARGE },
                true,
                Severity::Warning,
                "1024 MiB in all",
            ),
            (
                Readings { memory: Some((1 << 30, 64 << 30)), ..LARGE },
                false,
                Severity::Warning,
                "1024 MiB can be had",
            ),
            (
                Readings { memory: Some((1 << 20, 64 << 30)), ..LARGE },
                true,
                Severity::Warning,
                "1 MiB can still",
            ),
            (Readings { descriptors: Some(64), ..LARGE }, false, Severity::Error, "may open 64 files"),
            (Readings { descriptors: Some(4096), ..LARGE }, true, Severity::Warning, "may open 4096 files"),
        ] {
            let found = found(&machine, running);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].0 == severity && found[0].1.contains(word), "{found:?}");
        }
        // What a running server uses already it need not find again.
        assert_eq!(found(&Readings { memory: Some((1 << 30, 64 << 30)), ..LARGE }, true), []);
    }

    #[test]
    fn this_machine_can_be_read() {
        let here = Readings::take(Path::new("/nowhere/at/all"), Some(std::process::id()));
        assert!(here.disk.is_some() && here.memory.is_some() && here.descriptors.is_some(), "{here:?}");
    }
}
