//! Between the messages of the protocol and what qdrant-edge takes.

use std::collections::HashMap;

use qdrant_client::qdrant::condition::ConditionOneOf;
use qdrant_client::qdrant::r#match::MatchValue;
use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_client::qdrant::value::Kind;
use qdrant_client::qdrant::vectors::VectorsOptions;
use qdrant_client::qdrant::{self as wire, vector};
use qdrant_edge::{Filter, Payload, PointId, PointStruct, PointStructPersisted, Vector, Vectors};
use serde_json::{Map, Value, json};
use tonic::Status;

fn unknown(what: &str) -> Status {
    Status::unimplemented(format!("the stand-in does not know this {what}"))
}

fn malformed(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("Wrong input: {error}"))
}

pub(crate) fn id(id: Option<&wire::PointId>) -> Result<PointId, Status> {
    match id.and_then(|id| id.point_id_options.as_ref()) {
        Some(PointIdOptions::Uuid(text)) => text.parse().map(PointId::Uuid).map_err(malformed),
        Some(PointIdOptions::Num(number)) => Ok(PointId::NumId(*number)),
        None => Err(malformed("no id")),
    }
}

pub(crate) fn wire_id(id: &PointId) -> wire::PointId {
    match id {
        PointId::Uuid(id) => wire::PointId::from(id.to_string()),
        PointId::NumId(number) => wire::PointId::from(*number),
    }
}

fn json_of(value: &wire::Value) -> Result<Value, Status> {
    Ok(match &value.kind {
        Some(Kind::StringValue(text)) => json!(text),
        Some(Kind::IntegerValue(number)) => json!(number),
        Some(Kind::DoubleValue(number)) => json!(number),
        Some(Kind::BoolValue(value)) => json!(value),
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(_) => return Err(unknown("payload")),
    })
}

fn wire_value(value: &Value) -> wire::Value {
    match value {
        Value::String(text) => wire::Value::from(text.clone()),
        Value::Bool(value) => wire::Value::from(*value),
        Value::Number(number) => match number.as_i64() {
            Some(number) => wire::Value::from(number),
            None => wire::Value::from(number.as_f64().unwrap_or_default()),
        },
        _ => wire::Value { kind: Some(Kind::NullValue(0)) },
    }
}

pub(crate) fn wire_payload(payload: Option<&Payload>) -> HashMap<String, wire::Value> {
    let fields = payload.into_iter().flat_map(|payload| &payload.0);
    fields.map(|(name, value)| (name.clone(), wire_value(value))).collect()
}

pub(crate) fn point(point: wire::PointStruct) -> Result<PointStructPersisted, Status> {
    let named = match point.vectors.and_then(|vectors| vectors.vectors_options) {
        Some(VectorsOptions::Vectors(named)) => named.vectors,
        None => HashMap::new(),
        Some(VectorsOptions::Vector(_)) => return Err(unknown("vector")),
    };
    let one = |(name, given): (String, wire::Vector)| match given.vector {
        Some(vector::Vector::Dense(dense)) => Ok((name, Vector::new_dense(dense.data))),
        Some(vector::Vector::Sparse(sparse)) => {
            Ok((name, Vector::new_sparse(sparse.indices, sparse.values).map_err(malformed)?))
        }
        _ => Err(unknown("vector")),
    };
    let vectors = named.into_iter().map(one).collect::<Result<Vec<_>, _>>()?;
    let payload = point.payload.iter().map(|(name, value)| Ok((name.clone(), json_of(value)?)));
    let payload: Map<String, Value> = payload.collect::<Result<_, Status>>()?;
    let id = id(point.id.as_ref())?;
    Ok(PointStruct::new(id, Vectors::new_named(vectors), Value::Object(payload)).0)
}

fn condition(condition: &wire::Condition) -> Result<Value, Status> {
    let one = condition.condition_one_of.as_ref().ok_or_else(|| malformed("an empty condition"))?;
    Ok(match one {
        ConditionOneOf::Filter(inner) => filter_json(inner)?,
        ConditionOneOf::IsEmpty(empty) => json!({"is_empty": {"key": empty.key}}),
        ConditionOneOf::HasId(ids) => {
            let ids = ids.has_id.iter().map(|one| id(Some(one)));
            let texts = ids.map(|id| {
                Ok(match id? {
                    PointId::Uuid(id) => json!(id),
                    PointId::NumId(number) => json!(number),
                })
            });
            json!({"has_id": texts.collect::<Result<Vec<_>, Status>>()?})
        }
        ConditionOneOf::Field(field) => {
            let matched = field.r#match.as_ref().and_then(|matched| matched.match_value.as_ref());
            match (matched, &field.range) {
                (Some(MatchValue::Keyword(text)), None) => {
                    json!({"key": field.key, "match": {"value": text}})
                }
                (Some(MatchValue::Integer(number)), None) => {
                    json!({"key": field.key, "match": {"value": number}})
                }
                (None, Some(range)) => json!({"key": field.key, "range": {
                    "lt": range.lt, "lte": range.lte, "gt": range.gt, "gte": range.gte,
                }}),
                _ => return Err(unknown("condition")),
            }
        }
        _ => return Err(unknown("condition")),
    })
}

fn filter_json(filter: &wire::Filter) -> Result<Value, Status> {
    if filter.min_should.is_some() {
        return Err(unknown("filter"));
    }
    let mut clauses = Map::new();
    for (name, conditions) in
        [("should", &filter.should), ("must", &filter.must), ("must_not", &filter.must_not)]
    {
        if !conditions.is_empty() {
            let list = conditions.iter().map(condition).collect::<Result<Vec<_>, _>>()?;
            clauses.insert(name.to_owned(), Value::Array(list));
        }
    }
    Ok(Value::Object(clauses))
}

pub(crate) fn filter(filter: &wire::Filter) -> Result<Filter, Status> {
    serde_json::from_value(filter_json(filter)?).map_err(malformed)
}
