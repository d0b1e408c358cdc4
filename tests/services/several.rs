//! Three servers over one set of stores.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::Test;
use crate::nodes::{HASHING, Node, PATIENCE, Tenant, client};
use crate::stores::Stores;

/// All of them.
pub fn tests() -> Vec<Test> {
    tests![
        three_servers_do_every_job_once_and_read_each_others_files,
        three_servers_have_one_limit_together_and_a_suspension_holds_on_all_within_two_seconds,
        the_jobs_of_a_server_that_is_killed_go_on_elsewhere_and_none_is_done_twice,
        a_rolling_restart_under_load_fails_no_request,
    ]
}

const LAMPS: &str = "Which lamps of Pier Nine does Ottoline Marsh light?";

struct Cluster {
    stores: Stores,
    nodes: [Node; 3],
}

impl Cluster {
    async fn start(name: &str, further: &str) -> Self {
        let stores = Stores::start(name).await;
        let further = format!("{HASHING}\ningestion.lease_seconds = 5\nlimits.local_share = 0.33\n{further}");
        let first = Node::start(&stores, "node-1", &further).await;
        let second = first.beside(&stores, "node-2", &further).await;
        let third = first.beside(&stores, "node-3", &further).await;
        Self { stores, nodes: [first, second, third] }
    }

    /// Every document of the deployment has its chunk once, and so many there are.
    async fn once(&self, documents: i64) {
        let query = "select count(*), count(distinct (tenant_id, document_id)) from chunk";
        let mut database = self.stores.connection().await;
        let counted: (i64, i64) = sqlx::query_as(query).fetch_one(&mut database).await.expect("counts");
        assert_eq!(counted, (documents, documents));
    }

    async fn end(mut self) {
        for node in &mut self.nodes {
            node.stop().await;
        }
        self.stores.stop().await;
    }
}

async fn put(node: &Node, tenant: &Tenant, number: usize) {
    let body = json!({"text": format!("Ottoline Marsh lights lamp {number} of Pier Nine at dusk.")});
    let answer = node.ask(tenant, "PUT", &format!("/documents/doc-{number}"), &body).await;
    assert!(answer.status.is_success(), "{answer:?}");
}

async fn three_servers_do_every_job_once_and_read_each_others_files() {
    const TEXTS: usize = 60;
    const FILES: usize = 15;
    let cluster = Cluster::start("several-jobs", "ingestion.batch_documents = 4").await;
    let tenants = [cluster.nodes[0].tenant().await, cluster.nodes[1].tenant().await];
    for tenant in &tenants {
        let texts = futures::stream::iter(0..TEXTS);
        texts.for_each_concurrent(6, |number| put(&cluster.nodes[number % 3], tenant, number)).await;
        for number in 0..FILES {
            // Three files at one server each: whoever is free reads them.
            let content = format!("# Bell\n\nThe bell of pier {number} rings at noon.\n");
            let name = format!("bell-{number}.md");
            let answer = cluster.nodes[number % 3].upload(tenant, &name, &content).await;
            assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        }
    }
    for (node, tenant) in [(2, 0), (0, 1)] {
        cluster.nodes[node].processed(&tenants[tenant], TEXTS + FILES).await;
    }
    cluster.once(2 * i64::try_from(TEXTS + FILES).expect("few")).await;
    // A job that was done twice was begun twice.
    let begun = "select coalesce(max(attempts), 0)::bigint from job";
    let mut database = cluster.stores.connection().await;
    let most: i64 = sqlx::query_scalar(begun).fetch_one(&mut database).await.expect("a count");
    assert!(most <= 1, "a job was begun {most} times");
    let question = json!({"query": "Which bell rings at noon?", "mode": "naive", "chunk_top_k": 1000});
    for node in &cluster.nodes {
        let answer = node.ask(&tenants[0], "POST", "/query/data", &question).await;
        assert!(answer.texts().len() >= FILES, "{}: {answer:?}", node.name);
        // Each of them keeps the graphs in Neo4j up, and none in another's way.
        for tenant in &tenants {
            node.followed(tenant, LAMPS).await;
        }
    }
    cluster.end().await;
}

async fn three_servers_have_one_limit_together_and_a_suspension_holds_on_all_within_two_seconds() {
    const LIMIT: usize = 30;
    let cluster =
        Cluster::start("several-limits", &format!("limits.tenant.requests_per_minute = {LIMIT}")).await;
    let tenant = cluster.nodes[0].tenant().await;
    let begun = Instant::now();
    let sent = (0..120).map(|n| cluster.nodes[n % 3].ask(&tenant, "GET", "/auth/whoami", &Value::Null));
    let answers = futures::future::join_all(sent).await;
    let allowed = answers.iter().filter(|answer| answer.status == StatusCode::OK).count();
    let came_back = usize::try_from(begun.elapsed().as_secs() / 2 + 1).expect("few");
    assert!((LIMIT..=LIMIT + came_back).contains(&allowed), "{allowed} were let in");

    let tenant = cluster.nodes[1].tenant().await;
    for node in &cluster.nodes {
        assert_eq!(node.ask(&tenant, "GET", "/auth/whoami", &Value::Null).await.status, StatusCode::OK);
    }
    let path = format!("/admin/tenants/{}/suspend", tenant.id);
    cluster.nodes[0].operate("POST", &path, &json!({"reason": "a test"}), 200).await;
    let since = Instant::now();
    for node in &cluster.nodes {
        loop {
            let answer = node.ask(&tenant, "GET", "/auth/whoami", &Value::Null).await;
            if answer.status != StatusCode::OK && answer.status != StatusCode::TOO_MANY_REQUESTS {
                break;
            }
            assert!(since.elapsed() < Duration::from_secs(2), "{} lets it in: {answer:?}", node.name);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    cluster.end().await;
}

/// Ends a server at a moment at which jobs are leased to it; how many.
async fn kill_at_work(cluster: &mut Cluster, tenant: &Tenant, next: &mut usize) -> i64 {
    let held = "select count(*) from job where state = 'running' and leased_by = $1";
    let mut database = cluster.stores.connection().await;
    let end = Instant::now() + PATIENCE;
    loop {
        let puts = (0..8).map(|n| put(&cluster.nodes[2], tenant, *next + n));
        futures::future::join_all(puts).await;
        *next += 8;
        // Halted, so that nothing changes between the look and the end.
        cluster.nodes[2].process().pause();
        let query = sqlx::query_scalar(held).bind(cluster.nodes[2].identity());
        let jobs: i64 = query.fetch_one(&mut database).await.expect("a count");
        if jobs > 0 {
            cluster.nodes[2].kill();
            return jobs;
        }
        cluster.nodes[2].process().resume();
        assert!(Instant::now() < end, "it never has a job");
    }
}

async fn the_jobs_of_a_server_that_is_killed_go_on_elsewhere_and_none_is_done_twice() {
    let mut cluster = Cluster::start("several-killed", "ingestion.batch_documents = 2").await;
    let (tenant, mut documents) = (cluster.nodes[0].tenant().await, 0);
    let jobs = kill_at_work(&mut cluster, &tenant, &mut documents).await;
    println!("killed with {jobs} jobs");
    // The others take new work meanwhile.
    for _ in 0..20 {
        put(&cluster.nodes[documents % 2], &tenant, documents).await;
        documents += 1;
    }
    cluster.nodes[0].processed(&tenant, documents).await;
    cluster.once(i64::try_from(documents).expect("few")).await;
    // It comes back, and everything is as it was.
    cluster.nodes[2].run();
    cluster.nodes[2].ready().await;
    cluster.nodes[2].processed(&tenant, documents).await;
    for node in &cluster.nodes {
        node.followed(&tenant, LAMPS).await;
    }
    cluster.end().await;
}

/// A load balancer: it looks at /ready ten times a second, sends to who is ready in turn, and tries the next one where
/// none was reached.
struct Balancer {
    nodes: Vec<String>,
    ready: Vec<AtomicBool>,
    next: AtomicUsize,
}

impl Balancer {
    fn over(nodes: &[Node]) -> Arc<Self> {
        let balancer = Self {
            nodes: nodes.iter().map(|node| node.url.clone()).collect(),
            ready: nodes.iter().map(|_| AtomicBool::new(true)).collect(),
            next: AtomicUsize::new(0),
        };
        Arc::new(balancer)
    }

    async fn look(self: Arc<Self>) {
        let http = client();
        loop {
            for (url, ready) in self.nodes.iter().zip(&self.ready) {
                let answer = http.get(format!("{url}/ready")).send().await;
                ready.store(answer.is_ok_and(|answer| answer.status() == StatusCode::OK), Ordering::Relaxed);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The next one that is ready.
    fn pick(&self) -> &str {
        loop {
            let n = self.next.fetch_add(1, Ordering::Relaxed) % self.nodes.len();
            if self.ready[n].load(Ordering::Relaxed) {
                return &self.nodes[n];
            }
        }
    }

    async fn send(&self, http: &reqwest::Client, tenant: &Tenant, number: usize) -> Result<(), String> {
        for last in [false, true] {
            let url = self.pick();
            let request = if number.is_multiple_of(3) {
                let body = json!({"text": format!("Ottoline Marsh lights lamp {number} of Pier Nine.")});
                http.put(format!("{url}/documents/doc-{number}")).json(&body)
            } else {
                let body = json!({"query": LAMPS, "mode": "mix"});
                http.post(format!("{url}/query/data")).json(&body)
            };
            match request.bearer_auth(&tenant.key).send().await {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(answer) => return Err(format!("{}: {:?}", answer.status(), answer.text().await)),
                Err(error) if error.is_connect() && !last => {}
                Err(error) => return Err(format!("{error:?}")),
            }
        }
        unreachable!("the second time decides")
    }
}

async fn a_rolling_restart_under_load_fails_no_request() {
    let mut cluster = Cluster::start("several-rolling", "http.drain_seconds = 1").await;
    let tenant = cluster.nodes[0].tenant().await;
    let balancer = Balancer::over(&cluster.nodes);
    let looking = tokio::spawn(Arc::clone(&balancer).look());
    let (stop, numbers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (balancer, tenant) = (Arc::clone(&balancer), tenant.clone());
            let (stop, numbers) = (Arc::clone(&stop), Arc::clone(&numbers));
            tokio::spawn(async move {
                // Connections are kept, as proxies do.
                let http = reqwest::Client::builder().pool_idle_timeout(Duration::from_secs(30)).build();
                let http = http.expect("a client");
                let mut failed = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let number = numbers.fetch_add(1, Ordering::Relaxed);
                    failed.extend(balancer.send(&http, &tenant, number).await.err());
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                failed
            })
        })
        .collect();
    for node in &mut cluster.nodes {
        node.stop().await;
        node.run();
        node.ready().await;
        // The load balancer has seen that it is back.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let failed: Vec<String> = futures::future::join_all(callers)
        .await
        .into_iter()
        .flat_map(|failed| failed.expect("a caller"))
        .collect();
    looking.abort();
    let sent = numbers.load(Ordering::Relaxed);
    assert!(failed.is_empty(), "{} of {sent} requests failed: {failed:?}", failed.len());
    assert!(sent > 100, "{sent} requests");
    println!("{sent} requests during a rolling restart");
    let writes = (0..sent).filter(|number| number.is_multiple_of(3)).count();
    cluster.nodes[0].processed(&tenant, writes).await;
    cluster.once(i64::try_from(writes).expect("few")).await;
    for node in &cluster.nodes {
        node.followed(&tenant, LAMPS).await;
    }
    cluster.end().await;
}
