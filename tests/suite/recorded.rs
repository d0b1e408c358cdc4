//! What operators and tenants' administrators change is done and recorded, or neither: with a log that takes nothing,
//! with one that is held by somebody else, and with everybody at once.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _};

use crate::place::connect;
use crate::server::{Answer, Client, PATIENCE, Tenant, TestServer, new_folder};

/// How long an action waits for its place in the log, milliseconds.
const WAIT: u64 = 700;
/// The nil uuid names the deployment's own log.
const DEPLOYMENT: &str = "00000000-0000-0000-0000-000000000000";

struct Ground {
    server: TestServer,
    operator: Client,
}

impl Ground {
    async fn new() -> Self {
        let settings = format!("embedding.model = 'hashing'\naudit.write_wait_ms = {WAIT}");
        let start = move || TestServer::start(&new_folder("recorded"), &settings);
        let server = tokio::task::spawn_blocking(start).await.expect("a server");
        let operator = server.operator();
        Self { server, operator }
    }

    async fn superuser(&self) -> PgConnection {
        connect(self.server.laboratory.superuser.as_ref().expect("a private database")).await
    }

    /// Every chain of the deployment and of these tenants is whole.
    async fn whole(&self, tenants: &[&Tenant]) {
        let of = |tenant: &&Tenant| format!("/admin/tenants/{}/audit/chains", tenant.id);
        for path in tenants.iter().map(of).chain(["/admin/audit/chains".to_owned()]) {
            let chains = self.operator.get(&path, 200).await;
            let chains = chains.as_array().expect("chains");
            assert!(!chains.is_empty() && chains.iter().all(|chain| chain["fault"].is_null()), "{chains:?}");
        }
    }

    async fn stop(self) {
        let server = self.server;
        tokio::task::spawn_blocking(move || server.stop()).await.expect("stopped");
    }
}

async fn run(superuser: &mut PgConnection, statement: String) {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(superuser).await.expect("done");
}

/// Everything that an action here can change, as one text.
async fn state(superuser: &mut PgConnection) -> String {
    sqlx::query_scalar(
        "select concat_ws(E'\\n',
             (select jsonb_agg(to_jsonb(t) order by tenant_id) from tenant t),
             (select jsonb_agg(to_jsonb(k) order by key_id) from api_key k),
             (select jsonb_agg(to_jsonb(o) order by key_id) from operator_key o),
             (select jsonb_agg(to_jsonb(j) order by job_id) from job j where kind <> 'ingest'),
             (select jsonb_agg(jsonb_build_array(tenant_id, name) order by tenant_id, name) from namespace),
             (select jsonb_agg(jsonb_build_array(tenant_id, document_id) order by tenant_id, document_id)
                 from document))",
    )
    .fetch_one(superuser)
    .await
    .expect("the state")
}

/// In how many chains each of these words is, and how often.
async fn recorded(superuser: &mut PgConnection, action: &str, reason: &str) -> Vec<(String, i64)> {
    sqlx::query_as(
        "select tenant_id::text, count(*) from audit_event
         where body::jsonb ->> 'action' = $1 and body::jsonb ->> 'reason' = $2 group by 1 order by 1",
    )
    .bind(action)
    .bind(reason)
    .fetch_all(superuser)
    .await
    .expect("counted")
}

/// An action: who does it, how, and what it is called in the log.
struct Action {
    caller: Client,
    method: &'static str,
    path: String,
    body: Value,
    name: &'static str,
}

impl Action {
    async fn done(&self) -> Answer {
        self.caller.send(self.method, &self.path, &self.body).await
    }
}

const REASON: &str = "a fire drill";

/// Actions of an operator on the deployment, on a tenant, and of the tenant's own administrator. The last deletes it.
fn actions(operator: &Client, tenant: &Tenant) -> [Vec<Action>; 3] {
    let at = |path: &str| format!("/admin/tenants/{}{path}", tenant.id);
    let by = |caller: &Client, method, path, further: Value, name| {
        let mut body = json!({"reason": REASON});
        body.as_object_mut().expect("fields").extend(further.as_object().cloned().unwrap_or_default());
        Action { caller: caller.clone(), method, path, body, name }
    };
    let operators = |method, path, further, name| by(operator, method, path, further, name);
    let key = json!({"name": "k", "roles": ["reader"]});
    let revoked = at(&format!("/keys/{}", tenant.admin_key.id));
    let own = |path: &str, name| Action {
        caller: tenant.admin.clone(),
        method: "DELETE",
        path: path.to_owned(),
        body: Value::Null,
        name,
    };
    [
        vec![
            operators("POST", "/admin/tenants".to_owned(), json!({"name": "Drill"}), "tenant.create"),
            operators("POST", "/admin/operators".to_owned(), json!({"name": "o"}), "operator.create"),
        ],
        vec![
            operators("PATCH", at("/limits"), json!({"documents": 7}), "tenant.limits"),
            operators("POST", at("/keys"), key, "key.create"),
            operators("POST", at("/reembed"), json!({"model": "hashing"}), "model.change"),
            operators("POST", at("/suspend"), json!({}), "tenant.suspend"),
            operators("POST", at("/resume"), json!({}), "tenant.resume"),
            operators("DELETE", revoked, json!({}), "key.revoke"),
            operators("DELETE", at(""), json!({}), "tenant.delete"),
        ],
        vec![own("/documents", "document.clear"), own("/namespaces/side", "namespace.delete")],
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_recorded_is_not_done() {
    let ground = Ground::new().await;
    let (alice, bob) = ground.server.tenants().await;
    let mut superuser = ground.superuser().await;
    for client in [&alice.writer, &alice.writer.with("x-namespace", "side")] {
        client.put_document("boats", "Boats", "Ottoline paints the boats.").await;
    }
    let by_itself: i64 = sqlx::query_scalar(
        "select count(*) from audit_event where body::jsonb ->> 'action' = 'operator.create'
             and body::jsonb ->> 'principal' = 'server'",
    )
    .fetch_one(&mut superuser)
    .await
    .expect("counted");
    assert_eq!(by_itself, 1, "the first operator's credential");

    let [deployment, operators, own] = actions(&ground.operator, &alice);
    run(
        &mut superuser,
        "create function refuse() returns trigger language plpgsql as $$ begin raise 'planted'; end $$"
            .to_owned(),
    )
    .await;
    // Whichever of the two chains does not take it: the other has nothing of it either.
    for (chain, refused) in [
        (DEPLOYMENT, deployment.iter().chain(&operators).collect::<Vec<_>>()),
        (alice.id.as_str(), operators.iter().chain(&own).collect()),
    ] {
        let trigger = format!(
            "create trigger refused before insert on audit_event for each row when (new.tenant_id = '{chain}')
             execute function refuse()"
        );
        run(&mut superuser, trigger).await;
        let before = state(&mut superuser).await;
        for action in refused {
            let answer = action.done().await;
            assert_eq!(answer.status, 500, "{}: {}", action.name, answer.text());
            assert_eq!(state(&mut superuser).await, before, "{} in {chain}", action.name);
            assert_eq!(recorded(&mut superuser, action.name, REASON).await, [], "{} in {chain}", action.name);
        }
        run(&mut superuser, "drop trigger refused on audit_event".to_owned()).await;
    }

    // Whoever is none of them is not in the way, and now each is done and recorded once.
    let both = [(DEPLOYMENT.to_owned(), 1), (alice.id.clone(), 1)];
    let once = |action: &Action| match action.name {
        "tenant.create" => 2,
        "operator.create" => 1,
        _ => both.len(),
    };
    for action in own.iter().chain(&deployment).chain(&operators) {
        let answer = action.done().await;
        assert!((200..300).contains(&answer.status), "{}: {}", action.name, answer.text());
        if action.body.is_null() {
            assert_eq!(recorded(&mut superuser, action.name, "").await, both[1..], "{}", action.name);
            continue;
        }
        let found = recorded(&mut superuser, action.name, REASON).await;
        assert_eq!(found.len(), once(action), "{}: {found:?}", action.name);
        assert!(found.iter().all(|(_, times)| *times == 1), "{}: {found:?}", action.name);
        if once(action) == 2 && action.name != "tenant.create" {
            assert_eq!(found, both, "{}", action.name);
        }
    }
    // The purge ends with its receipt, in both.
    let until = Instant::now() + PATIENCE;
    loop {
        let receipts: Vec<(String, i64)> = sqlx::query_as(
            "select tenant_id::text, count(*) from audit_event where body::jsonb ->> 'action' = 'tenant.purge'
             group by 1 order by 1",
        )
        .fetch_all(&mut superuser)
        .await
        .expect("counted");
        if receipts == both {
            break;
        }
        assert!(receipts.is_empty() && Instant::now() < until, "{receipts:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ground.whole(&[&alice, &bob]).await;
    superuser.close().await.expect("closed");
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_action_waits_for_its_place_in_the_log_for_so_long_and_is_not_done_then() {
    let ground = Ground::new().await;
    let (alice, bob) = ground.server.tenants().await;
    let (mut superuser, mut holder) = (ground.superuser().await, ground.superuser().await);
    let suspend = format!("/admin/tenants/{}/suspend", alice.id);
    for chain in [&alice.id, DEPLOYMENT] {
        let before = state(&mut superuser).await;
        run(&mut holder, format!("begin; select from audit_head where tenant_id = '{chain}' for update"))
            .await;
        let begun = Instant::now();
        let answer = ground.operator.send("POST", &suspend, &json!({"reason": REASON})).await;
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(begun.elapsed() >= Duration::from_millis(WAIT), "{:?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        run(&mut holder, "rollback".to_owned()).await;
        assert_eq!(state(&mut superuser).await, before);
        assert_eq!(recorded(&mut superuser, "tenant.suspend", REASON).await, []);
    }
    ground.operator.post(&suspend, &json!({"reason": REASON}), 200).await;
    let both = [(DEPLOYMENT.to_owned(), 1), (alice.id.clone(), 1)];
    assert_eq!(recorded(&mut superuser, "tenant.suspend", REASON).await, both);
    ground.whole(&[&alice, &bob]).await;
    superuser.close().await.expect("closed");
    holder.close().await.expect("closed");
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn actions_questions_and_refusals_at_once_leave_every_chain_whole() {
    const ROUNDS: i64 = 12;
    let ground = Ground::new().await;
    let (alice, bob) = ground.server.tenants().await;
    for tenant in [&alice, &bob] {
        tenant.writer.put_document("boats", "Boats", "Ottoline paints the boats.").await;
    }
    let operator = &ground.operator;
    let of_tenant = async |tenant: &Tenant| {
        for round in 0..ROUNDS {
            let limits = json!({"documents": 10 + round, "reason": REASON});
            let key = json!({"name": "k", "roles": ["reader"], "reason": REASON});
            let (limits_at, keys_at) = (
                format!("/admin/tenants/{}/limits", tenant.id),
                format!("/admin/tenants/{}/keys", tenant.id),
            );
            let asked = json!({"query": "Who paints the boats?", "only_need_context": true});
            let (set, made, answered, refused, listed) = tokio::join!(
                operator.send("PATCH", &limits_at, &limits),
                operator.send("POST", &keys_at, &key),
                tenant.reader.send("POST", "/query", &asked),
                tenant.reader.send("DELETE", "/documents/boats", &Value::Null),
                operator.send("GET", "/admin/tenants", &Value::Null),
            );
            let found = [set, made, answered, refused, listed].map(|answer| answer.status);
            assert_eq!(found, [200, 201, 200, 403, 200]);
        }
    };
    tokio::join!(of_tenant(&alice), of_tenant(&bob));
    let mut superuser = ground.superuser().await;
    let mut each =
        vec![(DEPLOYMENT.to_owned(), 2 * ROUNDS), (alice.id.clone(), ROUNDS), (bob.id.clone(), ROUNDS)];
    each.sort();
    for action in ["tenant.limits", "key.create"] {
        assert_eq!(recorded(&mut superuser, action, REASON).await, each, "{action}");
    }
    ground.whole(&[&alice, &bob]).await;
    superuser.close().await.expect("closed");
    ground.stop().await;
}
