//! `bulkhead backup`, `restore` and `backup-key`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use serde_json::json;

use super::Global;
use super::action::Action;
use super::desk::at_desk_with;
use super::output::Answer;
use crate::admin::NewBackup;
use crate::app::backup::{BackupOrder, RestoreOrder, backup, restore};
use crate::domain::clock::{Clock, SystemClock};
use crate::store::backup::{Keep, Key, Manifest, Seal, Tally, new_identity};

/// How often progress is shown.
const TICK: Duration = Duration::from_millis(200);

/// Write database, uploads and secrets into one archive, while they are in use.
#[derive(Debug, Args)]
pub(super) struct Backup {
    /// A folder, or `s3://bucket/prefix` with region, endpoint and credentials in AWS_... variables.
    #[arg(long, value_name = "PLACE")]
    to: String,
    /// Encrypt for the holder of this key, as `age1...`; more than once for several.
    #[arg(long, value_name = "KEY", conflicts_with = "passphrase_file")]
    recipient: Vec<String>,
    /// Encrypt by the passphrase in this file.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Do not encrypt: whoever has the archive has every tenant's documents and the keys.
    #[arg(long, conflicts_with_all = ["recipient", "passphrase_file"])]
    unencrypted: bool,
    /// Then remove archives but for the newest so many.
    #[arg(long, value_name = "N")]
    keep: Option<usize>,
    /// Then remove archives older than so many days; with `--keep`, those that neither keeps.
    #[arg(long, value_name = "DAYS")]
    keep_days: Option<u32>,
    /// Why, for the audit log.
    #[arg(long, default_value = "a backup")]
    reason: String,
}

/// Make a data folder of an archive. Nothing is changed before all of it was read and found whole.
#[derive(Debug, Args)]
pub(super) struct Restore {
    /// The folder or bucket that the archive is in.
    #[arg(long, value_name = "PLACE")]
    from: String,
    /// The archive's name; without it the newest.
    #[arg(long, value_name = "NAME")]
    archive: Option<String>,
    /// The private key that it was encrypted for.
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_file")]
    identity: Option<PathBuf>,
    /// The passphrase that it was encrypted by.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Move a data folder that is there aside.
    #[arg(long)]
    replace: bool,
    /// Read and compare the archive, and do nothing else.
    #[arg(long, conflicts_with = "replace")]
    check: bool,
}

/// Make a key for backups: the private one into a file, the public one is printed.
#[derive(Debug, Args)]
pub(super) struct BackupKey {
    /// The new file; keep it where the backups are not.
    file: PathBuf,
}

impl Backup {
    fn seal(&self) -> anyhow::Result<Seal> {
        Ok(match &self.passphrase_file {
            Some(file) => Seal::passphrase(file)?,
            None if !self.recipient.is_empty() => Seal::recipients(&self.recipient)?,
            None if self.unencrypted => Seal::Open,
            None => bail!(
                "an archive holds every tenant's documents and the deployment's keys: name --recipient or \
                 --passphrase-file, or say --unencrypted"
            ),
        })
    }

    pub(super) async fn run(self, global: &Global) -> anyhow::Result<Answer> {
        let seal = self.seal()?;
        let settings = global.settings()?;
        let clock = SystemClock;
        let begun = clock.instant();
        let done = at_desk_with(global, &settings, async |desk| {
            // An operator's authority, and in the audit log before anything is read.
            desk.ask(&Action::Backup(NewBackup { reason: self.reason.clone() })).await?;
            let keep = Keep { newest: self.keep, days: self.keep_days };
            let order = BackupOrder { to: self.to.clone(), seal: seal.clone(), keep };
            let tally = Tally::default();
            shown("packed", &tally, backup(&settings, order, Arc::clone(&tally))).await
        })
        .await?;
        let seconds = clock.instant().duration_since(begun).as_secs_f64();
        let (archive, manifest) = (&done.taken.archive, &done.taken.manifest);
        let mut text =
            format!("{} in {seconds:.1} s: {} bytes.\n{}", archive.name, archive.bytes, contents(manifest));
        if !done.removed.is_empty() {
            text.extend(["Removed: ", &done.removed.join(", "), ".\n"]);
        }
        let json = json!({
            "archive": archive.name, "bytes": archive.bytes, "seconds": seconds, "encrypted": seal.is_encrypted(),
            "manifest": manifest, "removed": done.removed,
        });
        Ok(Answer { json, text })
    }
}

impl Restore {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<Answer> {
        let key = match (&self.identity, &self.passphrase_file) {
            (Some(file), _) => Some(Key::identities(file)?),
            (None, Some(file)) => Some(Key::passphrase(file)?),
            (None, None) => None,
        };
        let settings = global.settings()?;
        let clock = SystemClock;
        let begun = clock.instant();
        let order = RestoreOrder {
            from: self.from,
            archive: self.archive,
            key,
            replace: self.replace,
            check: self.check,
        };
        let tally = Tally::default();
        let work = Box::pin(restore(&settings, order, Arc::clone(&tally)));
        let done = shown("read", &tally, work).await?;
        let seconds = clock.instant().duration_since(begun).as_secs_f64();
        let (archive, manifest) = (&done.restored.archive, &done.restored.manifest);
        let mut text = format!("{} is whole.\n{}", archive.name, contents(manifest));
        if !self.check {
            let restored = format!(
                "Restored in {seconds:.1} s. What was deleted, suspended or revoked after {} is back; docs/backup.md \
                 says what to look at.\n",
                manifest.taken_at.to_rfc3339()
            );
            text.push_str(&restored);
        }
        if let Some(aside) = &done.aside {
            text.extend(["The data folder that was there is now ", &aside.to_string_lossy(), ".\n"]);
        }
        let json = json!({
            "archive": archive.name, "bytes": archive.bytes, "seconds": seconds, "restored": !self.check,
            "manifest": manifest, "aside": done.aside,
        });
        Ok(Answer { json, text })
    }
}

impl BackupKey {
    pub(super) fn run(&self) -> anyhow::Result<Answer> {
        let recipient = new_identity(&self.file)?;
        Ok(Answer { json: json!({ "recipient": recipient }), text: recipient })
    }
}

fn contents(manifest: &Manifest) -> String {
    let counts: Vec<String> = manifest.counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
    let lost = match manifest.lost_uploads {
        0 => String::new(),
        lost => format!("{lost} uploads were lost before: `bulkhead verify` tells whose.\n"),
    };
    format!("State of {}: {}.\n{lost}", manifest.taken_at.to_rfc3339(), counts.join(", "))
}

/// Shows how many bytes have gone by while work lasts, on a terminal.
async fn shown<T>(
    what: &'static str,
    tally: &Tally,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let bar = ProgressBar::new_spinner().with_message(what).with_finish(ProgressFinish::AndClear);
    bar.set_style(ProgressStyle::with_template("{spinner} {bytes} {msg}, {bytes_per_sec}, {elapsed}")?);
    let mut ticks = tokio::time::interval(TICK);
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = ticks.tick() => bar.set_position(tally.load(Ordering::Relaxed)),
        }
    }
}
