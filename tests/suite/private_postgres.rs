//! The private PostgreSQL: made, started, watched, adopted, stopped.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use bulkhead::store::postgres::bootstrap::Bootstrapped;
use bulkhead::store::postgres::roles::Role;
use bulkhead::store::postgres::server::{LockError, ServerError, ServerState};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::place::{Place, connect, text};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).mode() & 0o777
}

fn raw(pid: i32) -> Pid {
    Pid::from_raw(pid)
}

#[tokio::test]
async fn there_is_no_tcp_and_every_folder_is_private() {
    let place = Place::new();
    let server = place.start().await;
    let data = &place.paths.data_dir;
    let mut connection = connect(&server.superuser()).await;
    assert_eq!(text(&mut connection, "SHOW listen_addresses").await, "");
    assert_eq!(text(&mut connection, "SHOW data_checksums").await, "on");
    assert_eq!(text(&mut connection, "SHOW server_encoding").await, "UTF8");
    let rules: Vec<String> = sqlx::query_scalar(
        "SELECT concat_ws(' ', type, database::text, user_name::text, auth_method) \
           FROM pg_hba_file_rules",
    )
    .fetch_all(&mut connection)
    .await
    .expect("rules");
    assert_eq!(rules, ["local {all} {all} scram-sha-256"]);
    // The kernel's word: no listening TCP socket belongs to the postmaster.
    let tcp: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| table.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    for entry in fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("descriptors").flatten() {
        let link = fs::read_link(entry.path()).unwrap_or_default().to_string_lossy().into_owned();
        if let Some(inode) = link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) {
            assert!(!tcp.iter().any(|line| line.split_whitespace().nth(9) == Some(inode)), "{link}");
        }
    }

    for folder in ["postgres", "postgres-socket", "postgres-logs", "secrets"] {
        assert_eq!(mode(&data.join(folder)), 0o700, "{folder}");
    }
    assert_eq!(mode(data) & 0o007, 0, "others cannot pass the data folder");
    for secret in fs::read_dir(data.join("secrets")).expect("secrets").flatten() {
        assert_eq!(mode(&secret.path()), 0o600);
        assert_eq!(fs::metadata(secret.path()).expect("file").uid(), nix::unistd::geteuid().as_raw());
    }
    assert!(!data.join("postgres.password").exists());
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("bulkhead-postgres").expect("users").expect("user");
        let process = fs::metadata(format!("/proc/{}", server.pid())).expect("process");
        assert_eq!(process.uid(), user.uid.as_raw());
        assert_eq!(fs::metadata(data.join("postgres")).expect("cluster").uid(), user.uid.as_raw());
    }
    drop(connection);
    server.stop().await.expect("stopped");
}

#[tokio::test]
async fn a_second_start_takes_less_than_a_second_and_finds_the_data() {
    let place = Place::new();
    let server = place.start().await;
    assert_eq!(server.bootstrap("bulkhead").await.expect("first"), Bootstrapped::Changed);
    assert_eq!(server.bootstrap("bulkhead").await.expect("second"), Bootstrapped::Ready);
    server.stop().await.expect("stopped");
    assert!(!place.paths.data_dir.join("postgres/postmaster.pid").exists());

    let clock = Instant::now();
    let server = place.start().await;
    let started = clock.elapsed();
    let ready = server.bootstrap("bulkhead").await.expect("third");
    println!("existing cluster: start {started:?}, with bootstrap {:?}", clock.elapsed());
    assert_eq!(ready, Bootstrapped::Ready);
    assert!(!server.was_adopted());
    assert!(started < Duration::from_secs(1), "{started:?}");
    server.stop().await.expect("stopped");
}

#[tokio::test]
async fn a_killed_postmaster_is_started_again() {
    let place = Place::new();
    let server = place.start().await;
    server.bootstrap("bulkhead").await.expect("bootstrap");
    let mut state = server.watch();
    assert_eq!(*state.borrow_and_update(), ServerState::Running);
    kill(raw(server.pid()), Signal::SIGKILL).expect("killed");
    state.changed().await.expect("watched");
    let wait = state.wait_for(|state| *state == ServerState::Running);
    tokio::time::timeout(Duration::from_secs(30), wait).await.expect("in time").expect("watched");
    connect(&server.addresses("bulkhead").app).await;
    server.stop().await.expect("stopped");
}

#[tokio::test]
async fn a_server_that_cannot_be_restarted_is_reported_and_still_stops() {
    let place = Place::new();
    let server = place.start().await;
    let mut state = server.watch();
    let cluster = server.cluster_dir().to_owned();
    fs::rename(cluster.join("global"), cluster.join("hidden")).expect("damage");
    kill(raw(server.pid()), Signal::SIGKILL).expect("killed");
    let down = state.wait_for(|state| matches!(state, ServerState::Down { .. }));
    let reason = tokio::time::timeout(Duration::from_secs(30), down).await.expect("in time");
    let ServerState::Down { reason } = reason.expect("watched").clone() else { unreachable!() };
    assert!(reason.contains("last words") && reason.contains("global"), "{reason}");
    server.stop().await.expect("nothing to stop");
    let refused = place.try_start().await.expect_err("damaged");
    assert!(matches!(refused, ServerError::Exited { .. }), "{refused}");
}

#[tokio::test]
async fn a_server_left_by_a_killed_parent_is_adopted() {
    let place = Place::new();
    let first = place.start().await;
    first.bootstrap("bulkhead").await.expect("bootstrap");
    let pid = first.pid();
    drop(first);

    let second = place.start().await;
    assert!(second.was_adopted());
    assert_eq!(second.pid(), pid);
    connect(&second.address(Role::App, "bulkhead")).await;
    // It is watched like a child.
    let mut state = second.watch();
    kill(raw(pid), Signal::SIGKILL).expect("killed");
    state.changed().await.expect("watched");
    let wait = state.wait_for(|state| *state == ServerState::Running);
    tokio::time::timeout(Duration::from_secs(30), wait).await.expect("in time").expect("watched");
    connect(&second.address(Role::App, "bulkhead")).await;
    second.stop().await.expect("stopped");
}

#[tokio::test]
async fn an_adopted_server_is_stopped_with_its_new_parent() {
    let place = Place::new();
    drop(place.start().await);
    let second = place.start().await;
    assert!(second.was_adopted());
    let pid = second.pid();
    second.stop().await.expect("stopped");
    assert!(!place.paths.data_dir.join("postgres/postmaster.pid").exists());
    assert!(kill(raw(pid), None).is_err());
}

#[tokio::test]
async fn a_left_server_with_other_settings_or_a_deaf_one_is_replaced() {
    let mut place = Place::new();
    let first = place.start().await;
    let old = first.pid();
    drop(first);
    place.settings.max_connections = 30;
    let second = place.start().await;
    assert!(!second.was_adopted());
    assert_ne!(second.pid(), old);
    let mut connection = connect(&second.superuser()).await;
    assert_eq!(text(&mut connection, "SHOW max_connections").await, "30");
    drop(connection);

    let deaf = second.pid();
    drop(second);
    kill(raw(deaf), Signal::SIGSTOP).expect("stopped");
    place.settings.stop_timeout = Duration::from_millis(200);
    let resume = tokio::task::spawn_blocking(move || {
        // Signals wait for a stopped process; this stands for one that was only slow.
        std::thread::sleep(Duration::from_secs(5));
        kill(Pid::from_raw(deaf), Signal::SIGCONT)
    });
    let third = place.start().await;
    assert!(!third.was_adopted());
    let _ = resume.await;
    third.stop().await.expect("stopped");
}

#[tokio::test]
async fn a_foreign_process_named_by_postmaster_pid_is_left_alone() {
    let place = Place::new();
    let server = place.start().await;
    server.stop().await.expect("stopped");
    let cluster = place.paths.data_dir.join("postgres");
    let mut foreign = Command::new("sleep").arg("600").current_dir(&cluster).spawn().expect("sleep");
    let text = format!("{}\n{}\n1\n5432\n\n\n", foreign.id(), cluster.display());
    fs::write(cluster.join("postmaster.pid"), text).expect("pid file");
    let server = place.start().await;
    assert!(!server.was_adopted());
    assert!(foreign.try_wait().expect("status").is_none(), "the foreign process lives");
    server.stop().await.expect("stopped");
    assert!(foreign.try_wait().expect("status").is_none(), "the foreign process lives");
    foreign.kill().expect("ended");
    foreign.wait().expect("reaped");
}

#[tokio::test]
async fn a_data_folder_serves_one_process() {
    let place = Place::new();
    let server = place.start().await;
    let refused = place.try_start().await.expect_err("locked");
    assert!(matches!(refused, ServerError::Lock(LockError::LockedBy { pid: Some(_), .. })));
    server.stop().await.expect("stopped");
    place.start().await.stop().await.expect("free again");
}

#[tokio::test]
async fn no_value_statement_or_parameter_reaches_the_log() {
    let place = Place::new();
    let server = place.start().await;
    server.bootstrap("bulkhead").await.expect("bootstrap");
    let canary = "canary-3f9d1c";
    let mut owner = connect(&server.address(Role::Owner, "bulkhead")).await;
    sqlx::raw_sql("CREATE TABLE t (id text PRIMARY KEY)").execute(&mut owner).await.expect("table");
    for _ in 0..2 {
        let _ = sqlx::query("INSERT INTO t VALUES ($1)").bind(canary).execute(&mut owner).await;
    }
    let cast = sqlx::query("SELECT $1::text::uuid").bind(canary).execute(&mut owner).await;
    assert!(cast.expect_err("no uuid").to_string().contains(canary), "the caller is told");
    drop(owner);
    let logs = server.log_dir().to_owned();
    server.stop().await.expect("stopped");
    let mut seen = String::new();
    for file in fs::read_dir(logs).expect("logs").flatten() {
        seen += &fs::read_to_string(file.path()).expect("log");
    }
    assert!(seen.contains("database system is shut down"), "{seen}");
    assert!(!seen.contains(canary) && !seen.contains("INSERT"), "{seen}");
}

#[tokio::test]
async fn lost_secrets_and_absent_programs_are_named() {
    let mut place = Place::new();
    place.start().await.stop().await.expect("stopped");
    let secrets = place.paths.data_dir.join("secrets");
    fs::rename(&secrets, place.paths.data_dir.join("kept")).expect("moved");
    let refused = place.try_start().await.expect_err("other secret");
    assert!(matches!(&refused, ServerError::SecretRefused { .. }), "{refused}");
    fs::remove_dir_all(&secrets).expect("removed");
    fs::rename(place.paths.data_dir.join("kept"), &secrets).expect("restored");
    place.start().await.stop().await.expect("works again");

    place.paths.install = place.base.path().join("nowhere");
    let refused = place.try_start().await.expect_err("no programs");
    assert!(refused.to_string().contains("make setup"), "{refused}");
}

/// A root parent's system user cannot reach a closed folder; any other parent runs PostgreSQL as itself.
#[tokio::test]
async fn a_closed_folder_is_left_only_by_a_system_user_that_cannot_reach_it() {
    let moves = nix::unistd::geteuid().is_root();
    let mut place = Place::new();
    let closed = place.base.path().join("closed");
    fs::create_dir(&closed).expect("folder");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("chmod");
    place.paths.data_dir = closed.join("data");
    // The programs are hidden too: the folder with their libraries, as set-up unpacks it.
    let package = fs::canonicalize(&place.paths.install).expect("programs");
    let package = package.parent().and_then(Path::parent).expect("package").to_owned();
    let copied = Command::new("cp").arg("-a").arg(&package).arg(closed.join("package")).status();
    assert!(copied.expect("cp").success());
    let inside = fs::canonicalize(&place.paths.install).expect("programs");
    place.paths.install =
        closed.join("package").join(inside.strip_prefix(&package).expect("inside the package"));

    let server = place.start().await;
    server.bootstrap("bulkhead").await.expect("bootstrap");
    let cluster = server.cluster_dir().to_owned();
    assert_eq!(cluster.starts_with(&place.settings.relocation), moves, "{}", cluster.display());
    assert_eq!(mode(cluster.parent().expect("home")), if moves { 0o710 } else { 0o700 });
    connect(&server.address(Role::App, "bulkhead")).await;
    drop(server);
    let again = place.start().await;
    assert!(again.was_adopted());
    assert_eq!(again.cluster_dir(), cluster);
    again.stop().await.expect("stopped");

    // Recorded for ever: the folder's being open later does not make a second cluster.
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).expect("chmod");
    let later = place.start().await;
    assert_eq!(later.cluster_dir(), cluster);
    connect(&later.address(Role::App, "bulkhead")).await;
    later.stop().await.expect("stopped");
}
