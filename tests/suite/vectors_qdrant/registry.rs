//! What every registry of collections does, in memory and in the database.

use bulkhead::domain::ids::ModelId;
use bulkhead::store::postgres::collections::PostgresRegistry;
use bulkhead::store::qdrant::{Collection, Hold, NameKey, Registry, State};
use bulkhead::store::{ErrorKind, Partition, Placement};
use uuid::Uuid;

use super::site::Site;
use crate::deployment::Harness;

/// A collection that two moves write, is left, numbered and served by whoever holds it, and by nobody who has held it.
async fn a_collection_is_left_and_written_by_whoever_holds_it(registry: &dyn Registry, of: &Partition) {
    let names = NameKey::new(&"a key".to_owned().into());
    let (tenant, model) = (of.tenant(), of.model());
    let own = names.name(tenant, model, Uuid::from_u128(1));
    let own = Collection { name: own, dimension: 4, placement: Placement::Own };
    let shared = Collection { name: names.shared(model), dimension: 4, placement: Placement::Shared };
    let states = async || {
        let listed = registry.list(tenant).await.unwrap();
        let of = |collection: &Collection| {
            let row = listed.iter().find(|row| row.collection == *collection)?;
            Some((row.state, row.moves))
        };
        (of(&own), of(&shared))
    };
    assert_eq!(registry.register(of, &own).await.unwrap(), own);
    let (first, second) =
        (registry.stage(of, &shared).await.unwrap(), registry.stage(of, &shared).await.unwrap());
    assert!(second > first);
    assert_eq!(states().await, (Some((State::Served, 0)), Some((State::Written, second))));

    // The first was overtaken.
    for hold in [Hold::Moving(first), Hold::Served] {
        assert!(!registry.leave(of, &shared.name, hold).await.unwrap(), "{hold:?}");
        assert_eq!(registry.next_generation(of, &shared.name, hold).await.unwrap(), None, "{hold:?}");
    }
    assert!(!registry.switch(of, &own.name, (&shared.name, first)).await.unwrap());
    assert_eq!(states().await, (Some((State::Served, 0)), Some((State::Written, second))));
    let drawn = registry.next_generation(of, &shared.name, Hold::Moving(second)).await.unwrap().unwrap();

    // Served, it is not the second one's any more either.
    assert!(registry.switch(of, &own.name, (&shared.name, second)).await.unwrap());
    let after = (Some((State::Left, 0)), Some((State::Served, second)));
    assert_eq!(states().await, after);
    for hold in [Hold::Moving(first), Hold::Moving(second)] {
        assert!(!registry.leave(of, &shared.name, hold).await.unwrap(), "{hold:?}");
        assert_eq!(registry.next_generation(of, &shared.name, hold).await.unwrap(), None, "{hold:?}");
    }
    assert_eq!(registry.last_generation(of, &shared.name).await.unwrap(), None);
    assert_eq!(registry.stage(of, &shared).await.unwrap_err().kind, ErrorKind::Conflict);
    let next = registry.next_generation(of, &shared.name, Hold::Served).await.unwrap();
    assert!(next > Some(drawn));
    assert!(!registry.leave(of, &own.name, Hold::Served).await.unwrap(), "it was left already");
    assert_eq!(states().await, after);

    // Left, everything that was numbered before may go; it is nobody's, and comes back with a later number.
    assert!(registry.leave(of, &shared.name, Hold::Served).await.unwrap());
    assert_eq!(registry.next_generation(of, &shared.name, Hold::Served).await.unwrap(), None);
    let last = registry.last_generation(of, &shared.name).await.unwrap();
    assert!(last > next);
    assert_eq!(registry.register(of, &shared).await.unwrap(), shared);
    registry.forget(of, &shared.name).await.unwrap();
    assert!(registry.next_generation(of, &shared.name, Hold::Served).await.unwrap() > last);
    registry.forget(of, &own.name).await.unwrap();
    assert_eq!(states().await, (None, Some((State::Served, second))));
    assert!(registry.leave(of, &shared.name, Hold::Served).await.unwrap());
    registry.forget(of, &shared.name).await.unwrap();
    assert_eq!(states().await, (None, None));
}

#[tokio::test]
async fn a_collection_is_left_and_written_by_whoever_holds_it_in_memory_and_in_the_database() {
    let site = Site::stand_in();
    let of = super::partition(1, 1);
    a_collection_is_left_and_written_by_whoever_holds_it(site.registry.as_ref(), &of).await;

    let harness = Harness::new().await;
    let permit = harness.tenant().await;
    let registry = PostgresRegistry::new(harness.postgres.clone());
    let model = ModelId::parse("00112233445566ff").unwrap();
    let namespace = harness.corpus(&permit).await.partition().namespace();
    let of = Partition::for_laboratory(permit.scope().tenant(), namespace, model);
    a_collection_is_left_and_written_by_whoever_holds_it(&registry, &of).await;
    harness.close().await;
}
