//! What a server takes of its machine: memory, descriptors and disk, of this process and its database.

use std::collections::HashMap;
use std::path::Path;

/// What is taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Footprint {
    /// Memory, each shared page divided by those who share it, bytes.
    pub(super) memory: f64,
    /// Open descriptors.
    pub(super) descriptors: f64,
    /// Blocks on the disk, bytes.
    pub(super) disk: f64,
}

/// What this process with its children takes, and these folders.
#[expect(clippy::cast_precision_loss, reason = "bytes for people")]
pub(super) fn footprint(folders: &[&Path]) -> std::io::Result<Footprint> {
    let (mut memory, mut descriptors) = (0_u64, 0_usize);
    for process in family()? {
        let folder = Path::new("/proc").join(process.to_string());
        // A connection of the database may end meanwhile.
        let rollup = std::fs::read_to_string(folder.join("smaps_rollup")).unwrap_or_default();
        let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB"));
        memory += pss.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) * 1024;
        descriptors += std::fs::read_dir(folder.join("fd")).map_or(0, Iterator::count);
    }
    let disk: u64 = folders.iter().map(|folder| blocks(folder)).sum();
    Ok(Footprint { memory: memory as f64, descriptors: descriptors as f64, disk: disk as f64 })
}

/// Processor seconds that this process alone has used.
pub(super) fn processor_seconds() -> std::io::Result<f64> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// This process and all that descend from it.
fn family() -> std::io::Result<Vec<u32>> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        if let Some(parent) = parent.and_then(|text| text.trim().parse().ok()) {
            children.entry(parent).or_default().push(process);
        }
    }
    let mut found = vec![std::process::id()];
    let mut at = 0;
    while let Some(process) = found.get(at) {
        found.extend(children.remove(process).unwrap_or_default());
        at += 1;
    }
    Ok(found)
}

/// Bytes of the blocks of all files below a folder; what goes meanwhile does not count.
fn blocks(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(about) if about.is_dir() => about.blocks() * 512 + blocks(&entry.path()),
        Ok(about) => about.blocks() * 512,
        Err(_) => 0,
    };
    entries.filter_map(Result::ok).map(size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_takes_memory_descriptors_and_the_disk_of_its_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let before = footprint(&[folder.path()]).expect("told");
        std::fs::write(folder.path().join("file"), vec![1; 100_000]).expect("written");
        let after = footprint(&[folder.path()]).expect("told");
        assert!(after.memory > 0.0 && after.descriptors > 0.0);
        assert!(after.disk - before.disk >= 100_000.0);
    }
}
