//! Where archives lie: a folder, or a bucket of an S3-compatible object store.
//!
//! **Invariant:** only names of the form that is written here are listed, and hence removed.
//! **Invariant:** the newest archive is never removed.

use std::io::{self, Read, Write};
use std::path::Path as FilePath;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use futures::TryStreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, WriteMultipart};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::BackupError;
use crate::domain::address::guarded;

/// Bytes of one piece of an upload, and how many are under way: the least that S3 takes is 5 MiB.
const PIECE: usize = 8 << 20;
const PIECES: usize = 4;
/// Bytes that are handed over at once, and how often before the other side has to follow.
const SLICE: usize = 1 << 18;
const SLICES: usize = 16;
const PREFIX: &str = "bulkhead-";
/// To the millisecond, since names of one time are in no order.
const TIME: &str = "%Y%m%dT%H%M%S%3fZ";

/// An archive that is there.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Archived {
    /// Its name.
    pub name: String,
    /// When it was begun.
    pub at: DateTime<Utc>,
    /// Its size.
    pub bytes: u64,
}

/// Which archives are kept: those that one of the rules keeps. Without a rule, all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    /// So many, the newest.
    pub newest: Option<usize>,
    /// Those that are not older than so many days.
    pub days: Option<u32>,
}

impl Keep {
    /// The archives that no rule keeps. `archives` are ordered, the newest first; it is always kept.
    fn expired(self, archives: &[Archived], now: DateTime<Utc>) -> impl Iterator<Item = &Archived> {
        let is_kept = move |(at, archive): &(usize, &Archived)| {
            let by_number = self.newest.is_some_and(|newest| *at < newest);
            let by_age = self.days.is_some_and(|days| now - archive.at <= TimeDelta::days(days.into()));
            *at == 0 || by_number || by_age || self == Self::default()
        };
        archives.iter().enumerate().filter(move |archive| !is_kept(archive)).map(|(_, archive)| archive)
    }
}

/// A place of archives.
pub struct Depot {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
}

impl Depot {
    /// The place that is named: a folder, or `s3://bucket/prefix`, whose region, endpoint and credentials are the
    /// environment's (`AWS_REGION`, `AWS_ENDPOINT`, `AWS_ACCESS_KEY_ID`, ...). Beyond loopback, HTTPS alone.
    ///
    /// # Errors
    /// `Place` or `Io` when it cannot be used.
    pub fn open(place: &str, create: bool) -> Result<Self, BackupError> {
        if let Some(rest) = place.strip_prefix("s3://") {
            return Self::bucket(place, rest);
        }
        let folder = FilePath::new(place);
        if create {
            std::fs::create_dir_all(folder).map_err(BackupError::io(format!("{place} cannot be made")))?;
        }
        let store = LocalFileSystem::new_with_prefix(folder).map_err(|error| refused(place, &error))?;
        Ok(Self { store: Arc::new(store.with_fsync(true)), prefix: Path::default() })
    }

    fn bucket(place: &str, rest: &str) -> Result<Self, BackupError> {
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            // One at a time, which every such store understands.
            .with_config(AmazonS3ConfigKey::DisableBulkDelete, "true");
        let endpoint =
            std::env::var("AWS_ENDPOINT").or_else(|_| std::env::var("AWS_ENDPOINT_URL")).unwrap_or_default();
        if endpoint.starts_with("http://") {
            if guarded(&endpoint).is_err() {
                let words = format!("{endpoint} is plain HTTP, which is for loopback alone; use https");
                return Err(BackupError::Place { place: place.to_owned(), words });
            }
            builder = builder.with_allow_http(true);
        }
        let store = builder.build().map_err(|error| refused(place, &error))?;
        let prefix = Path::parse(prefix).map_err(|error| refused(place, &error.into()))?;
        Ok(Self { store: Arc::new(store), prefix })
    }

    /// A name for an archive that is begun now.
    pub(super) fn name(now: DateTime<Utc>, id: Uuid, is_encrypted: bool) -> String {
        let id = &id.simple().to_string()[24..];
        let ending = if is_encrypted { ".age" } else { "" };
        format!("{PREFIX}{}-{id}.tar.zst{ending}", now.format(TIME))
    }

    /// The archives that are there, the newest first.
    ///
    /// # Errors
    /// `Depot` when they cannot be listed.
    pub async fn list(&self) -> Result<Vec<Archived>, BackupError> {
        let listed = self.store.list_with_delimiter(Some(&self.prefix)).await;
        let listed = listed.map_err(failed("list archives"))?;
        let mut archives: Vec<Archived> = listed
            .objects
            .iter()
            .filter_map(|object| {
                let name = object.location.filename()?;
                Some(Archived { name: name.to_owned(), at: time_of(name)?, bytes: object.size })
            })
            .collect();
        archives.sort_by(|a, b| b.name.cmp(&a.name));
        Ok(archives)
    }

    /// The archive of this name, or the newest.
    ///
    /// # Errors
    /// `NotFound`, or `Depot` when they cannot be listed.
    pub async fn find(&self, name: Option<&str>) -> Result<Archived, BackupError> {
        let archives = self.list().await?;
        let found = archives.into_iter().find(|archive| name.is_none_or(|name| archive.name == name));
        found.ok_or_else(|| BackupError::NotFound(name.unwrap_or("bulkhead-*").to_owned()))
    }

    /// Removes what no rule keeps, and returns the names.
    ///
    /// # Errors
    /// `Depot`; what was not removed is found by the next call.
    pub async fn prune(&self, keep: Keep, now: DateTime<Utc>) -> Result<Vec<String>, BackupError> {
        let archives = self.list().await?;
        let mut removed = Vec::new();
        for archive in keep.expired(&archives, now) {
            let path = self.path(&archive.name);
            self.store.delete(&path).await.map_err(failed("remove an archive"))?;
            removed.push(archive.name.clone());
        }
        Ok(removed)
    }

    fn path(&self, name: &str) -> Path {
        self.prefix.clone().join(name)
    }

    /// Writes an archive from what `produce` writes, on a thread of its own. It appears when all of it is there;
    /// when `produce` fails, nothing appears.
    ///
    /// # Errors
    /// Those of `produce`, or `Depot`.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        name: &str,
        produce: impl FnOnce(Outlet) -> Result<T, BackupError> + Send + 'static,
    ) -> Result<(T, u64), BackupError> {
        let upload = self.store.put_multipart(&self.path(name)).await.map_err(failed("begin an archive"))?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PIECE);
        let (sender, mut receiver) = mpsc::channel(SLICES);
        let outlet = Outlet { sender, buffer: BytesMut::with_capacity(SLICE) };
        let producing = tokio::task::spawn_blocking(move || produce(outlet));
        let (mut bytes, mut written) = (0, Ok(()));
        while let Some(slice) = receiver.recv().await {
            bytes += Bytes::len(&slice) as u64;
            written = upload.wait_for_capacity(PIECES).await;
            if written.is_err() {
                break;
            }
            upload.put(slice);
        }
        // Whoever still produces finds that nobody listens.
        drop(receiver);
        let produced = producing.await;
        if let Err(error) = written {
            abandon(upload).await;
            return Err(failed("write an archive")(error));
        }
        match produced {
            Ok(Ok(produced)) => {
                upload.finish().await.map_err(failed("complete an archive"))?;
                Ok((produced, bytes))
            }
            Ok(Err(error)) => {
                abandon(upload).await;
                Err(error)
            }
            Err(error) => {
                abandon(upload).await;
                Err(BackupError::io("the archive was not written to its end")(io::Error::other(error)))
            }
        }
    }

    /// Reads an archive by what `consume` does with it, on a thread of its own.
    ///
    /// # Errors
    /// Those of `consume`, or `Depot`.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        name: &str,
        consume: impl FnOnce(Inlet) -> Result<T, BackupError> + Send + 'static,
    ) -> Result<T, BackupError> {
        let found = self.store.get(&self.path(name)).await.map_err(failed("open an archive"))?;
        let mut stream = found.into_stream();
        let (sender, receiver) = mpsc::channel(SLICES);
        let inlet = Inlet { receiver, rest: Bytes::new() };
        let consuming = tokio::task::spawn_blocking(move || consume(inlet));
        let mut broken = None;
        loop {
            match stream.try_next().await {
                Ok(Some(slice)) => {
                    if sender.send(Ok(slice)).await.is_err() {
                        // Whoever consumes has had enough.
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    let _gone = sender.send(Err(io::Error::other("the archive's place broke off"))).await;
                    broken = Some(error);
                    break;
                }
            }
        }
        drop(sender);
        let consumed = consuming.await;
        if let Some(error) = broken {
            return Err(failed("read an archive")(error));
        }
        consumed.map_err(|error| {
            BackupError::io("the archive was not read to its end")(io::Error::other(error))
        })?
    }
}

/// Gives an upload up. What cannot be removed now is not listed, and goes by the place's own rules.
async fn abandon(upload: WriteMultipart) {
    if let Err(error) = upload.abort().await {
        tracing::warn!(%error, "an unfinished archive stays behind");
    }
}

fn time_of(name: &str) -> Option<DateTime<Utc>> {
    let rest = name.strip_prefix(PREFIX)?;
    let rest = rest.strip_suffix(".age").unwrap_or(rest).strip_suffix(".tar.zst")?;
    let (time, id) = rest.split_once('-')?;
    let is_id = id.len() == 8 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then_some(())?;
    NaiveDateTime::parse_from_str(time, TIME).ok().map(|time| time.and_utc())
}

fn refused(place: &str, error: &object_store::Error) -> BackupError {
    BackupError::Place { place: place.to_owned(), words: error.to_string() }
}

fn failed(doing: &'static str) -> impl FnOnce(object_store::Error) -> BackupError {
    move |source| BackupError::Depot { doing, source }
}

/// Where an archive is written to, from a thread.
pub(super) struct Outlet {
    sender: mpsc::Sender<Bytes>,
    buffer: BytesMut,
}

impl Outlet {
    fn hand_over(&mut self) -> io::Result<()> {
        let slice = self.buffer.split().freeze();
        if slice.is_empty() {
            return Ok(());
        }
        self.buffer.reserve(SLICE);
        self.sender.blocking_send(slice).map_err(|_| io::Error::other("the archive's place broke off"))
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= SLICE {
            self.hand_over()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hand_over()
    }
}

/// Where an archive is read from, on a thread.
pub(super) struct Inlet {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl Read for Inlet {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.receiver.blocking_recv() {
                Some(slice) => self.rest = slice?,
                None => return Ok(0),
            }
        }
        let length = bytes.len().min(self.rest.len());
        bytes[..length].copy_from_slice(&self.rest.split_to(length));
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(day: u32) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::days(day.into())
    }

    #[test]
    fn names_are_ordered_by_time_and_no_other_file_is_taken_for_an_archive() {
        let names = [at(1), at(400), at(20_000)].map(|at| Depot::name(at, Uuid::max(), at > self::at(300)));
        assert!(names.is_sorted());
        let second = [(4, Uuid::max()), (5, Uuid::nil())]
            .map(|(millis, id)| Depot::name(at(1) + TimeDelta::milliseconds(millis), id, true));
        assert!(second.is_sorted(), "two of one second: {second:?}");
        assert_eq!(time_of(&names[1]), Some(at(400)));
        for name in
            ["notes.txt", "bulkhead-20260101T000000000Z.tar.zst", "bulkhead-x-01234567.tar.zst", "bulkhead-"]
        {
            assert_eq!(time_of(name), None, "{name}");
        }
    }

    #[test]
    fn an_archive_goes_when_no_rule_keeps_it_and_the_newest_never() {
        let archives: Vec<Archived> =
            (0..10).rev().map(|day| Archived { name: format!("day {day}"), at: at(day), bytes: 1 }).collect();
        let expired = |newest, days, now| -> Vec<&str> {
            Keep { newest, days }.expired(&archives, at(now)).map(|archive| archive.name.as_str()).collect()
        };
        assert_eq!(expired(None, None, 100), [""; 0]);
        assert_eq!(expired(Some(8), None, 9), ["day 1", "day 0"]);
        assert_eq!(expired(None, Some(7), 9), ["day 1", "day 0"]);
        assert_eq!(expired(Some(3), Some(7), 9), ["day 1", "day 0"], "either rule keeps");
        assert_eq!(expired(Some(0), Some(0), 100).len(), 9, "the newest stays");
    }

    #[tokio::test]
    async fn an_archive_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().expect("folder");
        let depot = Depot::open(folder.path().to_str().expect("a path"), true).expect("opened");
        let name = Depot::name(at(1), Uuid::max(), false);
        let broken = depot.write(&name, |mut outlet| -> Result<(), BackupError> {
            outlet.write_all(&vec![7; 20 << 20]).map_err(BackupError::io("written"))?;
            Err(BackupError::UnderWay)
        });
        assert!(matches!(broken.await, Err(BackupError::UnderWay)));
        assert_eq!(depot.list().await.expect("listed"), []);
        let whole = depot.write(&name, |mut outlet| {
            outlet
                .write_all(&vec![7; 20 << 20])
                .and_then(|()| outlet.flush())
                .map_err(BackupError::io("written"))
        });
        assert_eq!(whole.await.expect("written").1, 20 << 20);
        assert_eq!(depot.find(None).await.expect("there").bytes, 20 << 20);
        let read = depot.read(&name, |mut inlet| {
            let mut bytes = Vec::new();
            inlet.read_to_end(&mut bytes).map_err(BackupError::io("read"))?;
            Ok(bytes.len())
        });
        assert_eq!(read.await.expect("read"), 20 << 20);
        assert!(matches!(depot.find(Some("other")).await, Err(BackupError::NotFound(_))));
    }
}
