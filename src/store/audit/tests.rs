//! The handle and its writer over a log in memory that can be slow or away.

use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;
use uuid::Uuid;

use super::*;
use crate::domain::clock::SystemClock;
use crate::domain::limits::LimitOverrides;
use crate::tenancy::directory::{DirectoryError, KeyRecord, OperatorRecord};
use crate::tenancy::{Denied, Directory, TenantRecord, TenantState, Write, reauthorise};

type Appended = (Option<TenantId>, Vec<AuditEvent>);

#[derive(Default)]
struct Memory {
    calls: Mutex<Vec<Appended>>,
    away: AtomicBool,
}

#[async_trait]
impl AuditLog for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn node(&self) -> &'static str {
        "node-1"
    }

    async fn append(&self, tenant: Option<TenantId>, events: &[AuditEvent]) -> Result<(), StoreError> {
        if self.away.load(Ordering::Relaxed) {
            return Err(StoreError::new(ErrorKind::Unavailable, "memory", "audit.append", "away"));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.calls.lock().push((tenant, events.to_vec()));
        Ok(())
    }

    async fn page(
        &self,
        _tenant: Option<TenantId>,
        _after: Option<&AuditCursor>,
        _limit: i64,
    ) -> Result<Vec<AuditRecord>, StoreError> {
        Ok(Vec::new())
    }

    async fn chains(&self, _tenant: Option<TenantId>) -> Result<Vec<Chain>, StoreError> {
        Ok(Vec::new())
    }

    async fn links(
        &self,
        _tenant: Option<TenantId>,
        _node: &str,
        _range: (i64, i64),
        _limit: i64,
    ) -> Result<Vec<Link>, StoreError> {
        Ok(Vec::new())
    }

    async fn span(
        &self,
        _tenant: Option<TenantId>,
        _node: &str,
        _times: Times,
    ) -> Result<Option<(i64, i64)>, StoreError> {
        Ok(None)
    }

    async fn days(&self, _tenant: Option<TenantId>, _times: Times) -> Result<Vec<AuditDay>, StoreError> {
        Ok(Vec::new())
    }
}

struct EveryTenant;

#[async_trait]
impl Directory for EveryTenant {
    async fn key(&self, _key_id: &str) -> Result<Option<KeyRecord>, DirectoryError> {
        Ok(None)
    }
    async fn operator(&self, _key_id: &str) -> Result<Option<OperatorRecord>, DirectoryError> {
        Ok(None)
    }
    async fn tenant(&self, tenant: TenantId) -> Result<Option<TenantRecord>, DirectoryError> {
        let limits = LimitOverrides::default();
        Ok(Some(TenantRecord { tenant, slug: "any".into(), state: TenantState::Active, limits }))
    }
    async fn tenant_by_slug(&self, _slug: &str) -> Result<Option<TenantRecord>, DirectoryError> {
        Ok(None)
    }
}

async fn permit(tenant: u128) -> Permit<Write> {
    reauthorise(&EveryTenant, TenantId(Uuid::from_u128(tenant)), "test").await.unwrap().unwrap()
}

fn started(settings: AuditSettings) -> (Arc<Memory>, Audit) {
    let memory = Arc::new(Memory::default());
    let log: Arc<dyn AuditLog> = Arc::<Memory>::clone(&memory);
    (memory, Audit::start(log, settings, Arc::new(SystemClock), &[1; 32]))
}

fn entry(action: &'static str) -> AuditEntry {
    AuditEntry::new(AuditKind::Query, action, Decision::Allowed)
}

#[tokio::test]
async fn queued_events_are_written_in_few_batches_and_in_order() {
    let (memory, audit) = started(AuditSettings::default());
    let (alice, bob) = (permit(1).await, permit(2).await);
    for number in 0..100u64 {
        audit.record(alice.scope(), entry("query.create").dropping(number)).await;
        audit.record(bob.scope(), entry("query.create")).await;
    }
    audit.flush().await;
    let calls = memory.calls.lock();
    assert!(calls.len() <= 6, "{} calls", calls.len());
    let of_alice: Vec<u64> = calls
        .iter()
        .filter(|(tenant, _)| *tenant == Some(alice.scope().tenant()))
        .flat_map(|(_, events)| events.iter().map(|event| event.entry.rows_dropped))
        .collect();
    assert_eq!(of_alice, (0..100).collect::<Vec<_>>());
    assert!(calls.iter().all(|(tenant, events)| events.iter().all(|event| event.tenant == *tenant)));
    assert_eq!(audit.counts(), AuditCounts { written: 200, lost: 0, waiting: 0 });
}

#[tokio::test]
async fn callers_who_wait_together_share_a_commit() {
    let (memory, audit) = started(AuditSettings::default());
    let all = (0..50).map(|_| audit.record_server(entry("key.create")));
    for written in futures::future::join_all(all).await {
        written.unwrap();
    }
    assert!(memory.calls.lock().len() <= 10);
    assert_eq!(audit.counts().written, 50);
}

#[tokio::test]
async fn a_log_that_is_away_refuses_who_waits_and_counts_what_is_lost() {
    let settings = AuditSettings {
        attempts: 1,
        queue: 1,
        batch: 1,
        queue_wait_ms: 1,
        flush_ms: 1,
        ..Default::default()
    };
    let (memory, audit) = started(settings);
    let alice = permit(1).await;
    memory.away.store(true, Ordering::Relaxed);
    let error = audit.record_server(entry("key.create")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    audit.record(alice.scope(), entry("query.create")).await;
    audit.flush().await;
    assert_eq!(audit.counts(), AuditCounts { written: 0, lost: 2, waiting: 0 });
}

#[tokio::test]
async fn an_alarm_names_identifiers_to_the_deployment_alone() {
    let (memory, audit) = started(AuditSettings::default());
    let alice = permit(1).await;
    let alarm =
        AuditEntry::new(AuditKind::Alarm, "chunk.search", Decision::Denied).with_ids(["of-a-neighbour"]);
    audit.record_alarm(alice.scope(), alarm).await.unwrap();
    let calls = memory.calls.lock();
    let ids = |tenant: Option<TenantId>| {
        let (_, events) = calls.iter().find(|(of, _)| *of == tenant).unwrap();
        events[0].entry.ids.len()
    };
    assert_eq!((ids(None), ids(Some(alice.scope().tenant()))), (1, 0));
}

#[tokio::test]
async fn a_refusal_goes_to_the_tenant_of_the_credential() {
    let (memory, audit) = started(AuditSettings::default());
    let alice = permit(1).await;
    let refusal = Refusal::missing_role(alice.scope(), &Denied { action: "administer" });
    audit.record_refusal(&refusal, "audit.list").await.unwrap();
    let calls = memory.calls.lock();
    let (tenant, events) = &calls[0];
    assert_eq!(*tenant, Some(alice.scope().tenant()));
    assert_eq!(events[0].principal, "job:test");
    assert_eq!(events[0].entry.reason, "missing-role: administer");
}

#[tokio::test]
async fn the_same_question_of_two_tenants_has_two_hashes() {
    let (_memory, audit) = started(AuditSettings::default());
    let (alice, bob) = (permit(1).await, permit(2).await);
    let hash = audit.query_hash(alice.scope(), "when?");
    assert_eq!(hash, audit.query_hash(alice.scope(), "when?"));
    assert_ne!(hash, audit.query_hash(bob.scope(), "when?"));
}

#[tokio::test]
async fn what_was_queued_is_written_when_the_last_handle_goes() {
    let (memory, audit) = started(AuditSettings { flush_ms: 60_000, ..Default::default() });
    let alice = permit(1).await;
    audit.record(alice.scope(), entry("query.create")).await;
    drop(audit);
    let written = async {
        while memory.calls.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), written).await.unwrap();
}

#[tokio::test]
async fn an_act_is_in_the_log_of_its_tenant_and_unless_it_is_the_tenants_own_in_the_deployments() {
    let (_memory, audit) = started(AuditSettings::default());
    let alice = permit(1).await;
    let tenant = alice.scope().tenant();
    let told = |events: Vec<AuditEvent>| -> Vec<_> {
        events.into_iter().map(|event| (event.tenant, event.principal, event.entry.asked_for)).collect()
    };
    let own = audit.tenant_act(alice.scope(), entry("namespace.delete"));
    assert_eq!(told(own.0.events(Some(tenant))), [(Some(tenant), "job:test".to_owned(), vec![])]);
    let server = audit.server_act(entry("tenant.purge"));
    let expected =
        [(Some(tenant), "server".to_owned(), vec![]), (None, "server".to_owned(), vec![tenant.to_string()])];
    assert_eq!(told(server.0.events(Some(tenant))), expected, "the deployment's comes last");
    assert_eq!(told(server.0.events(None)), [(None, "server".to_owned(), vec![])]);
}
