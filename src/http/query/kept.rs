//! A language model's answer, kept for a while where the configuration says so.
//!
//! What is looked for is found anew for each question, is audited, and is shown as references. Kept is what the language
//! model made of it, under all that it was given: so an answer is used again only for a caller who was just given the
//! same texts, and whatever changes those changes the key.
//!
//! **Invariant:** an answer is kept under tenant, namespace, history, model, mode and the whole prompt.
//! **Invariant:** only whole answers are kept: none that a bound cut off, and none that came in pieces, of which nobody
//! here knows whether their end is the answer's.

use super::asking::{Asking, Reply, generate};
use crate::http::problem::Problem;
use crate::inference::{LanguageModel, Message};
use crate::retrieval::{Answer, Material};
use crate::store::{CacheKey, CacheKind, Looked, Made};

impl Asking {
    /// What a language model says to the material: what it said before, or what it says now.
    pub(super) async fn written(
        &self,
        model: &LanguageModel,
        material: &Material,
        pieces: bool,
    ) -> Result<Reply, Problem> {
        let prompt = self.prompt(material);
        let caches = self.caches();
        let Some(key) = self.key(model, material, &prompt) else {
            return generate(model, &prompt, pieces).await;
        };
        if pieces {
            return match caches.get(&key).await? {
                Looked::Hit(kept) => Ok(Reply::Whole(said(kept, true)?)),
                Looked::Miss | Looked::Off => generate(model, &prompt, pieces).await,
            };
        }
        let make = async {
            let answer = model.complete(&prompt).await?;
            Ok::<_, Problem>(Made::new(answer.text.into_bytes(), answer.finished))
        };
        let (answer, is_kept) = caches.get_or_make(&key, make).await?;
        Ok(Reply::Whole(said(answer, is_kept)?))
    }

    /// Under what the answer is kept; `None` when it is not: nothing is, the caller wants a new one, or it is not from
    /// documents.
    fn key(&self, model: &LanguageModel, material: &Material, prompt: &[Message]) -> Option<CacheKey> {
        let wanted = self.asked.cache && self.caches().keeps(CacheKind::Answer);
        let epoch = material.epoch.as_ref().filter(|_| wanted)?;
        let prompt = serde_json::to_vec(prompt).ok()?;
        let mode = self.asked.question.mode.name();
        let rest = [model.endpoint().as_bytes(), model.name().as_bytes(), mode.as_bytes(), &prompt];
        Some(CacheKey::answer(epoch, &rest))
    }
}

fn said(answer: Vec<u8>, cached: bool) -> Result<Answer, Problem> {
    let text = String::from_utf8(answer).map_err(|_| Problem::internal("an answer that is no text"))?;
    Ok(Answer { text, llm_generated: true, cached })
}
