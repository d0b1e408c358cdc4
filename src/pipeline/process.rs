//! From a task to what is written: read, cut, find entities and terms, embed.
//!
//! **Invariant:** nothing is written here, so a task can be begun again at any time.

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use nix::errno::Errno;
use sha2::{Digest, Sha256};

use super::chunk::{ChunkError, Chunker, embedding_text};
use super::extract::Extractor;
use super::parse::{FileType, ParseError, Parser, parse_text};
use crate::domain::document::Parsed;
use crate::domain::ids::{ChunkId, IdSource, ModelId, NamespaceId, TenantId};
use crate::domain::lexical::Lexicon;
use crate::domain::names::NameHasher;

use crate::inference::{Embedder, EmbedderError, in_background};
use crate::store::postgres::ingest::{Mentions, NewChunk};
use crate::store::postgres::jobs::IngestTask;
use crate::store::vector::Terms;
use crate::store::{ErrorKind, StoreError};

/// Why a task came to nothing this time.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The document cannot be read.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// The document is too large for one job.
    #[error("the document has {found} chunks; at most {limit} are allowed")]
    TooManyChunks {
        /// What it has.
        found: usize,
        /// The setting `ingestion.max_chunks`.
        limit: usize,
    },
    /// The upload is gone.
    #[error("the uploaded file is gone")]
    UploadGone,
    /// The tokenizer failed.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// The model failed or is stopping.
    #[error(transparent)]
    Embed(#[from] EmbedderError),
    /// A store is away.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The analysis panicked.
    #[error("the document's text could not be analysed")]
    Analysis,
}

/// How often a document is begun that fails in one way, the first time included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempts {
    /// The same bytes fail again.
    Once,
    /// They probably do, and what they cost is not paid more often.
    Twice,
    /// As often as configured: the cause is elsewhere, or unknown.
    Configured,
    /// The document has no part in it, and the attempt does not count.
    Unbounded,
}

impl Attempts {
    /// As a number, if there is one; never more than what is configured.
    #[must_use]
    pub fn bound(self, configured: i32) -> Option<i32> {
        match self {
            Self::Once => Some(1),
            Self::Twice => Some(configured.min(2)),
            Self::Configured => Some(configured),
            Self::Unbounded => None,
        }
    }
}

impl ProcessError {
    /// How often a document is begun that fails in this way.
    #[must_use]
    pub fn attempts(&self) -> Attempts {
        match self {
            Self::TooManyChunks { .. } | Self::UploadGone | Self::Chunk(_) => Attempts::Once,
            Self::Parse(error) if error.is_permanent() => Attempts::Once,
            // The machine may have been busy, or short of memory; a hostile file costs this much twice.
            Self::Parse(ParseError::Timeout { .. } | ParseError::Crashed { .. }) | Self::Analysis => {
                Attempts::Twice
            }
            Self::Store(error) if error.kind == ErrorKind::Unavailable && error.backend == "postgres" => {
                Attempts::Unbounded
            }
            Self::Parse(_) | Self::Store(_) if machine_lacks(self) => Attempts::Unbounded,
            Self::Parse(_) | Self::Embed(_) | Self::Store(_) => Attempts::Configured,
        }
    }
}

/// Whether the machine lacked what comes back: processes, memory, descriptors, room on the disk.
fn machine_lacks(error: &(dyn Error + 'static)) -> bool {
    let lacks = [Errno::EAGAIN, Errno::ENOMEM, Errno::ENFILE, Errno::EMFILE, Errno::ENOSPC];
    let mut cause = Some(error);
    while let Some(error) = cause {
        let number = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        if number.is_some_and(|number| lacks.contains(&Errno::from_raw(number))) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A chunk before its vector.
#[derive(Debug)]
pub struct Draft {
    /// What the model is shown.
    pub model_text: String,
    /// The chunk; its embedding is empty until [`Pipeline::embed`].
    pub chunk: NewChunk,
}

/// A document, cut.
#[derive(Debug)]
pub struct Drafts {
    /// Its title: the one given, else its own.
    pub title: Option<String>,
    /// Its chunks.
    pub chunks: Vec<Draft>,
}

/// The steps from a task to what is written. The workers take them by this trait, so that a simulation can take
/// others.
#[async_trait]
pub trait Steps: Send + Sync {
    /// Reads a document: a plain insert's text here, an upload in a child process. `upload` is waited for only
    /// when it is needed.
    ///
    /// # Errors
    /// `Parse`, `UploadGone` or `Store`.
    async fn read(&self, task: &IngestTask, upload: UploadBytes<'_>) -> Result<Parsed, ProcessError>;

    /// Cuts a document into chunks with their terms and entities.
    ///
    /// # Errors
    /// `Parse` when there is no text, `TooManyChunks`, `Chunk` or `Analysis`.
    async fn analyse(
        &self,
        namespace: NamespaceId,
        title: Option<String>,
        parsed: Parsed,
    ) -> Result<Drafts, ProcessError>;

    /// Gives drafts their vectors: those known from before, the model's for the others. Returns those that the model
    /// failed on, by their place.
    ///
    /// # Errors
    /// `Embed`.
    async fn embed(
        &self,
        tenant: TenantId,
        drafts: &mut [&mut Draft],
        known: &HashMap<[u8; 16], Vec<f32>>,
    ) -> Result<Vec<(usize, EmbedderError)>, ProcessError>;

    /// The vectors of chunks that were cut before, perhaps for another model. `[chunks][dimension]`
    ///
    /// # Errors
    /// `Chunk` or `Embed`.
    async fn embed_again(
        &self,
        tenant: TenantId,
        chunks: &[(Option<&str>, Option<&str>, &str)],
    ) -> Result<Vec<Vec<f32>>, ProcessError>;
}

/// The bytes of a task's upload, when they are there.
pub type UploadBytes<'a> = BoxFuture<'a, Result<Option<Bytes>, StoreError>>;

/// The steps for each embedding model of the server.
#[derive(Clone)]
pub struct Pipelines(Arc<[(ModelId, Arc<dyn Steps>)]>);

impl Pipelines {
    /// These steps, each with a model of their own.
    #[must_use]
    pub fn new(steps: Vec<(ModelId, Arc<dyn Steps>)>) -> Self {
        Self(steps.into())
    }

    /// The steps for a model, if the server has it.
    #[must_use]
    pub fn get(&self, model: &ModelId) -> Option<&dyn Steps> {
        self.0.iter().find(|(own, _)| own == model).map(|(_, steps)| steps.as_ref())
    }
}

/// The steps of ingestion with the models that they need.
#[derive(Clone)]
pub struct Pipeline {
    /// Reads uploads.
    pub parser: Parser,
    /// Cuts documents for the embedding model.
    pub chunker: Chunker,
    /// Finds entities.
    pub extractor: Extractor,
    /// Weighs terms.
    pub lexicon: Arc<Lexicon>,
    /// The embedding model.
    pub embedder: Embedder,
    /// Identities of new chunks.
    pub ids: Arc<dyn IdSource>,
    /// Chunks of one document, at most.
    pub max_chunks: usize,
}

impl Pipeline {
    fn analyse_now(
        &self,
        namespace: NamespaceId,
        title: Option<String>,
        parsed: &Parsed,
    ) -> Result<Drafts, ProcessError> {
        let title = title.or_else(|| parsed.title.clone());
        let pieces = self.chunker.chunk(title.as_deref(), &parsed.sections)?;
        if pieces.is_empty() {
            return Err(ParseError::Empty.into());
        }
        if pieces.len() > self.max_chunks {
            return Err(ProcessError::TooManyChunks { found: pieces.len(), limit: self.max_chunks });
        }
        // Keyed by the namespace, so that keys of different tenants cannot be compared.
        let hasher = NameHasher::new(namespace.0.as_bytes());
        let mut drafts = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let model_text = self.model_text(title.as_deref(), piece.heading.as_deref(), &piece.text)?;
            let (indices, values) = self.lexicon.document_terms(&model_text).into_iter().unzip();
            let mut mentions = Mentions::default();
            for mention in self.extractor.extract(title.as_deref(), piece.ordinal, &piece.text) {
                mentions.keys.push(hasher.key(&mention.key).0.cast_signed());
                mentions.names.push(mention.name);
                mentions.kinds.push(mention.kind.as_str().to_owned());
                mentions.counts.push(i16::try_from(mention.count).unwrap_or(i16::MAX));
            }
            let mut text_hash = [0; 16];
            text_hash.copy_from_slice(&Sha256::digest(model_text.as_bytes())[..16]);
            let chunk = NewChunk {
                chunk: ChunkId(self.ids.uuid()),
                ordinal: i32::try_from(piece.ordinal).unwrap_or(i32::MAX),
                heading: piece.heading,
                text: piece.text,
                tokens: i32::try_from(piece.tokens).unwrap_or(i32::MAX),
                text_hash,
                embedding: Vec::new(),
                terms: Terms { indices, values },
                mentions,
            };
            drafts.push(Draft { model_text, chunk });
        }
        Ok(Drafts { title, chunks: drafts })
    }

    /// What the model is shown of a chunk.
    fn model_text(
        &self,
        title: Option<&str>,
        heading: Option<&str>,
        text: &str,
    ) -> Result<String, ChunkError> {
        Ok(embedding_text(&self.chunker.lead(title, heading)?, text))
    }
}

#[async_trait]
impl Steps for Pipeline {
    async fn read(&self, task: &IngestTask, upload: UploadBytes<'_>) -> Result<Parsed, ProcessError> {
        if let Some(body) = &task.body {
            return Ok(parse_text(body));
        }
        task.upload.ok_or(ProcessError::UploadGone)?;
        let file_type = FileType::from_name(&task.file_name).ok_or(ParseError::Unsupported)?;
        let bytes = upload.await?.ok_or(ProcessError::UploadGone)?;
        Ok(self.parser.parse(file_type, bytes).await?)
    }

    /// Off the async threads, and when nobody waits for the processor.
    async fn analyse(
        &self,
        namespace: NamespaceId,
        title: Option<String>,
        parsed: Parsed,
    ) -> Result<Drafts, ProcessError> {
        let pipeline = self.clone();
        in_background(move || pipeline.analyse_now(namespace, title, &parsed))
            .await
            .map_err(|_| ProcessError::Analysis)?
    }

    async fn embed(
        &self,
        tenant: TenantId,
        drafts: &mut [&mut Draft],
        known: &HashMap<[u8; 16], Vec<f32>>,
    ) -> Result<Vec<(usize, EmbedderError)>, ProcessError> {
        let mut missing = Vec::new();
        for (at, draft) in drafts.iter_mut().enumerate() {
            match known.get(&draft.chunk.text_hash) {
                Some(vector) => draft.chunk.embedding.clone_from(vector),
                None => missing.push(at),
            }
        }
        let texts = missing.iter().map(|at| drafts[*at].model_text.clone()).collect();
        let vectors = self.embedder.embed_documents(tenant, texts).await?;
        let mut failed = Vec::new();
        for (at, vector) in std::iter::zip(missing, vectors) {
            match vector {
                Ok(vector) => drafts[at].chunk.embedding = vector,
                Err(error) => failed.push((at, error)),
            }
        }
        Ok(failed)
    }

    async fn embed_again(
        &self,
        tenant: TenantId,
        chunks: &[(Option<&str>, Option<&str>, &str)],
    ) -> Result<Vec<Vec<f32>>, ProcessError> {
        let texts = chunks.iter().map(|(title, heading, text)| self.model_text(*title, *heading, text));
        let texts = texts.collect::<Result<_, _>>()?;
        Ok(self.embedder.embed_documents(tenant, texts).await?.into_iter().collect::<Result<_, _>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_document_itself_causes_is_tried_twice_at_most_and_an_outage_does_not_count() {
        let away = |backend| StoreError::new(ErrorKind::Unavailable, backend, "test", "away");
        let damaged = StoreError::new(ErrorKind::Internal, "postgres", "test", "the statement failed");
        let source = || std::io::Error::other("no process");
        let lacking = |number| {
            StoreError::new(ErrorKind::Unavailable, "uploads", "test", "away")
                .with_source(std::io::Error::from_raw_os_error(number))
        };
        let table: [(ProcessError, Option<i32>); 14] = [
            (ParseError::Worker { source: std::io::Error::from_raw_os_error(24) }.into(), None),
            (lacking(28).into(), None),
            (lacking(5).into(), Some(5)),
            (ParseError::Empty.into(), Some(1)),
            (ParseError::TooSlow { seconds: 1 }.into(), Some(1)),
            (ParseError::OutOfMemory { limit_bytes: 1 }.into(), Some(1)),
            (ParseError::Timeout { seconds: 1 }.into(), Some(2)),
            (ParseError::Crashed { signal: None }.into(), Some(2)),
            (ParseError::Worker { source: source() }.into(), Some(5)),
            (ProcessError::UploadGone, Some(1)),
            (ProcessError::Analysis, Some(2)),
            (away("uploads").into(), Some(5)),
            (damaged.into(), Some(5)),
            (away("postgres").into(), None),
        ];
        for (error, most) in table {
            assert_eq!(error.attempts().bound(5), most, "{error:?}");
            assert!(error.attempts().bound(1).is_none_or(|most| most == 1), "{error:?}");
        }
    }
}
