//! A question on its way to an answer: found, audited, answered. The same way for every surface.
//!
//! **Invariant:** every question that was let in is in the audit log with what it returned, whatever surface it
//! came through; its text is there as a keyed hash alone.
//! **Invariant:** what is found is found anew for each question, whatever is kept of earlier ones.
//! **Invariant:** an answer is not finished for a caller whose credential ended meanwhile.

use std::future::Future;
use std::pin::Pin;

use actix_web::web::Data;
use futures::{Stream, StreamExt};
use tokio::sync::OnceCell;

use super::request::{Asked, Output};
use crate::domain::audit::{AuditEntry, AuditKind, Decision};
use crate::domain::ids::NamespaceName;
use crate::domain::query::Mode;
use crate::http::identity::Caller;
use crate::http::problem::{Kind, Problem};
use crate::http::state::App;
use crate::http::turns::Turn;
use crate::http::watch::while_valid;
use crate::inference::{LanguageModel, Message};
use crate::retrieval::answer::{NOTHING_FOUND, context, prompt};
use crate::retrieval::{Answer, Material, Stage};
use crate::store::{Caches, TenantReader};
use crate::telemetry::metrics::Outcome;
use crate::tenancy::{Permit, Read};

/// Characters of a token, on the average; for budgets and counts that need no exact number.
const CHARACTERS_PER_TOKEN: usize = 4;

/// About how many tokens a text has.
pub(crate) fn estimated_tokens(text: &str) -> usize {
    text.chars().count().div_ceil(CHARACTERS_PER_TOKEN)
}

/// A question and who asks it. Owned, so that a stream can carry it.
pub(crate) struct Asking {
    pub(crate) app: Data<App>,
    pub(crate) caller: Caller,
    reader: TenantReader,
    namespace: NamespaceName,
    pub(crate) asked: Asked,
    action: &'static str,
    /// Held until the question is answered, or its stream ended.
    turn: OnceCell<Turn>,
}

/// What was found for a question.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The material, within its budgets.
    pub(crate) material: Material,
    /// Entities before their budget.
    pub(crate) all_entities: usize,
    /// Relations before their budget.
    pub(crate) all_relations: usize,
}

/// An answer, whole or as it is written.
pub(crate) enum Reply {
    Whole(Answer),
    Pieces(Pieces),
}

/// A language model's answer as it comes.
pub(crate) type Pieces = Pin<Box<dyn Stream<Item = Result<String, Problem>>>>;

impl Asking {
    /// A question of this caller; `action` is its name in the audit log.
    pub(crate) fn new(
        app: Data<App>,
        permit: &Permit<Read>,
        caller: Caller,
        namespace: NamespaceName,
        asked: Asked,
        action: &'static str,
    ) -> Self {
        let reader = app.stores.reader(permit);
        Self { app, caller, reader, namespace, asked, action, turn: OnceCell::new() }
    }

    /// What keeps things that were computed.
    pub(super) fn caches(&self) -> &Caches {
        self.reader.caches()
    }

    /// Waits for the tenant's turn to have another question answered.
    pub(crate) async fn wait_for_turn(&self) -> Result<(), Problem> {
        let turn = || async { self.app.turn(self.caller.scope()).await.ok_or_else(too_many) };
        self.turn.get_or_try_init(turn).await.map(drop)
    }

    /// Finds the material. `default` exists before its first document; any other unknown namespace is not there.
    pub(crate) async fn find(&self) -> Result<Found, Problem> {
        self.find_telling(&|_| ()).await
    }

    /// The same, and `begun` is told of each stage as it begins.
    pub(crate) async fn find_telling(&self, begun: &(dyn Fn(Stage) + Sync)) -> Result<Found, Problem> {
        let asked = self.app.clock.instant();
        let found = self.find_counted(begun).await;
        let outcome = if found.is_ok() { Outcome::Found } else { Outcome::Failed };
        let took = self.app.clock.instant().saturating_duration_since(asked);
        self.app.metrics.question(self.asked.question.mode.name(), outcome, took);
        found
    }

    async fn find_counted(&self, begun: &(dyn Fn(Stage) + Sync)) -> Result<Found, Problem> {
        self.wait_for_turn().await?;
        match self.retrieve(begun).await {
            Ok(material) => {
                let metadata = &material.metadata;
                self.app.metrics.degraded(&metadata.degraded, metadata.stale);
                let dropped = metadata.stale + metadata.foreign;
                let entry = self
                    .entry(Decision::Allowed)
                    .with_ids(material.chunks.iter().map(|chunk| chunk.row.chunk.to_string()))
                    .dropping(dropped as u64);
                self.app.audit.record(self.caller.scope(), entry).await;
                if metadata.foreign > 0 {
                    self.alarm(metadata.foreign).await;
                }
                Ok(self.within_budget(material))
            }
            Err(problem) => Err(self.failed(problem).await),
        }
    }

    /// Whether a question can be answered at all, for an answer that begins before anything is looked for: its status
    /// is sent then, and a tenant over its limit must not be told 200.
    pub(crate) async fn require_answerable(&self) -> Result<(), Problem> {
        self.wait_for_turn().await?;
        match self.require_namespace().await {
            Ok(()) => Ok(()),
            Err(problem) => Err(self.failed(problem).await),
        }
    }

    fn entry(&self, decision: Decision) -> AuditEntry {
        AuditEntry::new(AuditKind::Query, self.action, decision)
            .of_query(self.app.audit.query_hash(self.caller.scope(), &self.asked.text))
    }

    /// A question that came to nothing, which the audit log knows from here on.
    async fn failed(&self, problem: Problem) -> Problem {
        let entry = self.entry(Decision::Failed).because(problem.kind().slug());
        self.app.audit.record(self.caller.scope(), entry).await;
        problem
    }

    async fn retrieve(&self, begun: &(dyn Fn(Stage) + Sync)) -> Result<Material, Problem> {
        if self.asked.question.mode == Mode::Bypass {
            self.require_namespace().await?;
            return Ok(Material::default());
        }
        let question = &self.asked.question;
        let found = self.app.engine.retrieve_telling(&self.reader, &self.namespace, question, begun).await?;
        found.or_else(|| self.empty().then(Material::default)).ok_or_else(Problem::not_found)
    }

    /// Whether the namespace is one that exists before its first document.
    fn empty(&self) -> bool {
        self.namespace.is_default() && self.caller.scope().reaches(&self.namespace)
    }

    /// The namespace is there, where nothing in it is looked at.
    pub(crate) async fn require_namespace(&self) -> Result<(), Problem> {
        if self.empty() || self.reader.corpus_get(&self.namespace).await?.is_some() {
            return Ok(());
        }
        Err(Problem::not_found())
    }

    /// Foreign rows were taken out, as configured: the answer goes on, the alarm is raised all the same.
    async fn alarm(&self, rows: usize) {
        let entry = AuditEntry::new(AuditKind::Alarm, self.action, Decision::Allowed)
            .because("foreign rows were dropped")
            .dropping(rows as u64);
        if let Err(error) = self.app.audit.record_alarm(self.caller.scope(), entry).await {
            tracing::error!(error = &error as &dyn std::error::Error, "an alarm is not in the audit log");
        }
    }

    fn within_budget(&self, mut material: Material) -> Found {
        let (all_entities, all_relations) = (material.entities.len(), material.relations.len());
        let fit = |tokens: &mut dyn Iterator<Item = usize>, most: usize| {
            let mut used = 0;
            tokens
                .take_while(|tokens| {
                    used += tokens;
                    used <= most
                })
                .count()
        };
        let mut entities = material
            .entities
            .iter()
            .map(|entity| estimated_tokens(&entity.name) + estimated_tokens(&entity.description));
        let kept = fit(&mut entities, self.asked.max_entity_tokens);
        material.entities.truncate(kept);
        let mut relations = material.relations.iter().map(|relation| {
            let names = estimated_tokens(&relation.source) + estimated_tokens(&relation.target);
            names + estimated_tokens(&relation.description)
        });
        let kept = fit(&mut relations, self.asked.max_relation_tokens);
        material.relations.truncate(kept);
        Found { material, all_entities, all_relations }
    }

    /// The conversation that a language model would answer.
    pub(crate) fn prompt(&self, material: &Material) -> Vec<Message> {
        let asked = &self.asked;
        let (wish, form) = (asked.user_prompt.as_deref(), asked.response_type.as_deref());
        if asked.question.mode != Mode::Bypass {
            return prompt(&asked.text, material, &asked.history, wish, form);
        }
        let message =
            |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
        let mut messages: Vec<Message> = wish.map(|wish| message("system", wish)).into_iter().collect();
        messages.extend_from_slice(&asked.history);
        messages.push(message("user", &asked.text));
        messages
    }

    /// The answer: by the language model where there is one, in pieces if they are wanted; otherwise quoted.
    pub(crate) async fn reply(&self, found: &Found, pieces: bool) -> Result<Reply, Problem> {
        let material = &found.material;
        let whole = |text: String| Ok(Reply::Whole(Answer::quoted(text)));
        match self.asked.output {
            Output::Context => return whole(context(material)),
            Output::Prompt => return whole(written(&self.prompt(material))),
            Output::Answer => {}
        }
        let bypass = self.asked.question.mode == Mode::Bypass;
        if !bypass && material.chunks.is_empty() {
            return whole(NOTHING_FOUND.to_owned());
        }
        match &self.app.language_model {
            Some(model) => self.written(model, material, pieces).await,
            None if bypass => Err(Problem::new(Kind::NoLanguageModel)),
            None => {
                let answer = self.app.engine.quote(&self.reader, &self.asked.text, material).await?;
                Ok(Reply::Whole(answer))
            }
        }
    }

    /// Runs to its end, unless the caller's credential ends before.
    pub(crate) async fn while_valid<T>(
        &self,
        work: impl Future<Output = Result<T, Problem>>,
    ) -> Result<T, Problem> {
        while_valid(&self.app, &self.caller, work).await
    }
}

fn too_many() -> Problem {
    Problem::new(Kind::RateLimited)
        .saying("Too many of this tenant's questions are being answered.")
        .at_limit("queries")
}

/// What a language model answers.
pub(crate) async fn generate(
    model: &LanguageModel,
    messages: &[Message],
    pieces: bool,
) -> Result<Reply, Problem> {
    if pieces {
        let pieces = model.stream(messages).await?;
        return Ok(Reply::Pieces(Box::pin(pieces.map(|piece| piece.map_err(Problem::from)))));
    }
    let text = model.complete(messages).await?.text;
    Ok(Reply::Whole(Answer { text, llm_generated: true, cached: false }))
}

/// A conversation as text.
fn written(messages: &[Message]) -> String {
    let parts: Vec<String> =
        messages.iter().map(|message| format!("{}: {}", message.role, message.content)).collect();
    parts.join("\n\n")
}
