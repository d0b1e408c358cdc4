//! Sessions of the embedding model: for questions, for questions of busy tenants, and for documents, the latter two on
//! threads of lower priority.

mod lane;
mod questions;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use fastembed::TextEmbedding;
use parking_lot::Mutex;
use tokenizers::Tokenizer;

use super::fastembed_model::{ModelFiles, named};
use super::hashing;
use super::vector_cache::VectorCache;
use crate::domain::ids::{ModelId, TenantId};
use crate::inference::priority::Priority;
use lane::Lane;
use questions::Questions;

/// Which model, and how it runs.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingSettings {
    /// `all-MiniLM-L6-v2` from `model_dir`, `hashing` (`hashing-64`: of 64 dimensions), or a name that fastembed
    /// knows and fetches.
    pub model: String,
    /// Further models, for namespaces that were made with them or are to be embedded by them.
    #[serde(default)]
    pub further: Vec<String>,
    /// Folder of the models that were set up.
    pub model_dir: PathBuf,
    /// Folder for models that fastembed fetches.
    pub cache_dir: PathBuf,
    /// ONNX Runtime's library.
    pub onnxruntime: PathBuf,
    /// Longest text in tokens, special ones included.
    pub max_tokens: usize,
    /// Sequences in a run, at most.
    pub batch: usize,
    /// Threads of a session; 0: one for each processor.
    pub threads: usize,
    /// Whether a session's threads spin while they wait: faster alone, slower beside others.
    pub spinning: bool,
    /// Questions and batches that may wait before callers are refused.
    pub queue: usize,
    /// Folder in which vectors are kept by the hash of their text. Not configured: it is for measurements, which
    /// embed the same set again and again.
    #[serde(skip)]
    pub vector_cache: Option<PathBuf>,
}

/// A text's vector, `[dimension]`, or why it has none.
pub type Embedded = Result<Vec<f32>, EmbedderError>;

/// Why there is no vector.
#[derive(Debug, thiserror::Error)]
pub enum EmbedderError {
    /// A model's file cannot be read.
    #[error("cannot read {path}; `make setup` brings it: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// fastembed knows no such model.
    #[error("no model of this name is known: {0}")]
    Unknown(String),
    /// ONNX Runtime cannot be loaded.
    #[error("ONNX Runtime cannot be loaded: {0}")]
    Runtime(String),
    /// The model failed.
    #[error("the embedding model failed: {0}")]
    Model(String),
    /// Its files are another model's since the server began.
    #[error("the model's files were replaced since the server began")]
    Replaced,
    /// More waits than may wait.
    #[error("too much waits for the embedding model")]
    Busy,
    /// The model's thread has ended.
    #[error("the embedding model has stopped")]
    Stopped,
}

/// What is known of the model.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// Its name.
    pub name: String,
    /// Its identity: a hash of weights, tokenizer, pooling and maximum length.
    pub id: ModelId,
    /// Length of its vectors.
    pub dimension: usize,
    /// Longest text in tokens, special ones included.
    pub max_tokens: usize,
}

/// What one of a model's sessions has done since the start, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionCounts {
    /// `questions`, `busy_tenants` (their questions) or `documents`.
    pub session: &'static str,
    /// Texts embedded.
    pub texts: u64,
    /// Time that the model ran, microseconds.
    pub busy_us: u64,
    /// Batches that wait.
    pub waiting: u64,
}

/// The embedding model. Vectors have unit length.
#[derive(Clone)]
pub struct Embedder {
    info: Arc<ModelInfo>,
    tokenizer: Arc<Tokenizer>,
    questions: Arc<Questions>,
    documents: Lane,
    batch: usize,
}

impl Embedder {
    /// The identity of the model that [`Embedder::load`] would load.
    ///
    /// # Errors
    /// As there.
    pub fn identify(settings: &EmbeddingSettings) -> Result<ModelId, EmbedderError> {
        let identity = Source::open(settings)?.identity(settings);
        ModelId::parse(&identity).map_err(|error| EmbedderError::Model(error.to_string()))
    }

    /// Loads the model for questions and for documents, and starts its threads. Blocks for about a second.
    ///
    /// # Errors
    /// [`EmbedderError::File`], `Unknown`, `Runtime` or `Model`, each naming what to do.
    pub fn load(settings: &EmbeddingSettings) -> Result<Self, EmbedderError> {
        let source = Source::open(settings)?;
        let threads = match settings.threads {
            0 => thread::available_parallelism().map_or(1, std::num::NonZero::get),
            threads => threads,
        };
        let identity = source.identity(settings);
        let questions = Questions::start(&source, settings, threads, identity.clone())?;
        let documents =
            Lane::start("embed-documents", &source, settings, threads, Priority::Last, |_, _| ())?;
        let mut tokenizer = source.tokenizer()?;
        tokenizer.with_padding(None);
        let truncated = tokenizer.with_truncation(None);
        truncated.map_err(|error| EmbedderError::Model(error.to_string()))?;
        let info = ModelInfo {
            name: settings.model.clone(),
            id: ModelId::parse(&identity).map_err(|error| EmbedderError::Model(error.to_string()))?,
            dimension: questions.dimension(),
            max_tokens: settings.max_tokens,
        };
        Ok(Self {
            info: Arc::new(info),
            tokenizer: Arc::new(tokenizer),
            questions,
            documents,
            batch: settings.batch.max(1),
        })
    }

    /// What is known of the model.
    #[must_use]
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// What its sessions have done.
    pub fn counts(&self) -> impl Iterator<Item = SessionCounts> {
        self.lanes().map(|(session, lane)| SessionCounts {
            session,
            texts: lane.counters.texts.load(Ordering::Relaxed),
            busy_us: lane.counters.busy_us.load(Ordering::Relaxed),
            waiting: lane.shared.0.lock().count as u64,
        })
    }

    /// Whether all of its threads run.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.lanes().all(|(_, lane)| !lane.thread.is_finished())
    }

    fn lanes(&self) -> impl Iterator<Item = (&'static str, &Lane)> {
        self.questions.lanes().chain([("documents", &self.documents)])
    }

    /// The model's own tokenizer, neither truncating nor padding.
    #[must_use]
    pub fn tokenizer(&self) -> Arc<Tokenizer> {
        Arc::clone(&self.tokenizer)
    }

    /// The vectors of a question or of a few sentences, while somebody waits. `[texts][dimension]`
    ///
    /// # Errors
    /// [`EmbedderError::Busy`], `Stopped`, or `Model` when it fails on one of them.
    #[tracing::instrument(name = "inference.embed_question", skip_all, fields(%tenant))]
    pub async fn embed_question(
        &self,
        tenant: TenantId,
        texts: Vec<String>,
    ) -> Result<Vec<Vec<f32>>, EmbedderError> {
        self.questions.run(tenant, texts).await?.into_iter().collect()
    }

    /// The vectors of documents' chunks, in batches that take turns with other tenants'. `[texts][dimension]`
    ///
    /// Texts of like length go together, since a batch is padded to its longest. One that the model fails on has
    /// the error `Model` in its place, and the others have their vectors.
    ///
    /// # Errors
    /// [`EmbedderError::Stopped`].
    #[tracing::instrument(name = "inference.embed_documents", skip_all, fields(%tenant))]
    pub async fn embed_documents(
        &self,
        tenant: TenantId,
        texts: Vec<String>,
    ) -> Result<Vec<Embedded>, EmbedderError> {
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|at| texts[*at].len());
        let mut texts: Vec<Option<String>> = texts.into_iter().map(Some).collect();
        let mut vectors: Vec<Embedded> = texts.iter().map(|_| Err(EmbedderError::Stopped)).collect();
        let mut running = Vec::new();
        for places in order.chunks(self.batch) {
            let batch = places.iter().filter_map(|at| texts[*at].take()).collect();
            running.push((places, self.documents.submit(tenant, batch)));
        }
        for (places, reply) in running {
            let batch = reply.await.map_err(|_| EmbedderError::Stopped)?;
            for (at, vector) in std::iter::zip(places, batch) {
                vectors[*at] = vector;
            }
        }
        Ok(vectors)
    }
}

/// Where a model comes from.
enum Source {
    Folder(ModelFiles),
    Named(String),
    Hashing(ModelFiles, usize),
}

impl Source {
    fn open(settings: &EmbeddingSettings) -> Result<Self, EmbedderError> {
        let folder = settings.model_dir.join(&settings.model);
        if let Some(dimension) = hashing::dimension(&settings.model) {
            // The chunker still wants a tokenizer.
            let files = ModelFiles::read(&settings.model_dir.join("all-MiniLM-L6-v2"))?;
            return Ok(Self::Hashing(files, dimension));
        }
        load_runtime(&settings.onnxruntime)?;
        if folder.join("model.onnx").exists() || settings.model == "all-MiniLM-L6-v2" {
            Ok(Self::Folder(ModelFiles::read(&folder)?))
        } else {
            Ok(Self::Named(settings.model.clone()))
        }
    }

    fn identity(&self, settings: &EmbeddingSettings) -> String {
        match self {
            Self::Folder(files) => files.identity(settings.max_tokens),
            Self::Hashing(_, dimension) => hashing::identity(*dimension),
            Self::Named(name) => {
                use sha2::Digest;
                let text = format!("{name} {}", settings.max_tokens);
                hex::encode(&sha2::Sha256::digest(text.as_bytes())[..8])
            }
        }
    }

    fn session(&self, settings: &EmbeddingSettings, threads: usize) -> Result<Model, EmbedderError> {
        Ok(match self {
            Self::Folder(files) => Model::Onnx(Box::new(files.session(settings, threads)?)),
            Self::Named(name) => Model::Onnx(Box::new(named(name, settings, threads)?)),
            Self::Hashing(_, dimension) => Model::Hashing(*dimension),
        })
    }

    fn tokenizer(&self) -> Result<Tokenizer, EmbedderError> {
        match self {
            Self::Folder(files) | Self::Hashing(files, _) => Tokenizer::from_bytes(files.tokenizer())
                .map_err(|error| EmbedderError::Model(error.to_string())),
            Self::Named(name) => Err(EmbedderError::Unknown(name.clone())),
        }
    }
}

/// ONNX Runtime is loaded once for the process.
fn load_runtime(library: &Path) -> Result<(), EmbedderError> {
    static LOADED: Mutex<bool> = Mutex::new(false);
    let mut loaded = LOADED.lock();
    if !*loaded {
        if !library.exists() {
            return Err(EmbedderError::Runtime(format!(
                "{} is missing; run `make setup`",
                library.display()
            )));
        }
        // Loading is what is wanted; each session makes its environment with its own defaults.
        drop(ort::init_from(library).map_err(|error| EmbedderError::Runtime(error.to_string()))?);
        *loaded = true;
    }
    Ok(())
}

enum Model {
    Onnx(Box<TextEmbedding>),
    Hashing(usize),
    Remembering(Box<Model>, VectorCache),
}

impl Model {
    /// Each text's own vector. When the model fails on a run it is shown each text alone, so that nobody's text
    /// costs another its vector.
    fn embed_each(&mut self, texts: &[String]) -> Vec<Embedded> {
        match self.embed(texts) {
            Ok(vectors) => vectors.into_iter().map(whole).collect(),
            Err(error) if texts.len() == 1 => vec![Err(error)],
            Err(_) => texts.iter().flat_map(|text| self.embed_each(std::slice::from_ref(text))).collect(),
        }
    }

    /// The vectors of all of these texts, in their order.
    fn embed(&mut self, texts: &[String]) -> Result<Vec<Vec<f32>>, EmbedderError> {
        #[cfg(feature = "laboratory")]
        if texts.iter().any(|text| text.contains(super::FAULTY)) {
            return Err(EmbedderError::Model("a fault that was ordered".to_owned()));
        }
        let vectors = self.run(texts)?;
        if vectors.len() == texts.len() {
            Ok(vectors)
        } else {
            Err(EmbedderError::Model(format!("{} vectors for {} texts", vectors.len(), texts.len())))
        }
    }

    fn run(&mut self, texts: &[String]) -> Result<Vec<Vec<f32>>, EmbedderError> {
        match self {
            Self::Onnx(model) => model
                .embed(texts, Some(texts.len().max(1)))
                .map_err(|error| EmbedderError::Model(error.to_string())),
            Self::Hashing(dimension) => {
                Ok(texts.iter().map(|text| hashing::embed(text, *dimension)).collect())
            }
            Self::Remembering(model, cache) => cache.through(texts, |texts| model.embed(texts)),
        }
    }
}

/// A vector as it can be kept: the database refuses one with a component that is no number, and all that come with it.
fn whole(vector: Vec<f32>) -> Embedded {
    if vector.iter().all(|x| x.is_finite()) {
        Ok(vector)
    } else {
        Err(EmbedderError::Model("a vector with a component that is no number".to_owned()))
    }
}

/// The model by itself, without queue and turns: what measurements compare with.
pub struct RawModel(Model);

impl RawModel {
    /// Loads the model once. Blocks for about half a second.
    ///
    /// # Errors
    /// As [`Embedder::load`].
    pub fn load(settings: &EmbeddingSettings) -> Result<Self, EmbedderError> {
        let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Self(Source::open(settings)?.session(settings, threads)?))
    }

    /// The vectors of texts, in runs of `batch`. Blocks. `[texts][dimension]`
    ///
    /// # Errors
    /// [`EmbedderError::Model`].
    pub fn embed(&mut self, texts: &[String], batch: usize) -> Result<Vec<Vec<f32>>, EmbedderError> {
        match &mut self.0 {
            Model::Onnx(model) => {
                model.embed(texts, Some(batch)).map_err(|error| EmbedderError::Model(error.to_string()))
            }
            other => other.embed(texts),
        }
    }
}
