//! No descriptor left: neither for connections nor for files, and then there are some again.

use std::time::Duration;

use rlimit::Resource;
use tokio::net::TcpStream;

use super::Town;
use crate::crashes::child::Running;

fn in_use(server: &Running) -> u64 {
    let listed = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("a process");
    listed.count() as u64
}

/// Lets the server have at most so many, for now.
fn limit(server: &Running, most: u64) {
    let (mut soft, mut hard) = (0, 0);
    let pid = server.pid().as_raw();
    rlimit::prlimit(pid, Resource::NOFILE, None, Some((&mut soft, &mut hard))).expect("read");
    rlimit::prlimit(pid, Resource::NOFILE, Some((most, hard)), None).expect("limited");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_descriptors_refuses_and_goes_on_when_there_are_some_again() {
    let mut town = Town::new().await;
    // Callers who say nothing keep their descriptors until they are let go.
    let silent = [("BULKHEAD__HTTP__HEAD_SECONDS", "600"), ("BULKHEAD__HTTP__KEEP_ALIVE_SECONDS", "600")];
    let server = town.ground.start_with(&silent).await;
    town.send(&server, 2).await;
    town.check(&server).await;
    let address = server.url().trim_start_matches("http://").to_owned();

    // A few are left, and more callers come who say nothing, though fewer than the kernel lets wait.
    limit(&server, in_use(&server) + 10);
    let mut held = Vec::new();
    for _ in 0..60 {
        held.push(TcpStream::connect(&address).await.expect("the kernel takes it"));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    // On the connection that they have, the tenants are answered, or refused in order.
    town.send(&server, 1).await;
    // A file wants a descriptor.
    let upload = town.upload(&server, 0, "late.txt", "The tide is late.");
    if let Ok(answer) = upload.send().await {
        assert_eq!(answer.status(), 503, "{}", town.ground.log());
        assert!(answer.headers().contains_key("retry-after"));
    }
    assert!(in_use(&server) > 0, "it lives");
    drop(held);
    limit(&server, 1024);
    town.check(&server).await;
    town.served_by_shards(&server).await;
    town.assert_told("Too many open files");
    town.send(&server, 1).await;
    town.check(&server).await;
    assert!(server.terminate().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_leave_the_stores_their_descriptors_however_many_come() {
    let mut town = Town::new().await;
    let server = town.ground.start_by(&["prlimit", "--nofile=400:400"], &[]).await;
    town.send(&server, 2).await;
    let address = server.url().trim_start_matches("http://").to_owned();
    let mut held = Vec::new();
    for _ in 0..600 {
        held.push(TcpStream::connect(&address).await.expect("the kernel takes it"));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(in_use(&server) < 400, "{} of 400", in_use(&server));
    // As callers with a connection of their own.
    town.check(&server).await;
    town.served_by_shards(&server).await;
    drop(held);
    town.send(&server, 1).await;
    town.check(&server).await;
    let log = town.ground.whole_log();
    assert!(!log.contains("Too many open files"), "{log}");
    town.assert_told("raise the limit on open files");
    assert!(server.terminate().success());
}
