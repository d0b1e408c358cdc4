//! What runs on services beside the embedded stores, and one behaviour for a service and what is embedded.
//!
//! Each service is started here from what `make setup` obtained, or is the one that `REDIS_URL` names. Where there is
//! none its tests are shown as ignored, never as passed, and `BULKHEAD_REQUIRE=redis` turns absence into failure. The
//! last line says what each service was.

/// Tests by their names.
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        vec![$((
            stringify!($name),
            (|| -> futures::future::BoxFuture<'static, ()> { Box::pin($name()) }) as crate::Run,
        )),*]
    };
}

mod limits;
mod redis_limits;
mod redis_server;
mod servers;

use libtest_mimic::{Arguments, Failed, Trial};

/// What a test does, on a runtime of its own.
type Run = fn() -> futures::future::BoxFuture<'static, ()>;

/// A test with its name.
type Test = (&'static str, Run);

fn main() {
    let arguments = Arguments::from_args();
    // The provider of the client's TLS; a second call in one process changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let redis = redis_server::found();
    let absent = redis.as_ref().err();
    let suites = vec![
        ("limits", "memory", None, limits::in_memory()),
        ("limits", "redis", absent, limits::in_redis()),
        ("redis_limits", "redis", absent, redis_limits::tests()),
        ("servers", "redis", absent, servers::tests()),
    ];
    let trials = suites.into_iter().flat_map(|(module, service, absent, tests)| {
        tests.into_iter().map(move |(name, test)| trial(&format!("{module}::{name}"), service, absent, test))
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    limits::end_shared();
    if !arguments.list {
        match &redis {
            Ok(found) => println!("service redis: {found}\n"),
            Err(why) => println!("service redis: ignored: {why}\n"),
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
