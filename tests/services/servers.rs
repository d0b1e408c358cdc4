//! Whole servers over one PostgreSQL and one Redis.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use redis::AsyncCommands as _;
use reqwest::StatusCode;
use uuid::Uuid;

use crate::Test;
use crate::redis_server::RedisServer;
use crate::whole::{Folder, Tenant, Whole};

/// Requests that a tenant may send in a minute: one comes back in two seconds.
const LIMIT: usize = 30;

/// How long the servers may take to notice that Redis is back.
const PATIENCE: Duration = Duration::from_secs(30);

/// All of them.
pub fn tests() -> Vec<Test> {
    tests![
        two_servers_over_the_same_stores_have_one_limit_together_and_shares_while_redis_is_away,
        a_count_of_another_tenant_stops_the_request_and_is_in_the_audit_log,
    ]
}

/// A server's settings over a Redis, and over a database of its own or this one.
fn settings(redis: &RedisServer, database: &str) -> String {
    format!(
        "limits.backend = 'redis'
        limits.local_share = 0.5
        limits.tenant.requests_per_minute = {LIMIT}
        limits.address_requests_per_minute = 1000000
        redis.url = '{}'
        redis.calls.breaker_rest_ms = 200
        database.url = '{database}'",
        redis.url()
    )
}

async fn whoami(server: &Whole, tenant: &Tenant) -> reqwest::Response {
    server.request("GET", "/auth/whoami", tenant).send().await.expect("an answer")
}

/// Sends so many requests to the servers in turn; how many were answered with which status.
async fn send(servers: &[&Whole], tenant: &Tenant, requests: usize) -> BTreeMap<u16, usize> {
    let sent = (0..requests).map(|n| whoami(servers[n % servers.len()], tenant));
    let mut counted = BTreeMap::new();
    for answer in futures::future::join_all(sent).await {
        *counted.entry(answer.status().as_u16()).or_default() += 1;
    }
    counted
}

fn as_many_as_the_limit(counted: &BTreeMap<u16, usize>, requests: usize, since: Instant) {
    let came_back = usize::try_from(since.elapsed().as_secs() / 2 + 1).expect("few");
    let allowed = counted.get(&200).copied().unwrap_or_default();
    assert!(
        (LIMIT..=LIMIT + came_back).contains(&allowed),
        "{counted:?}, of which {came_back} may have come back"
    );
    assert_eq!(allowed + counted.get(&429).copied().unwrap_or_default(), requests, "{counted:?}");
}

/// The limit that a server tells a tenant that was not there before.
async fn limit_of_another(server: &Whole) -> usize {
    let answer = whoami(server, &server.tenant().await).await;
    answer.headers()["ratelimit-limit"].to_str().expect("text").parse().expect("a number")
}

async fn two_servers_over_the_same_stores_have_one_limit_together_and_shares_while_redis_is_away() {
    let (folder, mut redis) = (Folder::new(), RedisServer::start());
    let first = Whole::start(&folder.0.join("node-1"), &settings(&redis, "")).await;
    let second = first.beside(&folder.0.join("node-2"), &settings(&redis, &first.database_url())).await;
    let servers = [&first, &second];
    for server in servers {
        assert_eq!(limit_of_another(server).await, LIMIT, "Redis counts");
    }
    let tenant = first.tenant().await;
    let since = Instant::now();
    as_many_as_the_limit(&send(&servers, &tenant, 80).await, 80, since);

    // Each has its share of another tenant's limit, and none is answered by less than yes or no.
    let tenant = first.tenant().await;
    redis.process.kill();
    let since = Instant::now();
    as_many_as_the_limit(&send(&servers, &tenant, 80).await, 80, since);

    for server in servers {
        assert_eq!(limit_of_another(server).await, LIMIT / 2, "it counts alone");
    }

    redis.restart();
    let end = Instant::now() + PATIENCE;
    for server in servers {
        while limit_of_another(server).await != LIMIT {
            assert!(Instant::now() < end, "Redis is not used again");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let tenant = second.tenant().await;
    let since = Instant::now();
    as_many_as_the_limit(&send(&servers, &tenant, 80).await, 80, since);
    second.stop().await;
    first.stop().await;
}

async fn a_count_of_another_tenant_stops_the_request_and_is_in_the_audit_log() {
    let (folder, redis) = (Folder::new(), RedisServer::start());
    let server = Whole::start(&folder.0, &settings(&redis, "")).await;
    let (alice, bob) = (server.tenant().await, server.tenant().await);
    for tenant in [&alice, &bob] {
        assert_eq!(whoami(&server, tenant).await.status(), StatusCode::OK);
    }
    let mut connection = redis.connection().await;
    let mut key_of = async |tenant: &str| -> String {
        let keys: Vec<String> = connection.keys(format!("bulkhead:{{{tenant}}}:*")).await.expect("keys");
        keys.into_iter().next().expect("a key")
    };
    let (to, from) = (key_of(&alice.id).await, key_of(&bob.id).await);
    let value: String = connection.get(from).await.expect("a value");
    let _: () = connection.set(&to, value).await.expect("set");
    let answer = whoami(&server, &alice).await;
    assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let body = answer.text().await.expect("a body");
    assert!(body.contains("isolation-alarm") && !body.contains(&bob.id), "{body}");
    assert_eq!(whoami(&server, &bob).await.status(), StatusCode::OK);
    let alarms = "select tenant_id::text, body from audit_event where kind = 'alarm' order by tenant_id";
    let mut database = server.superuser().await;
    let alarms: Vec<(String, String)> = sqlx::query_as(alarms).fetch_all(&mut database).await.expect("rows");
    let whose: Vec<&str> = alarms.iter().map(|(tenant, _)| tenant.as_str()).collect();
    // In the deployment's log and in her own.
    assert_eq!(whose, [Uuid::nil().to_string(), alice.id], "{alarms:?}");
    assert!(!alarms[1].1.contains(&bob.id), "{alarms:?}");
    server.stop().await;
}
