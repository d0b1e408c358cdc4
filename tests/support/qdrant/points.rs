//! Points: written, deleted, read and searched.

use std::sync::{Arc, PoisonError};

use qdrant_client::qdrant::payload_index_params::IndexParams;
use qdrant_client::qdrant::points_selector::PointsSelectorOneOf;
use qdrant_client::qdrant::points_server::Points;
use qdrant_client::qdrant::{self as wire, PointsOperationResponse, query, vector_input};
use qdrant_edge::{
    ConditionalInsertOperation, CountRequest, CreateIndex, FieldIndexOperations, NamedQuery,
    PayloadFieldSchema, PayloadSchemaType, PointInsertOperations, PointOperations, QueryEnum, Record,
    ScoredPoint, ScrollRequest, SearchParams, SearchRequest, SparseVector, UpdateOperation, VectorInternal,
    WithPayloadInterface, WithVector,
};
use tonic::{Request, Response, Status};

use super::access::Needs;
use super::convert::{filter, id, point, wire_id, wire_payload};
use super::held::{Held, failed, unknown};
use super::{Shared, VERSION};

/// Runs what blocks beside the async threads.
async fn blocking<T: Send + 'static>(
    held: Arc<Held>,
    call: impl FnOnce(&Held) -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(move || call(&held)).await.map_err(failed)?
}

fn completed() -> Response<PointsOperationResponse> {
    let result = wire::UpdateResult { operation_id: None, status: wire::UpdateStatus::Completed.into() };
    Response::new(PointsOperationResponse { result: Some(result), time: 0.0, usage: None })
}

fn retrieved(record: &Record) -> wire::RetrievedPoint {
    wire::RetrievedPoint {
        id: Some(wire_id(&record.id)),
        payload: wire_payload(record.payload.as_ref()),
        ..wire::RetrievedPoint::default()
    }
}

fn scored(point: &ScoredPoint) -> wire::ScoredPoint {
    wire::ScoredPoint {
        id: Some(wire_id(&point.id)),
        payload: wire_payload(point.payload.as_ref()),
        score: point.score,
        version: point.version,
        ..wire::ScoredPoint::default()
    }
}

const WITH_PAYLOAD: Option<WithPayloadInterface> = Some(WithPayloadInterface::Bool(true));

/// One question of a batch.
fn ask(held: &Held, question: &wire::QueryPoints) -> Result<Vec<wire::ScoredPoint>, Status> {
    if !question.prefetch.is_empty() || question.lookup_from.is_some() {
        return Err(Status::unimplemented(VERSION));
    }
    let limit = usize::try_from(question.limit.unwrap_or(10)).map_err(failed)?;
    let filter = question.filter.as_ref().map(filter).transpose()?;
    let Some(asked) = &question.query else {
        let request = ScrollRequest {
            limit: Some(limit),
            filter,
            with_payload: WITH_PAYLOAD,
            with_vector: WithVector::Bool(false),
            ..ScrollRequest::default()
        };
        let (records, _) = held.shard.scroll(request).map_err(failed)?;
        let bare = |record: &Record| wire::ScoredPoint {
            id: Some(wire_id(&record.id)),
            payload: wire_payload(record.payload.as_ref()),
            ..wire::ScoredPoint::default()
        };
        return Ok(records.iter().map(bare).collect());
    };
    let Some(query::Variant::Nearest(wire::VectorInput { variant: Some(input) })) = &asked.variant else {
        return Err(Status::unimplemented(VERSION));
    };
    let vector = match input {
        vector_input::Variant::Dense(dense) => VectorInternal::Dense(dense.data.clone()),
        vector_input::Variant::Sparse(sparse) => {
            let sparse = SparseVector::new(sparse.indices.clone(), sparse.values.clone());
            VectorInternal::Sparse(sparse.map_err(failed)?)
        }
        _ => return Err(Status::unimplemented(VERSION)),
    };
    let using = question.using.clone().unwrap_or_default();
    let candidates = question.params.as_ref().and_then(|params| params.hnsw_ef);
    let candidates = candidates.map(usize::try_from).transpose().map_err(failed)?;
    let request = SearchRequest {
        query: QueryEnum::Nearest(NamedQuery::new(vector, using)),
        filter,
        params: candidates.map(|ef| SearchParams { hnsw_ef: Some(ef), ..Default::default() }),
        limit,
        offset: 0,
        with_payload: WITH_PAYLOAD,
        with_vector: None,
        score_threshold: None,
    };
    Ok(held.shard.search(request).map_err(failed)?.iter().map(scored).collect())
}

fn upsert(request: wire::UpsertPoints) -> Result<UpdateOperation, Status> {
    let points = request.points.into_iter().map(point).collect::<Result<Vec<_>, _>>()?;
    let points_op = PointInsertOperations::PointsList(points);
    let operation = match &request.update_filter {
        Some(condition) => PointOperations::UpsertPointsConditional(ConditionalInsertOperation {
            points_op,
            condition: filter(condition)?,
            update_mode: None,
        }),
        None => PointOperations::UpsertPoints(points_op),
    };
    Ok(UpdateOperation::PointOperation(operation))
}

fn deletion(request: &wire::DeletePoints) -> Result<UpdateOperation, Status> {
    let selector = request.points.as_ref().and_then(|points| points.points_selector_one_of.as_ref());
    let operation = match selector {
        Some(PointsSelectorOneOf::Filter(of)) => PointOperations::DeletePointsByFilter(filter(of)?),
        Some(PointsSelectorOneOf::Points(list)) => PointOperations::DeletePoints {
            ids: list.ids.iter().map(|one| id(Some(one))).collect::<Result<_, _>>()?,
        },
        None => return Err(Status::invalid_argument("Wrong input: no points")),
    };
    Ok(UpdateOperation::PointOperation(operation))
}

impl Shared {
    /// Makes a change of points, if and when the gate lets it through.
    async fn change(
        &self,
        collection: &str,
        change: UpdateOperation,
    ) -> Result<Response<PointsOperationResponse>, Status> {
        let (change, told) = self.gate.pass(collection, change).await;
        if let Some(change) = change {
            // Looked up now: the collection may have gone while this waited.
            let held = self.collection(collection)?;
            blocking(held, move |held| held.change(change)).await?;
        }
        told?;
        self.lag().await;
        Ok(completed())
    }
}

/// Whether points are to be laid out by this field. A shard here is laid out as ever.
fn tells_tenants_apart(request: &wire::CreateFieldIndexCollection) -> bool {
    let params = request.field_index_params.as_ref().and_then(|params| params.index_params.as_ref());
    matches!(params, Some(IndexParams::UuidIndexParams(params)) if params.is_tenant == Some(true))
}

#[tonic::async_trait]
impl Points for Shared {
    async fn upsert(
        &self,
        request: Request<wire::UpsertPoints>,
    ) -> Result<Response<PointsOperationResponse>, Status> {
        self.check(&request, "upsert", Needs::Write(&request.get_ref().collection_name))?;
        let name = request.get_ref().collection_name.clone();
        self.change(&name, upsert(request.into_inner())?).await
    }

    async fn delete(
        &self,
        request: Request<wire::DeletePoints>,
    ) -> Result<Response<PointsOperationResponse>, Status> {
        self.check(&request, "delete points", Needs::Write(&request.get_ref().collection_name))?;
        let operation = deletion(request.get_ref())?;
        self.change(&request.get_ref().collection_name, operation).await
    }

    async fn create_field_index(
        &self,
        request: Request<wire::CreateFieldIndexCollection>,
    ) -> Result<Response<PointsOperationResponse>, Status> {
        self.check(&request, "create field index", Needs::Write(&request.get_ref().collection_name))?;
        let held = self.collection(&request.get_ref().collection_name)?;
        let request = request.into_inner();
        let kind = match request.field_type() {
            wire::FieldType::Uuid => PayloadSchemaType::Uuid,
            wire::FieldType::Integer => PayloadSchemaType::Integer,
            wire::FieldType::Keyword => PayloadSchemaType::Keyword,
            _ => return Err(Status::unimplemented(VERSION)),
        };
        if tells_tenants_apart(&request) {
            let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
            made.entry(request.collection_name.clone()).and_modify(|(_, fields)| {
                if !fields.contains(&request.field_name) {
                    fields.push(request.field_name.clone());
                }
            });
        }
        let field_name =
            request.field_name.parse().map_err(|()| Status::invalid_argument("Wrong input: a field"))?;
        let field_schema = Some(PayloadFieldSchema::FieldType(kind));
        let index = FieldIndexOperations::CreateIndex(CreateIndex { field_name, field_schema });
        blocking(held, move |held| held.change(UpdateOperation::FieldIndexOperation(index))).await?;
        Ok(completed())
    }

    async fn get(&self, request: Request<wire::GetPoints>) -> Result<Response<wire::GetResponse>, Status> {
        self.check(&request, "get", Needs::Read(&request.get_ref().collection_name))?;
        let held = self.collection(&request.get_ref().collection_name)?;
        let ids = request.get_ref().ids.iter().map(|one| id(Some(one))).collect::<Result<Vec<_>, _>>()?;
        let records = blocking(held, move |held| {
            held.shard.retrieve(&ids, WITH_PAYLOAD, Some(WithVector::Bool(false))).map_err(failed)
        });
        let result = records.await?.iter().map(retrieved).collect();
        Ok(Response::new(wire::GetResponse { result, time: 0.0, usage: None }))
    }

    async fn scroll(
        &self,
        request: Request<wire::ScrollPoints>,
    ) -> Result<Response<wire::ScrollResponse>, Status> {
        self.check(&request, "scroll", Needs::Read(&request.get_ref().collection_name))?;
        let held = self.collection(&request.get_ref().collection_name)?;
        let request = request.into_inner();
        let page = ScrollRequest {
            offset: request.offset.as_ref().map(|offset| id(Some(offset))).transpose()?,
            limit: request.limit.map(usize::try_from).transpose().map_err(failed)?,
            filter: request.filter.as_ref().map(filter).transpose()?,
            with_payload: WITH_PAYLOAD,
            with_vector: WithVector::Bool(false),
            order_by: None,
        };
        let (records, next) = blocking(held, move |held| held.shard.scroll(page).map_err(failed)).await?;
        Ok(Response::new(wire::ScrollResponse {
            next_page_offset: next.as_ref().map(wire_id),
            result: records.iter().map(retrieved).collect(),
            time: 0.0,
            usage: None,
        }))
    }

    async fn count(
        &self,
        request: Request<wire::CountPoints>,
    ) -> Result<Response<wire::CountResponse>, Status> {
        self.check(&request, "count", Needs::Read(&request.get_ref().collection_name))?;
        let held = self.collection(&request.get_ref().collection_name)?;
        let filter = request.get_ref().filter.as_ref().map(filter).transpose()?;
        let count = blocking(held, move |held| {
            held.shard.count(CountRequest { filter, exact: true }).map_err(failed)
        });
        let count = u64::try_from(count.await?).map_err(failed)?;
        let result = Some(wire::CountResult { count });
        Ok(Response::new(wire::CountResponse { result, time: 0.0, usage: None }))
    }

    async fn query_batch(
        &self,
        request: Request<wire::QueryBatchPoints>,
    ) -> Result<Response<wire::QueryBatchResponse>, Status> {
        self.check(&request, "query batch", Needs::Read(&request.get_ref().collection_name))?;
        let name = request.get_ref().collection_name.clone();
        let held = self.collection(&name)?;
        let questions = request.into_inner().query_points;
        if questions.iter().any(|question| question.collection_name != name) {
            return Err(Status::permission_denied("Forbidden"));
        }
        let result = blocking(held, move |held| {
            let ask = |question| Ok(wire::BatchResult { result: ask(held, question)? });
            questions.iter().map(ask).collect::<Result<Vec<_>, Status>>()
        });
        Ok(Response::new(wire::QueryBatchResponse { result: result.await?, time: 0.0, usage: None }))
    }

    unknown! {
        update_vectors(wire::UpdatePointVectors) -> PointsOperationResponse;
        delete_vectors(wire::DeletePointVectors) -> PointsOperationResponse;
        set_payload(wire::SetPayloadPoints) -> PointsOperationResponse;
        overwrite_payload(wire::SetPayloadPoints) -> PointsOperationResponse;
        delete_payload(wire::DeletePayloadPoints) -> PointsOperationResponse;
        clear_payload(wire::ClearPayloadPoints) -> PointsOperationResponse;
        delete_field_index(wire::DeleteFieldIndexCollection) -> PointsOperationResponse;
        create_vector_name(wire::CreateVectorNameRequest) -> PointsOperationResponse;
        delete_vector_name(wire::DeleteVectorNameRequest) -> PointsOperationResponse;
        search(wire::SearchPoints) -> wire::SearchResponse;
        search_batch(wire::SearchBatchPoints) -> wire::SearchBatchResponse;
        search_groups(wire::SearchPointGroups) -> wire::SearchGroupsResponse;
        recommend(wire::RecommendPoints) -> wire::RecommendResponse;
        recommend_batch(wire::RecommendBatchPoints) -> wire::RecommendBatchResponse;
        recommend_groups(wire::RecommendPointGroups) -> wire::RecommendGroupsResponse;
        discover(wire::DiscoverPoints) -> wire::DiscoverResponse;
        discover_batch(wire::DiscoverBatchPoints) -> wire::DiscoverBatchResponse;
        update_batch(wire::UpdateBatchPoints) -> wire::UpdateBatchResponse;
        query(wire::QueryPoints) -> wire::QueryResponse;
        query_groups(wire::QueryPointGroups) -> wire::QueryGroupsResponse;
        facet(wire::FacetCounts) -> wire::FacetResponse;
        search_matrix_pairs(wire::SearchMatrixPoints) -> wire::SearchMatrixPairsResponse;
        search_matrix_offsets(wire::SearchMatrixPoints) -> wire::SearchMatrixOffsetsResponse;
    }
}
