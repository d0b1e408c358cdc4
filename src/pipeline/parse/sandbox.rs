//! The walls around a worker, put up by itself before it reads a document.
//!
//! All of it by safe calls after the program has started: no descriptors but the pipes, another user when started by
//! root, no new privileges, no core dump and no tracing by others, Landlock against files, TCP, signals and abstract
//! sockets outside, and limits on memory, CPU, files and processes. A limit of zero descriptors also means that nothing
//! can be opened at all, where the kernel knows no Landlock.
//!
//! **Invariant:** what every supported kernel can do must succeed, or the document is not read; what depends on the
//! kernel or on who started the server (Landlock, the other user) is done where possible and reported.

use std::{fs, io, os::fd::RawFd};

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetStatus, Scope};
use nix::{
    sys::prctl,
    unistd::{self, Gid, Uid},
};
use rlimit::{INFINITY, Resource};
use serde::{Deserialize, Serialize};

use super::ParseLimits;

/// The last descriptor a worker keeps: standard error.
const LAST_KEPT: RawFd = 2;
/// Descriptors closed one by one where `/proc` is absent.
const ASSUMED_DESCRIPTORS: RawFd = 4096;
/// The user and group that own nothing, by long convention `nobody` and `nogroup`.
const NOBODY: u32 = 65_534;
/// A worker whose parent has gone ends this long after its deadline, seconds.
const ORPHAN_GRACE: u64 = 5;

/// How well a worker is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Confinement {
    /// Every wall stands.
    Full,
    /// Landlock holds with the rules this kernel knows.
    Partial,
    /// The kernel has no Landlock, or it is off.
    WithoutLandlock,
}

/// Closes every descriptor but the three standard ones.
pub(super) fn close_inherited() {
    let listed: Option<Vec<RawFd>> = fs::read_dir("/proc/self/fd")
        .ok()
        .map(|entries| entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect());
    let open = listed.unwrap_or_else(|| (0..ASSUMED_DESCRIPTORS).collect());
    for descriptor in open {
        if descriptor > LAST_KEPT {
            // Already closed is as good: the listing's own descriptor is among them.
            let _ = unistd::close(descriptor);
        }
    }
}

/// Puts up every wall but that against threads, which [`forbid_processes`] adds. Call with one thread running: Landlock
/// covers the caller and what it starts.
pub(super) fn confine(limits: &ParseLimits) -> io::Result<Confinement> {
    leave_root();
    prctl::set_dumpable(false)?;
    prctl::set_no_new_privs()?;
    let confinement = deny_outside();
    set(Resource::AS, limits.memory_bytes)?;
    // At the soft limit comes a signal that tells the parent why; at the hard one the end.
    let cpu = limits.cpu_seconds.max(1);
    rlimit::setrlimit(Resource::CPU, cpu, cpu.saturating_add(1).min(INFINITY - 1))?;
    set(Resource::CORE, 0)?;
    set(Resource::FSIZE, 0)?;
    set(Resource::NOFILE, 0)?;
    let last = limits.wall_seconds.saturating_add(ORPHAN_GRACE);
    unistd::alarm::set(u32::try_from(last).unwrap_or(u32::MAX));
    Ok(confinement)
}

/// Forbids further threads and processes.
pub(super) fn forbid_processes() -> io::Result<()> {
    set(Resource::NPROC, 0)
}

fn set(resource: Resource, limit: u64) -> io::Result<()> {
    rlimit::setrlimit(resource, limit, limit)
}

/// Becomes nobody when started by root. A container may withhold the right to; the other walls stand then too.
fn leave_root() {
    if Uid::effective().is_root() {
        let _ = unistd::setgroups(&[]);
        let _ = unistd::setgid(Gid::from_raw(NOBODY));
        let _ = unistd::setuid(Uid::from_raw(NOBODY));
    }
}

/// Denies all files, TCP ports, and signals and sockets of processes outside, as far as the kernel knows how.
fn deny_outside() -> Confinement {
    let abi = ABI::V6;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(abi)))
        .and_then(|rules| rules.scope(Scope::from_all(abi)))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self)
        .map(|status| status.ruleset);
    match status {
        Ok(RulesetStatus::FullyEnforced) => Confinement::Full,
        Ok(RulesetStatus::PartiallyEnforced) => Confinement::Partial,
        Ok(RulesetStatus::NotEnforced) | Err(_) => Confinement::WithoutLandlock,
    }
}
