//! What every audit log must do: one function for each sentence of the trait's documentation. A back end's own file
//! runs them all.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bulkhead::domain::audit::{
    AuditCursor, AuditEntry, AuditEvent, AuditKind, AuditRecord, ChainFault, ChainReport, Decision,
};
use bulkhead::domain::clock::{Clock as _, SystemClock};
use bulkhead::domain::ids::{IdSource as _, SystemIds, TenantId};
use bulkhead::store::AuditLog;
use bulkhead::store::audit::export::Times;

/// What can be done to a chain of twelve events behind the log's back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// The text of the seventh.
    Changed,
    /// The fifth is gone.
    Removed,
    /// One more after the twelfth, linked as it should be.
    Inserted,
    /// The fourth and the sixth in each other's place.
    Reordered,
    /// The last three are gone.
    Truncated,
}

impl Damage {
    const ALL: [Self; 5] = [Self::Changed, Self::Removed, Self::Inserted, Self::Reordered, Self::Truncated];

    fn fault(self) -> ChainFault {
        match self {
            Self::Changed => ChainFault::Changed { number: 7 },
            Self::Removed => ChainFault::Removed { number: 5 },
            Self::Inserted => ChainFault::Inserted { number: 13 },
            Self::Reordered => ChainFault::Reordered { number: 4 },
            Self::Truncated => ChainFault::Truncated { number: 10 },
        }
    }
}

/// A place where logs of several servers are kept together.
#[async_trait]
pub trait Ground: Send + Sync {
    /// The log of the server of this name. What is appended to it is where it stays when the call returns.
    async fn log(&self, node: &str) -> Arc<dyn AuditLog>;

    /// Damages the one chain of a tenant.
    async fn damage(&self, tenant: TenantId, damage: Damage);
}

/// A tenant of a test's own.
pub fn tenant() -> TenantId {
    TenantId(SystemIds(SystemClock).uuid())
}

/// An event that is told from others by its identifier.
pub fn event(tenant: Option<TenantId>, id: &str) -> AuditEvent {
    let entry = AuditEntry::new(AuditKind::Query, "query.create", Decision::Allowed)
        .with_ids([id])
        .because("a reason with \u{0} and \" and é and $ne")
        .of_query([3; 32]);
    AuditEvent { tenant, principal: "key:k1".to_owned(), at: SystemClock.now(), entry }
}

/// So many events with numbers for identifiers.
pub fn events(tenant: TenantId, numbers: std::ops::Range<u64>) -> Vec<AuditEvent> {
    numbers.map(|number| event(Some(tenant), &number.to_string())).collect()
}

/// Every event, newest first, in pages.
pub async fn all(log: &dyn AuditLog, tenant: Option<TenantId>, page: i64) -> Vec<AuditRecord> {
    let (mut seen, mut after): (Vec<AuditRecord>, Option<AuditCursor>) = (Vec::new(), None);
    loop {
        let page = log.page(tenant, after.as_ref(), page).await.expect("a page");
        let Some(last) = page.last() else { return seen };
        let at = last.at.parse().expect("a time");
        after = Some(AuditCursor { at, node: last.node.clone(), number: last.number });
        seen.extend(page);
    }
}

async fn only_report(log: &dyn AuditLog, tenant: TenantId) -> ChainReport {
    let mut reports = log.verify(Some(tenant)).await.expect("examined");
    assert_eq!(reports.len(), 1, "{reports:?}");
    reports.remove(0)
}

/// Order and visibility.
pub async fn events_are_found_at_once_in_the_order_in_which_they_were_appended(ground: &dyn Ground) {
    let (log, tenant) = (ground.log("order").await, tenant());
    for round in 0..4 {
        log.append(Some(tenant), &events(tenant, round * 5..round * 5 + 5)).await.expect("appended");
        let mut found = all(log.as_ref(), Some(tenant), 100).await;
        found.sort_by_key(|record| record.number);
        let numbers: Vec<i64> = found.iter().map(|record| record.number).collect();
        let ids: Vec<String> = found.iter().map(|record| record.ids[0].clone()).collect();
        let count = (round + 1) * 5;
        assert_eq!(ids, (0..count).map(|number| number.to_string()).collect::<Vec<_>>());
        assert_eq!(numbers, (1..).take(ids.len()).collect::<Vec<i64>>());
    }
    let report = only_report(log.as_ref(), tenant).await;
    assert_eq!((report.events, report.fault), (20, None));
    log.append(Some(tenant), &[]).await.expect("nothing to do");
    assert_eq!(only_report(log.as_ref(), tenant).await.events, 20);
}

/// Isolation.
pub async fn a_page_and_a_report_hold_no_event_of_another_tenant(ground: &dyn Ground) {
    let log = ground.log("isolation").await;
    let (alice, bob) = (tenant(), tenant());
    for (tenant, name) in [(alice, "alice"), (bob, "bob")] {
        let own = [event(Some(tenant), name), event(Some(tenant), name)];
        log.append(Some(tenant), &own).await.expect("appended");
    }
    log.append(None, &[event(None, "the deployment")]).await.expect("appended");
    for (tenant, name) in [(Some(alice), "alice"), (Some(bob), "bob"), (None, "the deployment")] {
        let found = all(log.as_ref(), tenant, 1).await;
        assert!(!found.is_empty() && found.iter().all(|record| record.ids == [name]), "{found:?}");
        assert!(found.iter().all(|record| record.tenant == tenant));
    }
    assert_eq!(only_report(log.as_ref(), alice).await.events, 2);
    assert!(all(log.as_ref(), Some(tenant()), 10).await.is_empty());
    assert!(log.append(Some(alice), &[event(Some(bob), "bob")]).await.is_err(), "a foreign event");
    assert_eq!(only_report(log.as_ref(), alice).await.events, 2);
}

/// Pages.
pub async fn pages_hold_each_event_once_newest_first(ground: &dyn Ground) {
    let tenant = tenant();
    for node in ["pages-1", "pages-2"] {
        // All of one time, so that only node and number tell them apart.
        let mut batch = events(tenant, 0..60);
        let at = "2026-01-31T12:00:00.123456Z".parse().expect("a time");
        for event in &mut batch {
            event.at = at;
        }
        ground.log(node).await.append(Some(tenant), &batch).await.expect("appended");
    }
    let log = ground.log("pages-1").await;
    for size in [7, 60, 1000] {
        let seen = all(log.as_ref(), Some(tenant), size).await;
        let places: Vec<_> = seen.iter().map(|record| (&record.at, &record.node, record.number)).collect();
        assert_eq!(places.len(), 120, "pages of {size}");
        assert!(places.is_sorted_by(|a, b| a > b), "pages of {size}");
    }
}

/// Servers have chains of their own, and many writers of one take turns.
pub async fn servers_have_chains_of_their_own_and_writers_take_turns(ground: &dyn Ground) {
    let tenant = tenant();
    let logs = [ground.log("turns-1").await, ground.log("turns-2").await];
    let appends = (0..24u64).map(|number| {
        let log = &logs[usize::from(number % 4 == 0)];
        let batch = events(tenant, number * 10..number * 10 + 1 + number % 3);
        async move { log.append(Some(tenant), &batch).await }
    });
    for appended in futures::future::join_all(appends).await {
        appended.expect("appended");
    }
    let reports = logs[0].verify(Some(tenant)).await.expect("examined");
    let expected = |node: usize| -> i64 {
        (0..24).filter(|number| usize::from(number % 4 == 0) == node).map(|number| 1 + number % 3).sum()
    };
    let seen: Vec<_> = reports.iter().map(|report| (report.events, report.fault)).collect();
    assert_eq!(seen, [(expected(0), None), (expected(1), None)], "{reports:?}");
}

/// A caller who goes away leaves whole events or none.
pub async fn cancelled_callers_leave_whole_chains_and_no_event_twice(ground: &dyn Ground) {
    let (log, tenant) = (ground.log("cancelled").await, tenant());
    let mut acknowledged = Vec::new();
    for number in 0..60u64 {
        let batch = events(tenant, number * 10..number * 10 + 3);
        let append = log.append(Some(tenant), &batch);
        let patience = Duration::from_micros(number * 200);
        if let Ok(appended) = tokio::time::timeout(patience, append).await {
            appended.expect("appended");
            acknowledged.extend(number * 10..number * 10 + 3);
        }
    }
    log.append(Some(tenant), &events(tenant, 9000..9001)).await.expect("appended");
    acknowledged.push(9000);
    let mut count: BTreeMap<u64, usize> = BTreeMap::new();
    for record in all(log.as_ref(), Some(tenant), 100).await {
        *count.entry(record.ids[0].parse().expect("a number")).or_default() += 1;
    }
    assert!(count.values().all(|count| *count == 1), "{count:?}");
    assert!(acknowledged.iter().all(|number| count.contains_key(number)), "{acknowledged:?} {count:?}");
    let report = only_report(log.as_ref(), tenant).await;
    assert_eq!((usize::try_from(report.events), report.fault), (Ok(count.len()), None));
}

/// Examination.
pub async fn each_kind_of_damage_is_found_and_named(ground: &dyn Ground) {
    let log = ground.log("damage").await;
    for damage in Damage::ALL {
        let tenant = tenant();
        log.append(Some(tenant), &events(tenant, 0..8)).await.expect("appended");
        log.append(Some(tenant), &events(tenant, 8..12)).await.expect("appended");
        assert_eq!(only_report(log.as_ref(), tenant).await.fault, None);
        ground.damage(tenant, damage).await;
        let report = only_report(log.as_ref(), tenant).await;
        assert_eq!(report.fault, Some(damage.fault()), "{damage:?}: {report:?}");
    }
}

/// What an export is made of.
pub async fn links_and_spans_are_read_in_order_and_by_time(ground: &dyn Ground) {
    let (log, tenant) = (ground.log("links").await, tenant());
    let at = |minute: u64| format!("2026-01-31T12:{minute:02}:00.000001Z").parse().expect("a time");
    let batch: Vec<AuditEvent> = (0..10)
        .map(|minute| AuditEvent { at: at(minute), ..event(Some(tenant), &minute.to_string()) })
        .collect();
    log.append(Some(tenant), &batch).await.expect("appended");
    let node = only_report(log.as_ref(), tenant).await.node;
    let mut numbers = Vec::new();
    loop {
        let after = numbers.last().copied().unwrap_or(0);
        let page = log.links(Some(tenant), &node, (after, 9), 4).await.expect("links");
        if page.is_empty() {
            break;
        }
        numbers.extend(page.iter().map(|event| event.number));
    }
    assert_eq!(numbers, (1..=9).collect::<Vec<i64>>());
    let span = async |since: Option<u64>, until: Option<u64>| {
        let times = Times { since: since.map(at), until: until.map(at) };
        log.span(Some(tenant), &node, times).await.expect("a span")
    };
    assert_eq!(span(None, None).await, Some((1, 10)));
    assert_eq!(span(Some(3), Some(7)).await, Some((4, 7)));
    assert_eq!(span(Some(20), None).await, None);
    assert!(log.links(Some(self::tenant()), &node, (0, 9), 4).await.expect("links").is_empty());
}

/// Usage.
pub async fn events_are_counted_by_day_and_kind_for_one_tenant(ground: &dyn Ground) {
    let (log, alice, bob) = (ground.log("days").await, tenant(), tenant());
    let on = |tenant, day: u32| {
        let at = format!("2026-01-{day:02}T23:59:59.999999Z").parse().expect("a time");
        AuditEvent { at, ..event(Some(tenant), "one") }
    };
    let own = [on(alice, 1), on(alice, 1), on(alice, 2), on(alice, 3)];
    log.append(Some(alice), &own).await.expect("appended");
    log.append(Some(bob), &[on(bob, 1)]).await.expect("appended");
    let times = Times { since: None, until: Some("2026-01-03T00:00:00Z".parse().expect("a time")) };
    let days = log.days(Some(alice), times).await.expect("days");
    let days: Vec<_> = days.iter().map(|day| (day.day.as_str(), day.kind.as_str(), day.events)).collect();
    assert_eq!(days, [("2026-01-01", "query", 2), ("2026-01-02", "query", 1)]);
}

/// Everything.
pub async fn conforms(ground: &dyn Ground) {
    events_are_found_at_once_in_the_order_in_which_they_were_appended(ground).await;
    a_page_and_a_report_hold_no_event_of_another_tenant(ground).await;
    pages_hold_each_event_once_newest_first(ground).await;
    servers_have_chains_of_their_own_and_writers_take_turns(ground).await;
    cancelled_callers_leave_whole_chains_and_no_event_twice(ground).await;
    each_kind_of_damage_is_found_and_named(ground).await;
    links_and_spans_are_read_in_order_and_by_time(ground).await;
    events_are_counted_by_day_and_kind_for_one_tenant(ground).await;
}
