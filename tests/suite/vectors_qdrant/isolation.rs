//! What keeps tenants apart in Qdrant, layer by layer: tokens, names, tags.

use base64::Engine as _;
use bulkhead::domain::Seq;
use bulkhead::domain::clock::{Clock as _, SystemClock};
use bulkhead::store::vector::VectorIndex as _;
use jsonwebtoken::{EncodingKey, Header};
use qdrant_client::QdrantError;
use qdrant_client::qdrant::{
    CountPoints, CreateCollection, DeleteCollection, DeletePoints, Filter, PointsSelector, UpsertPoints,
    points_selector::PointsSelectorOneOf,
};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::super::conformance_vectors::{chunks, dense, find, partition, point};
use super::site::Site;

const PERMISSION_DENIED: i32 = 7;
const UNAUTHENTICATED: i32 = 16;

fn code<T: std::fmt::Debug>(answer: Result<T, QdrantError>) -> i32 {
    match answer.unwrap_err() {
        QdrantError::ResponseError { status } => i32::from(status.code()),
        other => panic!("{other:?}"),
    }
}

fn count(collection: &str) -> CountPoints {
    CountPoints { collection_name: collection.to_owned(), exact: Some(true), ..CountPoints::default() }
}

fn write(collection: &str) -> UpsertPoints {
    UpsertPoints { collection_name: collection.to_owned(), wait: Some(true), ..UpsertPoints::default() }
}

fn delete_all(collection: &str) -> DeletePoints {
    let selector = PointsSelectorOneOf::Filter(Filter::default());
    DeletePoints {
        collection_name: collection.to_owned(),
        wait: Some(true),
        points: Some(PointsSelector { points_selector_one_of: Some(selector) }),
        ..DeletePoints::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_its_own_collection_and_no_other() {
    let site = Site::new();
    let index = site.index();
    let (alice, bob) = (partition(1, 1), partition(2, 1));
    for each in [&alice, &bob] {
        index.apply(each, vec![point(1)], vec![], Seq(1)).await.unwrap();
    }
    let (hers, his) = (
        index.laboratory_collection(&alice).await.unwrap(),
        index.laboratory_collection(&bob).await.unwrap(),
    );
    let reader = index.laboratory_token(&alice, false).await.unwrap();
    let writer = index.laboratory_token(&alice, true).await.unwrap();
    let (reader, writer) = (site.raw(reader.expose_secret()), site.raw(writer.expose_secret()));

    // The control: what it is for, it does.
    for token in [&reader, &writer] {
        assert_eq!(token.count(count(&hers)).await.unwrap().result.unwrap().count, 2);
    }
    for token in [&reader, &writer] {
        assert_eq!(code(token.count(count(&his)).await), PERMISSION_DENIED);
        assert_eq!(code(token.delete_points(delete_all(&his)).await), PERMISSION_DENIED);
        assert_eq!(code(token.upsert_points(write(&his)).await), PERMISSION_DENIED);
        for name in [&hers, &his] {
            let delete = DeleteCollection { collection_name: name.clone(), ..DeleteCollection::default() };
            assert_eq!(code(token.delete_collection(delete).await), PERMISSION_DENIED);
        }
        let create = CreateCollection { collection_name: "mine".to_owned(), ..CreateCollection::default() };
        assert_eq!(code(token.create_collection(create).await), PERMISSION_DENIED);
    }
    assert_eq!(code(reader.delete_points(delete_all(&hers)).await), PERMISSION_DENIED, "a read token reads");
    for each in [&alice, &bob] {
        assert_eq!(chunks(&index, each).await, [1]);
    }
    site.clear(&index).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_a_forged_and_no_credential_are_refused() {
    let site = Site::new();
    let index = site.index();
    let own = partition(1, 1);
    index.apply(&own, vec![point(1)], vec![], Seq(1)).await.unwrap();
    let name = index.laboratory_collection(&own).await.unwrap();
    let signed = |key: &str, seconds: i64| {
        let exp = SystemClock.now().timestamp() + seconds;
        let claims = json!({"exp": exp, "access": [{"collection": name, "access": "r"}]});
        jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(key.as_bytes())).unwrap()
    };
    let good = signed(site.api_key(), 60);
    assert_eq!(site.raw(&good).count(count(&name)).await.unwrap().result.unwrap().count, 2);
    for (bad, refusal) in [
        // Beyond any patience with clocks.
        (signed(site.api_key(), -600), PERMISSION_DENIED),
        (signed("another key", 60), PERMISSION_DENIED),
        ("nonsense".to_owned(), UNAUTHENTICATED),
    ] {
        assert_eq!(code(site.raw(&bad).count(count(&name)).await), refusal, "{bad}");
    }
    site.clear(&index).await;
}

/// The claims of a token, read without its key.
fn claims(token: &str) -> Value {
    let part = token.split('.').nth(1).expect("three parts");
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).expect("base64");
    serde_json::from_slice(&bytes).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_credential_that_is_sent_is_for_what_it_is_used_for() {
    let site = Site::stand_in();
    let index = site.index();
    let own = partition(1, 1);
    index.apply(&own, (1..=100).map(point).collect(), vec![], Seq(1)).await.unwrap();
    chunks(&index, &own).await;
    index.entries(&own, None, 10).await.unwrap();
    index.flush(&own).await.unwrap();
    let mut rebuild = index.rebuild(&own).await.unwrap();
    rebuild.add(vec![point(1)]).await.unwrap();
    rebuild.finish(Seq(2)).await.unwrap();
    index.partitions(own.tenant()).await.unwrap();
    let name = index.laboratory_collection(&own).await.unwrap();
    index.remove(&own).await.unwrap();

    let now = SystemClock.now().timestamp();
    let mut calls: Vec<&str> = Vec::new();
    for seen in site.stand_in.as_ref().unwrap().seen() {
        calls.push(seen.call);
        let expected = match seen.call {
            "create" | "create field index" | "delete collection" => {
                assert_eq!(seen.credential, site.api_key(), "{}", seen.call);
                continue;
            }
            "upsert" | "delete points" => "rw",
            _ => "r",
        };
        let claims = claims(&seen.credential);
        assert_eq!(claims["access"], json!([{"collection": name, "access": expected}]), "{}", seen.call);
        let life = claims["exp"].as_i64().unwrap() - now;
        assert!((0..=300).contains(&life), "{life} s");
        assert_eq!(claims.as_object().unwrap().len(), 2, "nothing else is claimed");
    }
    for call in ["create", "upsert", "delete points", "query batch", "scroll", "get", "delete collection"] {
        assert!(calls.contains(&call), "{call} was not made");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_point_is_not_found_and_shows_its_tag_without_the_filter() {
    let site = Site::new();
    let index = site.index();
    let (alice, bob, other) = (partition(1, 1), partition(2, 1), partition(1, 2));
    index.apply(&alice, (1..=5).map(point).collect(), vec![], Seq(1)).await.unwrap();
    index.apply(&other, vec![point(70)], vec![], Seq(1)).await.unwrap();
    index.laboratory_plant(&alice, &bob, point(66)).await.unwrap();
    assert_eq!(chunks(&index, &alice).await, [1, 2, 3, 4, 5]);
    let listed = index.entries(&alice, None, 100).await.unwrap().unwrap().list;
    let foreign: Vec<_> = listed.iter().filter(|entry| entry.tenant != alice.tenant()).collect();
    assert_eq!((foreign.len(), listed.len()), (1, 6), "whoever looks at everything sees it");

    index.laboratory_filter_off(true);
    let found = find(&index, &alice, &dense(66, 100)).await.dense;
    assert_eq!((found[0].tenant, found[0].chunk), (bob.tenant(), point(66).chunk));
    assert!(found.iter().any(|hit| hit.namespace == other.namespace()), "and so does a namespace beside");
    index.laboratory_filter_off(false);

    // Written anew, the index is rid of it.
    let mut rebuild = index.rebuild(&alice).await.unwrap();
    rebuild.add((1..=5).map(point).collect()).await.unwrap();
    rebuild.finish(Seq(2)).await.unwrap();
    let listed = index.entries(&alice, None, 100).await.unwrap().unwrap().list;
    assert!(listed.iter().all(|entry| entry.tenant == alice.tenant()), "{listed:?}");
    site.clear(&index).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_are_identifiers_and_numbers() {
    let site = Site::new();
    let index = site.index();
    let own = partition(1, 1);
    index.apply(&own, vec![point(1), point(2)], vec![chunk_of(9)], Seq(1)).await.unwrap();
    let name = index.laboratory_collection(&own).await.unwrap();
    for point in site.points(&name).await {
        for (field, value) in point.payload {
            let text = value.as_str().cloned();
            let is_plain = match field.as_str() {
                "tenant" | "namespace" => text.is_some_and(|text| text.parse::<uuid::Uuid>().is_ok()),
                "generation" | "seq" | "version" | "at" => value.as_integer().is_some(),
                "kind" => text.is_some_and(|text| text == "head" || text == "gone"),
                _ => false,
            };
            assert!(is_plain, "{field}");
        }
    }
    site.clear(&index).await;
}

fn chunk_of(number: u128) -> bulkhead::domain::ids::ChunkId {
    super::super::conformance_vectors::chunk(number)
}
