//! What was true a moment ago: how long it counts, and what happens when nobody can say.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::world::{ACME, World};
use crate::domain::clock::Clock;
use crate::domain::ids::NamespaceName;
use crate::tenancy::{Authenticated, Authenticator, RefusalKind, Role, TenantState, TokenSigner};

async fn still(world: &World, caller: &Authenticated) -> Option<RefusalKind> {
    world.auth.still_valid(caller).await.err().map(|refusal| refusal.kind())
}

#[tokio::test]
async fn a_revoked_key_ends_requests_and_streams_within_the_poll() {
    let world = World::new();
    let key = world.key(ACME);
    let caller = world.bearer(&key).await.expect("let in");
    world.change_key(&key, |record| record.revoked = true);
    world.clock.pass(Duration::from_millis(799));
    assert_eq!((world.kind(&key).await, still(&world, &caller).await), (None, None));
    world.clock.pass(Duration::from_millis(1));
    assert_eq!(world.kind(&key).await, Some(RefusalKind::Unauthorized));
    assert_eq!(still(&world, &caller).await, Some(RefusalKind::Unauthorized));
}

#[tokio::test]
async fn a_word_that_something_changed_takes_effect_at_once() {
    let world = World::new();
    let key = world.key(ACME);
    let caller = world.bearer(&key).await.expect("let in");
    world.change_key(&key, |record| record.revoked = true);
    world.auth.forget();
    assert_eq!(world.kind(&key).await, Some(RefusalKind::Unauthorized));
    assert_eq!(still(&world, &caller).await, Some(RefusalKind::Unauthorized));
}

#[tokio::test]
async fn suspension_deletion_and_demotion_end_a_stream() {
    let world = World::new();
    let key = world.key(ACME);
    let by_key = world.bearer(&key).await.expect("let in");
    let by_token = world.bearer(&world.ed_token(&world.claims())).await.expect("let in");
    for (state, kind) in [
        (TenantState::Suspended, Some(RefusalKind::TenantSuspended)),
        (TenantState::Deleted, Some(RefusalKind::Unauthorized)),
        (TenantState::Active, None),
    ] {
        world.directory.set_state(ACME, state);
        world.clock.pass(Duration::from_secs(1));
        assert_eq!((still(&world, &by_key).await, still(&world, &by_token).await), (kind, kind));
    }
    world.change_key(&key, |record| record.roles = vec![Role::Reader]);
    world.clock.pass(Duration::from_secs(1));
    assert_eq!(still(&world, &by_key).await, Some(RefusalKind::MissingRole));
    world.change_key(&key, |record| {
        record.roles = vec![Role::TenantAdmin];
        record.namespaces = Some(vec![NamespaceName::default()]);
    });
    world.clock.pass(Duration::from_secs(1));
    assert_eq!(still(&world, &by_key).await, Some(RefusalKind::MissingRole));
    world.directory.tenants.lock().remove(&ACME);
    world.clock.pass(Duration::from_secs(1));
    assert_eq!(still(&world, &by_token).await, Some(RefusalKind::Unauthorized));
}

#[tokio::test]
async fn a_stream_ends_with_its_credential() {
    let world = World::new();
    let soon = world.clock.now() + Duration::from_mins(10);
    let key = world.key_with(ACME, |record| record.expires_at = Some(soon));
    let by_key = world.bearer(&key).await.expect("let in");
    let by_token = world.bearer(&world.ed_token(&world.claims())).await.expect("let in");
    assert_eq!(by_key.expires_at(), Some(soon));
    world.clock.pass(Duration::from_secs(599));
    assert_eq!((still(&world, &by_key).await, still(&world, &by_token).await), (None, None));
    world.clock.pass(Duration::from_secs(6));
    let expired = Some(RefusalKind::TokenExpired);
    assert_eq!((still(&world, &by_key).await, still(&world, &by_token).await), (expired, expired));
}

#[tokio::test]
async fn without_an_answer_of_the_directory_nobody_is_called_unauthorized() {
    let world = World::new();
    let key = world.key(ACME);
    let token = world.ed_token(&world.claims());
    let caller = world.bearer(&key).await.expect("let in");
    world.directory.away.store(true, Ordering::SeqCst);
    assert_eq!(world.kind(&key).await, None, "known for less than a second");
    world.clock.pass(Duration::from_secs(1));
    let unavailable = Some(RefusalKind::Unavailable);
    assert_eq!((world.kind(&key).await, world.kind(&token).await), (unavailable, unavailable));
    assert_eq!(still(&world, &caller).await, unavailable);
    world.directory.away.store(false, Ordering::SeqCst);
    assert_eq!(world.kind(&key).await, None, "a failure is not remembered");
    assert_eq!(still(&world, &caller).await, None);
}

#[tokio::test]
async fn those_who_ask_together_ask_once_and_one_who_leaves_takes_nobody_along() {
    let world = World::new();
    let key = world.key(ACME);
    let all = futures::future::join_all((0..50).map(|_| world.bearer(&key))).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(world.directory.asked.load(Ordering::SeqCst), 1);

    world.clock.pass(Duration::from_secs(1));
    {
        let mut leaving = Box::pin(world.bearer(&key));
        assert!(futures::poll!(&mut leaving).is_pending(), "the question is on its way");
    }
    assert!(world.bearer(&key).await.is_ok());
    assert_eq!(world.directory.asked.load(Ordering::SeqCst), 2);
}

#[test]
fn one_authenticator_serves_all_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Authenticator>();
    shared::<Authenticated>();
    shared::<TokenSigner>();
}
