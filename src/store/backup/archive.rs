//! The inside of an archive: parts in a fixed order, and a manifest that says what they should be.
//!
//! **Invariant:** a name that is not of these parts, in another order, twice, or behind the manifest is damage; none
//! leads out of its folder.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::BackupError;
use super::seal::{self, Key, Seal, Sealed};

/// The format that is written; a reader knows this and older ones.
const FORMAT: u32 = 1;
/// zstd's own default: faster than a disk, and vectors do not shrink much anyway.
const LEVEL: i32 = 3;
/// The longest text that is read into memory.
const MAX_TEXT: u64 = 1 << 20;
const ABOUT: &str = "about.json";
const MANIFEST: &str = "manifest.json";

/// What an archive says first.
#[derive(Debug, Serialize, Deserialize)]
struct About {
    format: u32,
    version: String,
}

/// What an archive holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The program's version.
    pub version: String,
    /// When the snapshot was taken.
    pub taken_at: DateTime<Utc>,
    /// The newest migration of the database.
    pub schema: i64,
    /// Rows, by what they are.
    pub counts: BTreeMap<String, i64>,
    /// Uploads that rows named and that were not there.
    pub lost_uploads: u64,
    /// What is in each part.
    pub parts: BTreeMap<Part, Parts>,
}

/// A part of an archive, in the order in which they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Keys of the deployment.
    Secrets,
    /// Uploaded files.
    Uploads,
    /// The dump.
    Database,
}

/// Size and hash of a part.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parts {
    /// Files.
    pub files: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// SHA-256 over name, size and content of each, one after the other.
    pub sha256: String,
}

/// An entry's place: its part and its path below it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) part: Part,
    pub(super) path: String,
}

impl Place {
    pub(super) fn secret(name: &str) -> Option<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let fits = !name.is_empty() && name.len() <= 100 && !name.starts_with('.') && name.chars().all(plain);
        fits.then(|| Self { part: Part::Secrets, path: name.to_owned() })
    }

    pub(super) fn upload(tenant: Uuid, namespace: Uuid, upload: Uuid) -> Self {
        Self { part: Part::Uploads, path: format!("{tenant}/{namespace}/{upload}") }
    }

    pub(super) fn dump(number: u64) -> Self {
        Self { part: Part::Database, path: format!("{number:08}") }
    }

    fn name(&self) -> String {
        let part = match self.part {
            Part::Secrets => "secrets",
            Part::Uploads => "uploads",
            Part::Database => "database",
        };
        format!("{part}/{}", self.path)
    }

    fn parse(name: &str) -> Option<Self> {
        let (part, path) = name.split_once('/')?;
        let place = match part {
            "secrets" => Self::secret(path)?,
            "uploads" => {
                let ids: Vec<Uuid> = path.split('/').map(Uuid::parse_str).collect::<Result<_, _>>().ok()?;
                let [tenant, namespace, upload] = ids.try_into().ok()?;
                Self::upload(tenant, namespace, upload)
            }
            "database" => Self::dump(path.parse().ok()?),
            _ => return None,
        };
        // Written as it would be written here, and in no other way.
        (place.name() == name).then_some(place)
    }
}

/// Size and hash of each part, as they grow.
#[derive(Default)]
struct Sums(BTreeMap<Part, (u64, u64, Sha256)>);

impl Sums {
    fn begin(&mut self, place: &Place, size: u64) -> &mut Sha256 {
        let (files, bytes, hash) = self.0.entry(place.part).or_default();
        *files += 1;
        *bytes += size;
        hash.update(place.name());
        hash.update(size.to_be_bytes());
        hash
    }

    fn end(self) -> BTreeMap<Part, Parts> {
        let sum = |(files, bytes, hash): (u64, u64, Sha256)| Parts {
            files,
            bytes,
            sha256: hex::encode(hash.finalize()),
        };
        self.0.into_iter().map(|(part, sums)| (part, sum(sums))).collect()
    }
}

/// Hashes what is read, and counts it.
struct Hashing<'a, R> {
    inner: R,
    hash: &'a mut Sha256,
    read: u64,
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.hash.update(&bytes[..read]);
        self.read += read as u64;
        Ok(read)
    }
}

/// Writes an archive.
pub(super) struct Packer<W: Write> {
    tar: tar::Builder<zstd::Encoder<'static, Sealed<W>>>,
    sums: Sums,
}

impl<W: Write> Packer<W> {
    pub(super) fn new(out: W, seal: &Seal) -> io::Result<Self> {
        let mut compressed = zstd::Encoder::new(seal.wrap(out)?, LEVEL)?;
        // The parts have hashes of their own; the manifest that holds them has only this.
        compressed.include_checksum(true)?;
        let mut packer = Self { tar: tar::Builder::new(compressed), sums: Sums::default() };
        let about = About { format: FORMAT, version: env!("CARGO_PKG_VERSION").to_owned() };
        packer.text(ABOUT, &serde_json::to_vec(&about)?)?;
        Ok(packer)
    }

    fn text(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.tar.append_data(&mut header(bytes.len() as u64), name, bytes)
    }

    /// Adds a file of exactly this size.
    pub(super) fn add(&mut self, place: &Place, size: u64, content: impl Read) -> io::Result<()> {
        let hash = self.sums.begin(place, size);
        let mut content = Hashing { inner: content.take(size), hash, read: 0 };
        self.tar.append_data(&mut header(size), place.name(), &mut content)?;
        if content.read == size {
            Ok(())
        } else {
            Err(io::Error::other(format!("{} became shorter while it was read", place.name())))
        }
    }

    /// Writes the manifest, completed by the parts' sums, and the end.
    pub(super) fn finish(mut self, mut manifest: Manifest) -> io::Result<Manifest> {
        manifest.parts = std::mem::take(&mut self.sums).end();
        self.text(MANIFEST, &serde_json::to_vec(&manifest)?)?;
        self.tar.into_inner()?.finish()?.finish()?.flush()?;
        Ok(manifest)
    }
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o600);
    header.set_entry_type(tar::EntryType::Regular);
    header
}

fn damaged(words: impl Into<String>) -> BackupError {
    BackupError::Damaged(words.into())
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err wants it")]
fn unreadable(error: io::Error) -> BackupError {
    damaged(error.to_string())
}

/// Reads an archive from beginning to end, and hands each file to `visit`, which reads what it wants of it. What is
/// returned was compared with the whole of it; before that, nothing that was handed out is known to be right.
pub(super) fn unpack(
    input: impl Read,
    key: Option<&Key>,
    mut visit: impl FnMut(&Place, &mut dyn Read) -> Result<(), BackupError>,
) -> Result<Manifest, BackupError> {
    let mut tar = tar::Archive::new(zstd::Decoder::new(seal::unwrap(input, key)?).map_err(unreadable)?);
    let (mut sums, mut last, mut manifest, mut is_first) = (Sums::default(), None, None, true);
    for entry in tar.entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        let name =
            String::from_utf8(entry.path_bytes().into_owned()).map_err(|_| damaged("a name is no text"))?;
        let size = entry.size();
        if std::mem::take(&mut is_first) {
            let about: About = (name == ABOUT)
                .then(|| text(&mut entry))
                .and_then(Result::ok)
                .ok_or_else(|| damaged("it does not begin as an archive does"))?;
            if about.format > FORMAT {
                return Err(BackupError::Newer { version: about.version });
            }
            continue;
        }
        if manifest.is_some() {
            return Err(damaged("something lies behind its end"));
        }
        if name == MANIFEST {
            manifest =
                Some(text::<Manifest>(&mut entry).map_err(|_| damaged("its manifest cannot be read"))?);
            continue;
        }
        let place = Place::parse(&name).ok_or_else(|| damaged(format!("{name:?} has no place in it")))?;
        if last.as_ref().is_some_and(|last| *last >= place) {
            return Err(damaged(format!("{name:?} comes twice or too late")));
        }
        let mut content = Hashing { inner: &mut entry, hash: sums.begin(&place, size), read: 0 };
        visit(&place, &mut content)?;
        io::copy(&mut content, &mut io::sink()).map_err(unreadable)?;
        last = Some(place);
    }
    // To the very end: only there a cut stream shows.
    let mut rest = tar.into_inner();
    let mut bytes = [0; 8192];
    loop {
        let read = rest.read(&mut bytes).map_err(unreadable)?;
        if read == 0 {
            break;
        }
        if bytes[..read].iter().any(|byte| *byte != 0) {
            return Err(damaged("something lies behind its end"));
        }
    }
    let manifest = manifest.ok_or_else(|| damaged("its end is missing"))?;
    if manifest.parts != sums.end() {
        return Err(damaged("its parts are not those of its manifest"));
    }
    Ok(manifest)
}

fn text<T: serde::de::DeserializeOwned>(entry: &mut impl Read) -> io::Result<T> {
    let mut bytes = Vec::new();
    entry.take(MAX_TEXT).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            version: "1".to_owned(),
            taken_at: DateTime::UNIX_EPOCH,
            schema: 6,
            counts: BTreeMap::from([("documents".to_owned(), 2)]),
            lost_uploads: 0,
            parts: BTreeMap::new(),
        }
    }

    fn packed() -> Vec<u8> {
        let mut out = Vec::new();
        let mut packer = Packer::new(&mut out, &Seal::Open).expect("begun");
        packer.add(&Place::secret("audit-key").expect("a name"), 3, &b"abc"[..]).expect("added");
        packer.add(&Place::upload(Uuid::nil(), Uuid::nil(), Uuid::max()), 5, &b"hello"[..]).expect("added");
        for number in 0..3 {
            packer.add(&Place::dump(number), 70_000, &vec![7; 70_000][..]).expect("added");
        }
        packer.finish(manifest()).expect("finished");
        out
    }

    fn read(bytes: &[u8]) -> Result<(Manifest, Vec<String>), BackupError> {
        let mut names = Vec::new();
        let manifest = unpack(bytes, None, |place, _| {
            names.push(place.name());
            Ok(())
        })?;
        Ok((manifest, names))
    }

    #[test]
    fn what_was_packed_is_handed_out_in_order_and_summed_up() {
        let (manifest, names) = read(&packed()).expect("whole");
        assert_eq!(names.len(), 5);
        assert_eq!(names[0], "secrets/audit-key");
        assert_eq!(names[4], "database/00000002");
        assert_eq!(
            (manifest.parts[&Part::Database].files, manifest.parts[&Part::Database].bytes),
            (3, 210_000)
        );
        assert_eq!(manifest.counts["documents"], 2);
    }

    #[test]
    fn an_archive_that_was_cut_anywhere_or_changed_anywhere_is_refused() {
        let whole = packed();
        for length in 0..whole.len() {
            assert!(matches!(read(&whole[..length]), Err(BackupError::Damaged(_))), "cut at {length}");
        }
        for at in 0..whole.len() {
            let mut edited = whole.clone();
            edited[at] ^= 0x10;
            // A bit that says nothing may be changed; what is read is never something else.
            if let Ok((manifest, _)) = read(&edited) {
                assert_eq!(manifest, read(&whole).expect("whole").0, "changed at {at}");
            }
        }
        let longer = [whole.as_slice(), b"more"].concat();
        assert!(matches!(read(&longer), Err(BackupError::Damaged(_))));
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_no_place() {
        for name in [
            "secrets/../passwd",
            "secrets/a/b",
            "secrets/.hidden",
            "uploads/x/y/z",
            "uploads/00000000-0000-0000-0000-000000000000/../00000000-0000-0000-0000-000000000000",
            "database/1",
            "database/+0000001",
            "/etc/passwd",
            "shards/1",
        ] {
            assert_eq!(Place::parse(name), None, "{name}");
        }
        let place = Place::upload(Uuid::nil(), Uuid::max(), Uuid::nil());
        assert_eq!(Place::parse(&place.name()), Some(place));
    }

    #[test]
    fn an_archive_of_a_newer_format_is_told_apart_from_damage() {
        let mut tar = tar::Builder::new(zstd::Encoder::new(Vec::new(), LEVEL).expect("begun"));
        let about = br#"{"format": 9, "version": "7.0.0"}"#;
        tar.append_data(&mut header(about.len() as u64), ABOUT, &about[..]).expect("added");
        let bytes = tar.into_inner().and_then(zstd::Encoder::finish).expect("finished");
        assert!(matches!(read(&bytes), Err(BackupError::Newer { version }) if version == "7.0.0"));
    }
}
