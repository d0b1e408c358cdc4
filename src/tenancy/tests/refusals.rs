//! Each row of the table of refusals, what it shows and what it tells the audit log.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;

use super::world::{ACME, GLOBEX, GONE, NOBODY, SLEEPING, World, new_key};
use crate::domain::clock::Clock;
use crate::tenancy::{
    KeyKind, PresentedCredentials, Read, Refusal, RefusalKind, RequestHints, Role, TenantHint, Write,
};

async fn present(world: &World, authorization: &[&str], x_api_key: &[&str]) -> Option<RefusalKind> {
    let credentials = PresentedCredentials {
        authorization: authorization.iter().map(|value| value.as_bytes()).collect(),
        x_api_key: x_api_key.iter().map(|value| value.as_bytes()).collect(),
    };
    let refused = world.auth.authenticate(&credentials, &RequestHints::default()).await.err();
    refused.map(|refusal| refusal.kind())
}

fn named(header: &str) -> RequestHints<'_> {
    RequestHints { x_tenant_id: vec![header.as_bytes()], ..RequestHints::default() }
}

#[tokio::test]
async fn a_key_is_taken_from_either_header_and_from_both_when_they_agree() {
    let world = World::new();
    let (ours, other) = (world.key(ACME), world.key(ACME));
    let bearer = format!("Bearer {ours}");
    let lower = format!("bearer  {ours} ");
    for (authorization, x_api_key) in [
        (vec![bearer.as_str()], vec![]),
        (vec![lower.as_str()], vec![]),
        (vec![], vec![ours.as_str()]),
        (vec![bearer.as_str()], vec![ours.as_str()]),
        (vec![bearer.as_str(), bearer.as_str()], vec![ours.as_str(), ours.as_str()]),
    ] {
        assert_eq!(present(&world, &authorization, &x_api_key).await, None, "{authorization:?}");
    }
    let basic = format!("Basic {ours}");
    for (authorization, x_api_key) in [
        (vec![], vec![]),
        (vec![bearer.as_str()], vec![other.as_str()]),
        (vec![bearer.as_str()], vec![""]),
        (vec![], vec![ours.as_str(), other.as_str()]),
        (vec![basic.as_str()], vec![]),
        (vec![basic.as_str()], vec![ours.as_str()]),
        (vec![ours.as_str()], vec![]),
        (vec!["Bearer"], vec![]),
        (vec!["Bearer "], vec![]),
        (vec![], vec![""]),
        (vec![], vec!["é"]),
        (vec![], vec![bearer.as_str()]),
    ] {
        let kind = present(&world, &authorization, &x_api_key).await;
        assert_eq!(kind, Some(RefusalKind::Unauthorized), "{authorization:?} {x_api_key:?}");
    }
}

#[tokio::test]
async fn a_key_that_is_unknown_wrong_revoked_or_of_a_deleted_tenant_is_unauthorized() {
    let world = World::new();
    let (_, unknown) = new_key(KeyKind::Tenant);
    let wrong = world.key_with(ACME, |record| record.digest[0] ^= 1);
    let revoked = world.key_with(ACME, |record| record.revoked = true);
    let gone = world.key(GONE);
    let operator = world.operator();
    let past = world.clock.now() - Duration::from_secs(1);
    // A key that is both revoked and expired tells nothing of its expiry.
    let both = world.key_with(ACME, |record| (record.revoked, record.expires_at) = (true, Some(past)));
    for text in [unknown, wrong, revoked, gone, operator, both, "bk_x".into(), "x".repeat(9000)] {
        assert_eq!(world.kind(&text).await, Some(RefusalKind::Unauthorized), "{text}");
    }
    let expired = world.key_with(ACME, |record| record.expires_at = Some(past));
    assert_eq!(world.kind(&expired).await, Some(RefusalKind::TokenExpired));
}

#[tokio::test]
async fn a_hint_that_names_another_an_unknown_or_a_suspended_tenant_is_refused_equally() {
    let world = World::new();
    let key = world.key(ACME);
    let ids = [GLOBEX, NOBODY, SLEEPING, GONE].map(|tenant| tenant.to_string());
    let mut shown = Vec::new();
    for hint in ids.iter().map(String::as_str).chain(["globex", "nobody", "sleeping", "gone"]) {
        let before = world.directory.asked.load(Ordering::SeqCst);
        let refusal = world.bearer_asking(&key, &named(hint)).await.expect_err("refused");
        world.clock.pass(Duration::from_secs(2));
        shown.push((refusal.kind(), refusal.to_string(), format!("{refusal:?}")));
        assert_eq!(refusal.facts().tenant, Some(ACME));
        assert_eq!(refusal.facts().asked_for, [TenantHint::parse(hint.as_bytes()).expect("a hint")]);
        assert!(refusal.facts().principal.as_ref().is_some_and(|who| who.as_str().starts_with("key:")));
        // Nor does the work differ: the tenant that is named is never looked up.
        assert_eq!(world.directory.asked.load(Ordering::SeqCst), before + 1);
    }
    assert_eq!(shown[0].0, RefusalKind::TenantMismatch);
    assert!(shown.iter().all(|one| *one == shown[0]), "{shown:?}");

    let host = RequestHints { host: vec![b"globex.base.example"], ..RequestHints::default() };
    let by_host = world.bearer_asking(&key, &host).await.expect_err("refused");
    assert_eq!(by_host.kind(), RefusalKind::TenantMismatch);
}

#[tokio::test]
async fn hints_that_agree_are_accepted_in_every_form() {
    let world = World::new();
    let key = world.key(ACME);
    let id = ACME.to_string().to_uppercase();
    for hint in [id.as_str(), "acme", "Acme"] {
        let hints = RequestHints { host: vec![b"ACME.base.example.:80"], ..named(hint) };
        let caller = world.bearer_asking(&key, &hints).await.expect("let in");
        assert_eq!((caller.scope().tenant(), caller.scope().slug()), (ACME, "acme"));
    }
    let mixed = RequestHints { x_tenant_id: vec![b"acme", id.as_bytes()], ..RequestHints::default() };
    assert!(world.bearer_asking(&key, &mixed).await.is_ok());
}

#[tokio::test]
async fn a_malformed_hint_is_told_only_to_a_verified_caller() {
    let world = World::new();
    let key = world.key(ACME);
    let (_, unknown) = new_key(KeyKind::Tenant);
    for hints in [
        named("a b"),
        named(""),
        RequestHints { x_tenant_id: vec![b"acme", b"globex"], ..RequestHints::default() },
        RequestHints { host: vec![b"acme.base.example", b"globex.base.example"], ..RequestHints::default() },
    ] {
        let refused = world.bearer_asking(&key, &hints).await.expect_err("refused");
        assert_eq!(refused.kind(), RefusalKind::TenantHintMalformed);
        let refused = world.bearer_asking(&unknown, &hints).await.expect_err("refused");
        assert_eq!(refused.kind(), RefusalKind::Unauthorized);
    }
}

#[tokio::test]
async fn only_the_own_suspended_tenant_is_called_suspended() {
    let world = World::new();
    let key = world.key(SLEEPING);
    let refused = world.bearer(&key).await.expect_err("refused");
    assert_eq!((refused.kind(), refused.facts().tenant), (RefusalKind::TenantSuspended, Some(SLEEPING)));
    let refused = world.bearer_asking(&key, &named("acme")).await.expect_err("refused");
    assert_eq!(refused.kind(), RefusalKind::TenantMismatch);
    let mut claims = world.claims();
    claims["tenant_id"] = json!(SLEEPING);
    assert_eq!(world.kind(&world.ed_token(&claims)).await, Some(RefusalKind::TenantSuspended));
}

#[tokio::test]
async fn a_tenant_that_the_issuer_may_not_assert_is_as_one_that_is_not() {
    let world = World::new();
    let mut shown = Vec::new();
    for tenant in [GLOBEX, NOBODY, GONE] {
        let mut claims = world.claims();
        claims["tenant_id"] = json!(tenant);
        let refused = world.bearer(&world.ed_token(&claims)).await.expect_err("refused");
        assert_eq!(refused.facts().asked_for.len(), 1);
        shown.push((refused.kind(), refused.facts().reason));
    }
    assert_eq!(shown, [(RefusalKind::Unauthorized, "not a tenant of this issuer"); 3]);
}

#[tokio::test]
async fn a_missing_role_is_refused_when_the_action_is_asked_for() {
    let world = World::new();
    let reader = world.key_with(ACME, |record| record.roles = vec![Role::Reader]);
    let caller = world.bearer(&reader).await.expect("let in");
    assert!(caller.scope().permit::<Read>().is_ok());
    let denied = caller.scope().permit::<Write>().expect_err("denied");
    let refusal = Refusal::missing_role(caller.scope(), &denied);
    assert_eq!((refusal.kind(), refusal.facts().reason), (RefusalKind::MissingRole, "write"));
    let none = world.key_with(ACME, |record| record.roles.clear());
    assert!(world.bearer(&none).await.expect("let in").scope().permit::<Read>().is_err());
}

#[tokio::test]
async fn a_name_in_a_body_must_be_the_callers_own() {
    let world = World::new();
    let caller = world.bearer(&world.key(ACME)).await.expect("let in");
    let kind = |named: &str| world.auth.agrees(caller.scope(), named.as_bytes()).err().map(|r| r.kind());
    assert_eq!(kind("acme"), None);
    assert_eq!(kind(&ACME.to_string()), None);
    assert_eq!(kind("globex"), Some(RefusalKind::TenantMismatch));
    assert_eq!(kind(&NOBODY.to_string()), Some(RefusalKind::TenantMismatch));
    assert_eq!(kind("*"), Some(RefusalKind::TenantHintMalformed));
}

#[tokio::test]
async fn an_operator_is_known_by_its_own_credential_alone() {
    let world = World::new();
    let operator = world.operator();
    let tenant = world.key(ACME);
    let (_, unknown) = new_key(KeyKind::Operator);
    let ask = async |text: &str| {
        let credentials =
            PresentedCredentials { x_api_key: vec![text.as_bytes()], ..PresentedCredentials::default() };
        world.auth.authenticate_operator(&credentials).await
    };
    let scope = ask(&operator).await.expect("an operator");
    assert!(scope.principal().as_str().starts_with("operator:"));
    for text in [tenant, unknown, world.ed_token(&world.claims())] {
        assert_eq!(ask(&text).await.expect_err("refused").kind(), RefusalKind::Unauthorized);
    }
    for record in world.directory.operators.lock().values_mut() {
        record.revoked = true;
    }
    assert!(ask(&operator).await.is_ok(), "known for less than a second");
    world.clock.pass(Duration::from_secs(1));
    assert_eq!(ask(&operator).await.expect_err("refused").kind(), RefusalKind::Unauthorized);
    world.directory.away.store(true, Ordering::SeqCst);
    world.clock.pass(Duration::from_secs(1));
    assert_eq!(ask(&operator).await.expect_err("refused").kind(), RefusalKind::Unavailable);
}

#[test]
fn every_kind_has_a_slug_of_its_own_and_a_status() {
    let mut slugs: Vec<_> = RefusalKind::ALL.iter().map(|kind| kind.slug()).collect();
    slugs.sort_unstable();
    slugs.dedup();
    assert_eq!(slugs.len(), RefusalKind::ALL.len());
    assert!(RefusalKind::ALL.iter().all(|kind| [400, 401, 403, 503].contains(&kind.status())));
}
