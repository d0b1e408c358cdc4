//! The models of a server: the one for new namespaces, and further ones for namespaces that were made with them.
//!
//! **Invariant:** a namespace's texts and questions are embedded by the namespace's own model or not at all.

use std::sync::Arc;

use super::embedder::{Embedder, EmbedderError, EmbeddingSettings};
use crate::domain::ids::ModelId;

/// The loaded models.
#[derive(Clone)]
pub struct Models {
    active: Embedder,
    further: Arc<[Embedder]>,
}

impl Models {
    /// Loads the configured models. Blocks for about a second each.
    ///
    /// # Errors
    /// As [`Embedder::load`].
    pub fn load(settings: &EmbeddingSettings) -> Result<Self, EmbedderError> {
        let further = settings.each_further().map(|one| Embedder::load(&one)).collect::<Result<_, _>>()?;
        Ok(Self { active: Embedder::load(settings)?, further })
    }

    /// The model of new namespaces.
    #[must_use]
    pub fn active(&self) -> &Embedder {
        &self.active
    }

    /// The model of this identity, if it is here.
    #[must_use]
    pub fn get(&self, id: &ModelId) -> Option<&Embedder> {
        self.all().find(|embedder| embedder.info().id == *id)
    }

    /// The one model, when there is no other.
    #[must_use]
    pub fn only(&self) -> Option<&Embedder> {
        self.further.is_empty().then_some(&self.active)
    }

    /// Every model, the active one first.
    pub fn all(&self) -> impl Iterator<Item = &Embedder> {
        std::iter::once(&self.active).chain(self.further.iter())
    }
}

impl From<Embedder> for Models {
    fn from(active: Embedder) -> Self {
        Self { active, further: Arc::default() }
    }
}

impl EmbeddingSettings {
    /// The settings of each further model.
    fn each_further(&self) -> impl Iterator<Item = Self> + '_ {
        let names = self.further.iter().filter(|name| **name != self.model);
        names.map(|name| Self { model: name.clone(), further: Vec::new(), ..self.clone() })
    }

    /// Names and identities of the further models, without loading them.
    ///
    /// # Errors
    /// As [`Embedder::identify`].
    pub fn identify_further(&self) -> Result<Vec<(String, ModelId)>, EmbedderError> {
        self.each_further().map(|one| Ok((one.model.clone(), Embedder::identify(&one)?))).collect()
    }
}
