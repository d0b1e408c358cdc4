//! What a server takes of its machine: memory, descriptors and disk, of this process and its database.

use std::collections::HashMap;
use std::path::Path;

use crate::telemetry::memory::allocated;

/// What is taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Footprint {
    /// Memory, each shared page divided by those who share it, without the database's shared pages, bytes.
    pub(super) memory: f64,
    /// What this process has allocated, bytes.
    pub(super) allocated: f64,
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
        memory += resident(process);
        descriptors += std::fs::read_dir(folder.join("fd")).map_or(0, Iterator::count);
    }
    let disk: u64 = folders.iter().map(|folder| blocks(folder)).sum();
    Ok(Footprint {
        memory: memory as f64,
        allocated: allocated().unwrap_or(0) as f64,
        descriptors: descriptors as f64,
        disk: disk as f64,
    })
}

/// What a process has in memory, each shared page divided by those who share it, bytes; 0 when it has ended. Without
/// shared memory: a database's is of a size that was set, and fills up whatever there is.
pub(super) fn resident(process: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap_or_default();
    let kilobytes = |name: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0)
    };
    kilobytes("Pss:").saturating_sub(kilobytes("Pss_Shmem:")) * 1024
}

/// The process of this machine that listens on a TCP port, as far as this one may see it.
pub(super) fn listener(port: u16) -> Option<u32> {
    /// The state of a socket that listens, as the kernel writes it.
    const LISTENS: &str = "0A";
    let tables =
        ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let suffix = format!(":{port:04X}");
    let sockets: Vec<String> = tables
        .iter()
        .flat_map(|table| table.lines().skip(1))
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let listens = fields.get(1)?.ends_with(&suffix) && *fields.get(3)? == LISTENS;
            listens.then(|| fields.get(9).map(|inode| format!("socket:[{inode}]")))?
        })
        .collect();
    let holds = |process: u32| {
        let Ok(open) = std::fs::read_dir(format!("/proc/{process}/fd")) else { return false };
        let links = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        links.into_iter().any(|link| sockets.iter().any(|socket| link.as_os_str() == socket.as_str()))
    };
    let processes = std::fs::read_dir("/proc").ok()?;
    let mut numbers = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    numbers.find(|process| holds(*process))
}

/// How many files below a folder this process holds open.
pub(super) fn open_below(folder: &Path) -> std::io::Result<usize> {
    let descriptors = std::fs::read_dir("/proc/self/fd")?.filter_map(Result::ok);
    let files = descriptors.filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok());
    Ok(files.filter(|file| file.starts_with(folder)).count())
}

/// Processor seconds by who used them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Processors {
    /// Threads of this process whose name begins with [`GENERATOR`].
    pub(super) generator: f64,
    /// Its other threads.
    pub(super) server: f64,
    /// What descends from it: the private database.
    pub(super) database: f64,
}

/// How the names of the threads begin that make load.
pub(super) const GENERATOR: &str = "load";

/// Processor seconds that this process and its children have used so far; of threads that have ended, none.
pub(super) fn processors() -> std::io::Result<Processors> {
    let own = std::process::id();
    let mut used = Processors::default();
    for process in family()? {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{process}/task")) else { continue };
        for thread in threads.filter_map(Result::ok) {
            let seconds = on_processor(&thread.path()).unwrap_or(0.0);
            let name = std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
            match (process == own, name.starts_with(GENERATOR)) {
                (true, true) => used.generator += seconds,
                (true, false) => used.server += seconds,
                (false, _) => used.database += seconds,
            }
        }
    }
    Ok(used)
}

/// Seconds that a thread was on a processor.
#[expect(clippy::cast_precision_loss, reason = "seconds for people")]
fn on_processor(thread: &Path) -> Option<f64> {
    let text = std::fs::read_to_string(thread.join("schedstat")).ok()?;
    Some(text.split(' ').next()?.parse::<u64>().ok()? as f64 / 1e9)
}

impl Processors {
    /// Processors in use since `before`, which was so many seconds ago.
    pub(super) fn in_use(self, before: Self, seconds: f64) -> [f64; 3] {
        let pairs = [
            (self.server, before.server),
            (self.database, before.database),
            (self.generator, before.generator),
        ];
        pairs.map(|(after, before)| (after - before) / seconds)
    }
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
    fn what_a_thread_of_the_generator_uses_counts_as_its() {
        let before = processors().expect("told");
        let busy = std::thread::Builder::new().name(format!("{GENERATOR}-1")).spawn(|| {
            let begun = std::time::Instant::now();
            while begun.elapsed().as_millis() < 50 {}
            processors().expect("told")
        });
        let after = busy.expect("started").join().expect("ended");
        assert!(after.generator - before.generator > 0.01, "{before:?} {after:?}");
    }

    #[test]
    fn who_listens_on_a_port_is_found() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = socket.local_addr().expect("an address").port();
        assert_eq!(listener(port), Some(std::process::id()));
        drop(socket);
        assert_eq!(listener(port), None);
        assert!(resident(std::process::id()) > 0 && resident(u32::MAX) == 0);
    }

    #[test]
    fn a_process_takes_memory_descriptors_and_the_disk_of_its_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let before = footprint(&[folder.path()]).expect("told");
        let file = folder.path().join("file");
        std::fs::write(&file, vec![1; 100_000]).expect("written");
        assert_eq!(open_below(folder.path()).expect("told"), 0);
        let _open = std::fs::File::open(file).expect("it is there");
        assert_eq!(open_below(folder.path()).expect("told"), 1);
        let after = footprint(&[folder.path()]).expect("told");
        assert!(after.memory > 0.0 && after.descriptors > 0.0);
        assert!(after.disk - before.disk >= 100_000.0);
    }
}
