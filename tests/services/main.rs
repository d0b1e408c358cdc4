//! What runs on services beside the embedded stores, and one behaviour for a service and what is embedded.
//!
//! Each service is started here from what `make setup` obtained, or is the one that `REDIS_URL` or `NEO4J_URL` names. Where there is
//! none its tests are shown as ignored, never as passed, and `BULKHEAD_REQUIRE=redis,neo4j` turns absence into failure. The
//! last lines say what each service was.

/// Tests by their names.
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        vec![$((
            stringify!($name),
            (|| -> futures::future::BoxFuture<'static, ()> { Box::pin($name()) }) as crate::Run,
        )),*]
    };
}

/// The same tests over what is in memory and over a service, as two lists of their names.
macro_rules! behaviours {
    ($service:ident as $in_service:ident: $($name:ident),* $(,)?) => {
        /// All of them, over memory.
        pub fn in_memory() -> Vec<crate::Test> {
            vec![$((
                stringify!($name),
                (|| -> futures::future::BoxFuture<'static, ()> { Box::pin($name(memory())) }) as crate::Run,
            )),*]
        }

        /// All of them, over the service.
        pub fn $in_service() -> Vec<crate::Test> {
            vec![$((
                stringify!($name),
                (|| -> futures::future::BoxFuture<'static, ()> { Box::pin($name($service())) }) as crate::Run,
            )),*]
        }
    };
}

mod cached_answers;
mod caches;
mod clusters;
mod cut_off;
mod database;
mod failover;
mod graphs;
mod graphs_neo4j;
mod graphs_removed;
mod graphs_server;
mod graphs_verify;
mod limits;
mod model;
mod neo4j_server;
mod nodes;
mod pgbouncer;
mod pgbouncer_server;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/proxy.rs"]
mod proxy;
#[path = "../support/qdrant/mod.rs"]
#[expect(dead_code, reason = "the suite uses all of it")]
mod qdrant_stand_in;
mod recall;
mod redis_cache;
mod redis_limits;
mod redis_server;
mod replica;
mod servers;
mod several;
mod stores;
mod whole;

use libtest_mimic::{Arguments, Failed, Trial};

/// What a test does, on a runtime of its own.
type Run = fn() -> futures::future::BoxFuture<'static, ()>;

/// A test with its name.
type Test = (&'static str, Run);

fn main() {
    stores::serve_as_stand_in();
    let arguments = Arguments::from_args();
    // What a server here names as its own fault, a failing test must tell.
    tracing_subscriber::fmt().with_max_level(tracing::Level::ERROR).with_writer(std::io::stderr).init();
    // The provider of the client's TLS; a second call in one process changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let redis = redis_server::found();
    let absent = redis.as_ref().err();
    let pgbouncer = pgbouncer_server::found();
    let mongodb = stores::mongodb_found();
    let neo4j = neo4j_server::found();
    let graphless = neo4j.as_ref().err();
    // Where all are needed, any may be what is missing.
    let any_absent = absent.or(mongodb.as_ref().err()).or(graphless);
    let suites = vec![
        ("graphs", "memory", None, graphs::in_memory()),
        ("graphs", "neo4j", graphless, graphs::in_neo4j()),
        ("graphs", "neo4j", graphless, graphs::of_both()),
        ("graphs_neo4j", "neo4j", graphless, graphs_neo4j::tests()),
        ("graphs_removed", "neo4j", graphless, graphs_removed::tests()),
        ("graphs_server", "neo4j", graphless, graphs_server::tests()),
        ("graphs_verify", "neo4j", graphless, graphs_verify::tests()),
        ("limits", "memory", None, limits::in_memory()),
        ("limits", "redis", absent, limits::in_redis()),
        ("caches", "memory", None, caches::in_memory()),
        ("caches", "redis", absent, caches::in_redis()),
        ("redis_cache", "redis", absent, redis_cache::tests()),
        ("cached_answers", "redis", absent, cached_answers::tests()),
        ("redis_limits", "redis", absent, redis_limits::tests()),
        ("servers", "redis", absent, servers::tests()),
        ("failover", "postgresql", None, failover::tests()),
        ("replica", "postgresql", None, replica::tests()),
        ("pgbouncer", "pgbouncer", pgbouncer.as_ref().err(), pgbouncer::tests()),
        ("cut_off", "mongodb", any_absent, cut_off::tests()),
        ("recall", "mongodb", any_absent, recall::tests()),
        ("several", "mongodb", any_absent, several::tests()),
    ];
    let trials = suites.into_iter().flat_map(|(module, service, absent, tests)| {
        tests.into_iter().map(move |(name, test)| trial(&format!("{module}::{name}"), service, absent, test))
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    limits::end_shared();
    neo4j_server::end_shared();
    if !arguments.list {
        for (name, service) in [("neo4j", &neo4j), ("redis", &redis), ("pgbouncer", &pgbouncer)] {
            match service {
                Ok(found) => println!("service {name}: {found}\n"),
                Err(why) => println!("service {name}: ignored: {why}\n"),
            }
        }
        match &mongodb {
            Ok(found) => println!("service mongodb: {found}; service qdrant: {}\n", qdrant_stand_in::VERSION),
            Err(why) => println!("service mongodb: ignored: {why}\n"),
        }
    }
    conclusion.exit();
}

fn trial(name: &str, service: &str, absent: Option<&String>, test: Run) -> Trial {
    let why = absent.cloned();
    let ignored = absent.is_some() && !required(service);
    let run = move || {
        if let Some(why) = why {
            return Err(Failed::from(why));
        }
        let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
        threads.expect("a runtime").block_on(test());
        Ok(())
    };
    Trial::test(name, run).with_kind(service).with_ignored_flag(ignored)
}

fn required(service: &str) -> bool {
    std::env::var("BULKHEAD_REQUIRE").is_ok_and(|all| all.split(',').any(|one| one.trim() == service))
}
