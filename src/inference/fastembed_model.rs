//! An ONNX model from a folder, or one that fastembed knows by name and fetches.

use std::path::Path;
use std::str::FromStr;

use fastembed::{
    EmbeddingModel, InitOptionsUserDefined, Pooling, TextEmbedding, TextInitOptions, TokenizerFiles,
    UserDefinedEmbeddingModel,
};
use sha2::{Digest, Sha256};

use super::embedder::{EmbedderError, EmbeddingSettings};

/// The files of a model, read once for both sessions.
pub(super) struct ModelFiles {
    onnx: Vec<u8>,
    tokenizer: TokenizerFiles,
}

impl ModelFiles {
    /// Reads the files of a model's folder.
    pub(super) fn read(folder: &Path) -> Result<Self, EmbedderError> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).map_err(|source| EmbedderError::File { path, source })
        };
        Ok(Self {
            onnx: read("model.onnx")?,
            tokenizer: TokenizerFiles {
                tokenizer_file: read("tokenizer.json")?,
                config_file: read("config.json")?,
                special_tokens_map_file: read("special_tokens_map.json")?,
                tokenizer_config_file: read("tokenizer_config.json")?,
            },
        })
    }

    /// A hash of weights, tokenizer, pooling and maximum length, 16 hexadecimal digits.
    pub(super) fn identity(&self, max_tokens: usize) -> String {
        let mut hash = Sha256::new();
        hash.update(&self.onnx);
        hash.update(&self.tokenizer.tokenizer_file);
        hash.update(b"mean");
        hash.update(max_tokens.to_le_bytes());
        hex::encode(&hash.finalize()[..8])
    }

    /// The tokenizer's own file.
    pub(super) fn tokenizer(&self) -> &[u8] {
        &self.tokenizer.tokenizer_file
    }

    /// A session on these files. Its threads have the priority of the thread that calls this.
    pub(super) fn session(
        &self,
        settings: &EmbeddingSettings,
        threads: usize,
    ) -> Result<TextEmbedding, EmbedderError> {
        let model = UserDefinedEmbeddingModel::new(self.onnx.clone(), self.tokenizer.clone())
            .with_pooling(Pooling::Mean);
        // Threads that spin while they wait take the processor from everybody else.
        let options = InitOptionsUserDefined::new()
            .with_max_length(settings.max_tokens)
            .with_intra_threads(threads)
            .with_session_config(
                "session.intra_op.allow_spinning",
                if settings.spinning { "1" } else { "0" },
            );
        TextEmbedding::try_new_from_user_defined(model, options)
            .map_err(|error| EmbedderError::Model(error.to_string()))
    }
}

/// Fetches a model that fastembed knows into its cache, and returns a session on it.
pub(super) fn named(
    name: &str,
    settings: &EmbeddingSettings,
    threads: usize,
) -> Result<TextEmbedding, EmbedderError> {
    let model = EmbeddingModel::from_str(name).map_err(|_| EmbedderError::Unknown(name.to_owned()))?;
    let options = TextInitOptions::new(model)
        .with_max_length(settings.max_tokens)
        .with_intra_threads(threads)
        .with_cache_dir(settings.cache_dir.clone())
        .with_show_download_progress(true);
    TextEmbedding::try_new(options).map_err(|error| EmbedderError::Model(error.to_string()))
}
