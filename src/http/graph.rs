//! The graph to look at: parts of it, the names in it, and whether it has a name.
//!
//! What is unknown and what is somebody else's is an empty graph here, as LightRAG's clients expect it.

use actix_web::HttpResponse;
use actix_web::web::{self, Data, ServiceConfig};
use serde::{Deserialize, Serialize};

use super::extract::{ApiQuery, Namespace};
use super::identity::Caller;
use super::json::Faults;
use super::problem::Problem;
use super::query::SourceBody;
use super::state::App;
use crate::domain::audit::{AuditEntry, AuditKind, Decision};
use crate::retrieval::{Entity, GraphView, Relation, entity_keys};
use crate::store::Corpus;
use crate::store::postgres::labels::LabelOrder;
use crate::tenancy::{Permit, Read};

/// Longest name that is asked for, characters.
const MAX_NAME: usize = 512;

/// Which part of the graph.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(super) struct PartOfGraph {
    /// The name of an entity; `*`: the entities that most chunks mention.
    label: String,
    /// Relations between the entity and what is shown, at most.
    #[serde(default = "three")]
    #[param(minimum = 1, default = 3)]
    max_depth: i64,
    /// Entities, at most.
    #[serde(default = "thousand")]
    #[param(minimum = 1, default = 1000)]
    max_nodes: i64,
}

fn three() -> i64 {
    3
}

fn thousand() -> i64 {
    1000
}

/// A part of the graph.
#[derive(Debug, Default, Serialize, utoipa::ToSchema)]
pub(super) struct GraphBody {
    nodes: Vec<NodeBody>,
    edges: Vec<EdgeBody>,
    /// Whether there is more than was asked for.
    is_truncated: bool,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct NodeBody {
    /// The entity's name.
    id: String,
    /// The entity's name.
    labels: [String; 1],
    properties: NodeProperties,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct NodeProperties {
    entity_id: String,
    entity_type: String,
    /// A sentence that mentions it.
    description: String,
    /// Empty: nothing is left out.
    truncate: &'static str,
    #[serde(flatten)]
    source: SourceBody,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct EdgeBody {
    /// Both names, joined by `-`.
    id: String,
    /// `DIRECTED`, as clients expect it; relations have no direction.
    r#type: &'static str,
    source: String,
    target: String,
    properties: EdgeProperties,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct EdgeProperties {
    /// Chunks that mention both, times how much oftener than chance they meet.
    weight: f32,
    /// A sentence that mentions both.
    description: String,
    keywords: &'static str,
    /// Empty: nothing is left out.
    truncate: &'static str,
    #[serde(flatten)]
    source: SourceBody,
}

impl From<&Entity> for NodeBody {
    fn from(entity: &Entity) -> Self {
        Self {
            id: entity.name.clone(),
            labels: [entity.name.clone()],
            properties: NodeProperties {
                entity_id: entity.name.clone(),
                entity_type: entity.kind.clone(),
                description: entity.description.clone(),
                truncate: "",
                source: entity.into(),
            },
        }
    }
}

impl From<&Relation> for EdgeBody {
    fn from(relation: &Relation) -> Self {
        Self {
            id: format!("{}-{}", relation.source, relation.target),
            r#type: "DIRECTED",
            source: relation.source.clone(),
            target: relation.target.clone(),
            properties: EdgeProperties {
                weight: relation.weight,
                description: relation.description.clone(),
                keywords: "",
                truncate: "",
                source: relation.into(),
            },
        }
    }
}

impl From<GraphView> for GraphBody {
    fn from(view: GraphView) -> Self {
        Self {
            nodes: view.nodes.iter().map(NodeBody::from).collect(),
            edges: view.edges.iter().map(EdgeBody::from).collect(),
            is_truncated: view.truncated,
        }
    }
}

/// Who looks at the graph of which namespace.
struct Looking {
    app: Data<App>,
    caller: Caller,
    corpus: Option<Corpus>,
}

impl Looking {
    /// Opens the namespace. `default` exists before its first document; any other unknown one is not there.
    async fn open(
        app: Data<App>,
        permit: &Permit<Read>,
        caller: Caller,
        namespace: Namespace,
    ) -> Result<Self, Problem> {
        let corpus = app.stores.reader(permit).corpus_get(&namespace.0).await?;
        if corpus.is_none() && !(namespace.0.is_default() && permit.scope().reaches(&namespace.0)) {
            return Err(Problem::not_found());
        }
        Ok(Self { app, caller, corpus })
    }

    /// Writes down that it was looked at; `asked` is the name that was looked for.
    async fn audit(&self, action: &'static str, asked: &str) {
        let scope = self.caller.scope();
        let entry = AuditEntry::new(AuditKind::Query, action, Decision::Allowed)
            .of_query(self.app.audit.query_hash(scope, asked));
        self.app.audit.record(scope, entry).await;
    }

    async fn labels(
        &self,
        part: Option<&str>,
        order: LabelOrder,
        limit: i64,
    ) -> Result<HttpResponse, Problem> {
        self.audit("graph.label.list", part.unwrap_or_default()).await;
        let labels = match &self.corpus {
            Some(corpus) => corpus.label_list(part, order, limit).await?,
            None => Vec::new(),
        };
        Ok(HttpResponse::Ok().json(labels))
    }
}

fn size(number: i64) -> usize {
    usize::try_from(number).unwrap_or_default()
}

/// Shows the entities around one, or those that most chunks mention.
#[utoipa::path(get, path = "/graphs", tag = "graph", params(PartOfGraph), responses((status = 200, body = GraphBody)))]
#[tracing::instrument(name = "http.graph.get", skip_all)]
pub(super) async fn get(
    permit: Permit<Read>,
    caller: Caller,
    namespace: Namespace,
    part: ApiQuery<PartOfGraph>,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    let part = part.0;
    let mut faults = Faults::default();
    faults.text("label", &part.label, 1, MAX_NAME);
    faults.number("max_depth", part.max_depth, 1, i64::MAX);
    faults.number("max_nodes", part.max_nodes, 1, i64::MAX);
    faults.end()?;
    let looking = Looking::open(app, &permit, caller, namespace).await?;
    looking.audit("graph.get", &part.label).await;
    let Some(corpus) = &looking.corpus else { return Ok(HttpResponse::Ok().json(GraphBody::default())) };
    let nodes = size(part.max_nodes).min(looking.app.limits.max_graph_nodes);
    let view =
        looking.app.engine.neighbourhood(corpus, part.label.trim(), size(part.max_depth), nodes).await?;
    Ok(HttpResponse::Ok().json(GraphBody::from(view)))
}

/// Lists the names of all entities, in alphabetical order.
#[utoipa::path(get, path = "/graph/label/list", tag = "graph", responses((status = 200, body = Vec<String>)))]
#[tracing::instrument(name = "http.graph.label.list", skip_all)]
pub(super) async fn list(
    permit: Permit<Read>,
    caller: Caller,
    namespace: Namespace,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    let most = i64::try_from(app.limits.max_labels).unwrap_or(i64::MAX);
    Looking::open(app, &permit, caller, namespace).await?.labels(None, LabelOrder::Name, most).await
}

/// How many names.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(super) struct Most {
    /// Names, at most.
    #[serde(default = "three_hundred")]
    #[param(minimum = 1, maximum = 1000, default = 300)]
    limit: i64,
}

fn three_hundred() -> i64 {
    300
}

/// Lists the names of the entities that most chunks mention.
#[utoipa::path(
    get, path = "/graph/label/popular", tag = "graph", params(Most), responses((status = 200, body = Vec<String>)),
)]
#[tracing::instrument(name = "http.graph.label.popular", skip_all)]
pub(super) async fn popular(
    permit: Permit<Read>,
    caller: Caller,
    namespace: Namespace,
    most: ApiQuery<Most>,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    let mut faults = Faults::default();
    faults.number("limit", most.0.limit, 1, 1000);
    faults.end()?;
    let looking = Looking::open(app, &permit, caller, namespace).await?;
    looking.labels(None, LabelOrder::Mentions, most.0.limit).await
}

/// Which names.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(super) struct Sought {
    /// A part of the name, whatever its case.
    q: String,
    /// Names, at most.
    #[serde(default = "fifty")]
    #[param(minimum = 1, maximum = 100, default = 50)]
    limit: i64,
}

fn fifty() -> i64 {
    50
}

/// Lists the names that hold a text, the most mentioned first.
#[utoipa::path(
    get, path = "/graph/label/search", tag = "graph", params(Sought), responses((status = 200, body = Vec<String>)),
)]
#[tracing::instrument(name = "http.graph.label.search", skip_all)]
pub(super) async fn search(
    permit: Permit<Read>,
    caller: Caller,
    namespace: Namespace,
    sought: ApiQuery<Sought>,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    let mut faults = Faults::default();
    faults.text("q", &sought.0.q, 0, MAX_NAME);
    faults.number("limit", sought.0.limit, 1, 100);
    faults.end()?;
    let looking = Looking::open(app, &permit, caller, namespace).await?;
    looking.labels(Some(sought.0.q.trim()), LabelOrder::Mentions, sought.0.limit).await
}

/// Which entity.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(super) struct Named {
    /// Its name, whatever its case.
    name: String,
}

/// Whether there is an entity.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Exists {
    exists: bool,
}

/// Tells whether a document mentions an entity of this name.
#[utoipa::path(
    get, path = "/graph/entity/exists", tag = "graph", params(Named), responses((status = 200, body = Exists)),
)]
#[tracing::instrument(name = "http.graph.entity.exists", skip_all)]
pub(super) async fn exists(
    permit: Permit<Read>,
    caller: Caller,
    namespace: Namespace,
    named: ApiQuery<Named>,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    let mut faults = Faults::default();
    faults.text("name", &named.0.name, 1, MAX_NAME);
    faults.end()?;
    let looking = Looking::open(app, &permit, caller, namespace).await?;
    looking.audit("graph.entity.exists", &named.0.name).await;
    let exists = match &looking.corpus {
        Some(corpus) => {
            let keys: Vec<i64> =
                entity_keys(corpus, &named.0.name).into_iter().map(u64::cast_signed).collect();
            corpus.entity_exists(&keys).await?
        }
        None => false,
    };
    Ok(HttpResponse::Ok().json(Exists { exists }))
}

pub(super) fn routes(config: &mut ServiceConfig) {
    config
        .service(web::resource("/graphs").route(web::get().to(get)))
        .service(web::resource("/graph/label/list").route(web::get().to(list)))
        .service(web::resource("/graph/label/popular").route(web::get().to(popular)))
        .service(web::resource("/graph/label/search").route(web::get().to(search)))
        .service(web::resource("/graph/entity/exists").route(web::get().to(exists)));
}
