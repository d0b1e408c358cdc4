//! Which of several servers is the primary, and what moves the pools when it is another one.
//!
//! Each server is asked whether it takes writes, of which cluster it is, and on which timeline; a promotion begins a
//! new timeline with a greater number.
//!
//! **Invariant:** pools are connected to one server, and to none of another cluster or of an older timeline than one
//! that was seen.
//! **Invariant:** a transaction that began before a change is not committed after it was noticed.

use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Row as _};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::address::ServerAddresses;
use super::error::NoPrimary;
use super::pools::Pools;
use super::{Postgres, Reach, RoleAddresses};
use crate::store::error::{ErrorKind, StoreError};

/// How often servers are asked, and how long each may take.
const LOOK: Duration = Duration::from_millis(500);
const ANSWER: Duration = Duration::from_secs(1);
/// How long a start waits for a primary.
const START: Duration = Duration::from_secs(30);
/// Connections that were opened so shortly after a change may have been begun before it.
const MARGIN: Duration = Duration::from_secs(1);

/// What a server says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    writes: bool,
    cluster: i64,
    /// 0 on a server that only reads.
    timeline: i64,
}

impl Standing {
    async fn of(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        // A server in recovery has no place of its own in the log, hence no file of one.
        let row = sqlx::query(
            "select not pg_is_in_recovery() and current_setting('transaction_read_only') = 'off' as writes,
                 (select system_identifier from pg_control_system()) as cluster,
                 case when pg_is_in_recovery() then 0
                      else ('x' || lpad(left(pg_walfile_name(pg_current_wal_lsn()), 8), 16, '0'))::bit(64)::bigint
                 end as timeline",
        )
        .fetch_one(connection)
        .await?;
        Ok(Self {
            writes: row.try_get("writes")?,
            cluster: row.try_get("cluster")?,
            timeline: row.try_get("timeline")?,
        })
    }
}

/// The cluster of a server.
pub(super) async fn cluster_of(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    Ok(Standing::of(connection).await?.cluster)
}

/// A branch of a cluster's history. Servers on the same one never say different things of the same position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct History {
    pub(super) cluster: i64,
    pub(super) timeline: i64,
}

impl std::fmt::Display for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.cluster, self.timeline)
    }
}

/// The server that is used, and what is known of its cluster.
#[derive(Debug, Clone, Copy)]
struct Chosen {
    server: Option<usize>,
    cluster: Option<i64>,
    timeline: i64,
    /// How often it was another one, and since when it is this one.
    changes: u64,
    moved: Option<Instant>,
}

impl Chosen {
    const NONE: Self = Self { server: None, cluster: None, timeline: 0, changes: 0, moved: None };

    /// Whether a server with this standing may be used.
    fn accepts(&self, standing: &Standing) -> bool {
        let known = self.cluster.is_none_or(|cluster| cluster == standing.cluster);
        standing.writes && known && standing.timeline >= self.timeline
    }
}

/// What follows from what servers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// This one is the primary.
    Primary(usize, Standing),
    /// None takes writes.
    Nobody,
    /// Several do, and nothing tells which of them should.
    Several,
}

/// Who is the primary: of those that may be used, the one on the newest timeline.
fn verdict(chosen: &Chosen, standings: &[Option<Standing>]) -> Verdict {
    let usable = || {
        let said = standings.iter().enumerate();
        said.filter_map(|(server, standing)| standing.map(|standing| (server, standing)))
            .filter(|(_, standing)| chosen.accepts(standing))
    };
    let Some(newest) = usable().map(|(_, standing)| standing.timeline).max() else { return Verdict::Nobody };
    let mut first = usable().filter(|(_, standing)| standing.timeline == newest);
    let stays = first.clone().find(|(server, _)| chosen.server == Some(*server));
    match (stays, first.next(), first.next()) {
        (Some((server, standing)), ..) | (None, Some((server, standing)), None) => {
            Verdict::Primary(server, standing)
        }
        _ => Verdict::Several,
    }
}

/// The servers that the database may be on, and which of them is used.
pub(super) struct Primary {
    servers: Vec<RoleAddresses>,
    chosen: watch::Sender<Chosen>,
}

impl Primary {
    /// Begins with the server that was found to be the primary.
    pub(super) fn new(reach: &Reach) -> Self {
        let servers = std::iter::once(&reach.primary).chain(&reach.others).cloned().collect();
        Self { servers, chosen: watch::Sender::new(Chosen { server: Some(0), ..Chosen::NONE }) }
    }

    /// How often the primary was another one.
    pub(super) fn changes(&self) -> u64 {
        self.chosen.borrow().changes
    }

    /// Whether a connection of this age may be to the server that was used before.
    pub(super) fn is_of_before(&self, age: Duration) -> bool {
        self.chosen.borrow().moved.is_some_and(|moved| age >= moved.elapsed().saturating_sub(MARGIN))
    }

    fn accepts(&self, standing: &Standing) -> bool {
        self.chosen.borrow().accepts(standing)
    }

    /// Refuses a new connection to a server that is not the primary.
    pub(super) async fn require(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        if self.accepts(&Standing::of(connection).await?) {
            return Ok(());
        }
        Err(NoPrimary.into())
    }

    /// The owner's connection to the primary, wherever that is now.
    async fn owner(&self) -> Result<PgConnection, sqlx::Error> {
        let first = self.chosen.borrow().server.unwrap_or_default();
        let (mut no_primary, mut last) = (false, NoPrimary.into());
        for at in 0..self.servers.len() {
            let server = &self.servers[(first + at) % self.servers.len()];
            let connected = async {
                let mut connection = server.owner.connect().await?;
                let accepted = self.accepts(&Standing::of(&mut connection).await?);
                Ok::<_, sqlx::Error>(accepted.then_some(connection))
            };
            match tokio::time::timeout(ANSWER, connected).await {
                Ok(Ok(Some(connection))) => return Ok(connection),
                Ok(Ok(None)) => no_primary = true,
                Ok(Err(error)) => last = error,
                Err(_elapsed) => last = sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()),
            }
        }
        // Of those that are away nothing is known; one that answered says most.
        Err(if no_primary { NoPrimary.into() } else { last })
    }

    /// Takes up what servers say. Connections go to the new primary before those of before are refused.
    fn settle(&self, verdict: Verdict, pools: &Pools) {
        let Verdict::Primary(server, standing) = verdict else { return };
        let moves = self.chosen.borrow().server != Some(server);
        if let Some(addresses) = self.servers.get(server).filter(|_| moves) {
            pools.connect_to(addresses);
        }
        self.chosen.send_modify(|chosen| {
            (chosen.cluster, chosen.timeline) = (Some(standing.cluster), standing.timeline);
            if moves {
                chosen.server = Some(server);
                chosen.changes += 1;
                chosen.moved = Some(Instant::now());
            }
        });
        if let Some(addresses) = self.servers.get(server).filter(|_| moves) {
            let (host, port) = (addresses.owner.get_host(), addresses.owner.get_port());
            let socket = addresses.owner.get_socket().map(|socket| socket.display().to_string());
            let words = "the primary of the database is another server; it is used from now on";
            tracing::warn!(host, port, socket, timeline = standing.timeline, "{words}");
        }
    }
}

/// A connection to each server, to ask it.
struct Asked {
    address: PgConnectOptions,
    connection: Option<PgConnection>,
}

impl Asked {
    fn new(address: &PgConnectOptions) -> Self {
        Self { address: address.clone().disable_statement_logging(), connection: None }
    }

    /// `None`: it does not answer.
    async fn standing(&mut self) -> Option<Standing> {
        let asked = async {
            let mut connection = match self.connection.take() {
                Some(connection) => connection,
                None => self.address.connect().await.ok()?,
            };
            let standing = Standing::of(&mut connection).await.ok()?;
            self.connection = Some(connection);
            Some(standing)
        };
        tokio::time::timeout(ANSWER, asked).await.ok().flatten()
    }
}

async fn ask(servers: &mut [Asked]) -> Vec<Option<Standing>> {
    futures::future::join_all(servers.iter_mut().map(Asked::standing)).await
}

impl ServerAddresses {
    /// The administrator's address on the primary, and those on the others. Of one server alone nothing is asked.
    ///
    /// # Errors
    /// `Unavailable` when there was none for 30 seconds.
    pub async fn primary(self) -> Result<(PgConnectOptions, Vec<PgConnectOptions>), StoreError> {
        const OPERATION: &str = "primary.find";
        let mut addresses = self.into_servers();
        if addresses.len() == 1 {
            return Ok((addresses.remove(0), addresses));
        }
        let mut servers: Vec<Asked> = addresses.iter().map(Asked::new).collect();
        let end = Instant::now() + START;
        loop {
            let verdict = verdict(&Chosen::NONE, &ask(&mut servers).await);
            match verdict {
                Verdict::Primary(server, _) => return Ok((addresses.remove(server), addresses)),
                Verdict::Several | Verdict::Nobody if Instant::now() < end => tokio::time::sleep(LOOK).await,
                Verdict::Several => {
                    let words = "several servers of the database's address take writes; only one may";
                    return Err(StoreError::new(ErrorKind::Unavailable, "postgres", OPERATION, words));
                }
                Verdict::Nobody => {
                    let words = "no server of the database's address takes writes";
                    return Err(StoreError::new(ErrorKind::Unavailable, "postgres", OPERATION, words));
                }
            }
        }
    }
}

impl Postgres {
    /// The owner's connection.
    pub(super) async fn owner(&self) -> Result<PgConnection, sqlx::Error> {
        match self.primary.as_deref() {
            Some(primary) => primary.owner().await,
            None => self.owner.connect().await,
        }
    }

    /// Moves the pools to whichever server is the primary, until stopped. Returns at once where there is one server,
    /// or a pooler whose task it is.
    pub async fn follow_primary(self, stop: CancellationToken) {
        let Some(primary) = self.pools.opening.primary().cloned() else { return };
        let mut servers: Vec<Asked> =
            primary.servers.iter().map(|server| Asked::new(&server.dispatch)).collect();
        let mut told = None;
        loop {
            let standings = ask(&mut servers).await;
            let verdict = verdict(&primary.chosen.borrow(), &standings);
            primary.settle(verdict, &self.pools);
            let kind = std::mem::discriminant(&verdict);
            let wrong = match verdict {
                Verdict::Primary(..) => None,
                Verdict::Nobody => Some("no server of the database takes writes; see that one is promoted"),
                Verdict::Several => Some(
                    "several servers of the database take writes and none is gone over to; stop those that should not",
                ),
            };
            if let Some(words) = wrong.filter(|_| told != Some(kind)) {
                tracing::error!("{words}");
            }
            told = Some(kind);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::error::failed;
    use super::*;

    fn primary(timeline: i64) -> Standing {
        Standing { writes: true, cluster: 7, timeline }
    }

    const STANDBY: Option<Standing> = Some(Standing { writes: false, cluster: 7, timeline: 0 });

    fn chosen(server: usize, timeline: i64) -> Chosen {
        Chosen { server: Some(server), cluster: Some(7), timeline, ..Chosen::NONE }
    }

    fn server(verdict: Verdict) -> Option<usize> {
        if let Verdict::Primary(server, _) = verdict { Some(server) } else { None }
    }

    #[test]
    fn the_one_that_takes_writes_is_the_primary() {
        assert_eq!(server(verdict(&Chosen::NONE, &[None, STANDBY, Some(primary(3))])), Some(2));
        assert_eq!(server(verdict(&chosen(0, 3), &[Some(primary(3)), STANDBY])), Some(0));
        assert_eq!(server(verdict(&chosen(0, 3), &[STANDBY, Some(primary(4))])), Some(1));
        assert_eq!(verdict(&chosen(0, 3), &[None, STANDBY]), Verdict::Nobody);
        assert_eq!(verdict(&chosen(0, 3), &[None, None]), Verdict::Nobody);
    }

    #[test]
    fn of_two_that_take_writes_the_promoted_one_is_the_primary_and_the_old_one_never_again() {
        assert_eq!(server(verdict(&chosen(0, 3), &[Some(primary(3)), Some(primary(4))])), Some(1));
        // The promoted one is away for a while, and the old one still there.
        assert_eq!(verdict(&chosen(1, 4), &[Some(primary(3)), None]), Verdict::Nobody);
    }

    #[test]
    fn between_two_of_one_timeline_nothing_decides_but_which_was_used() {
        assert_eq!(server(verdict(&chosen(1, 3), &[Some(primary(3)), Some(primary(3))])), Some(1));
        assert_eq!(verdict(&Chosen::NONE, &[Some(primary(3)), Some(primary(3))]), Verdict::Several);
        assert_eq!(verdict(&chosen(2, 3), &[Some(primary(3)), Some(primary(3)), None]), Verdict::Several);
    }

    #[test]
    fn a_server_of_another_cluster_is_never_the_primary() {
        let foreign = Some(Standing { writes: true, cluster: 8, timeline: 9 });
        assert_eq!(verdict(&chosen(0, 3), &[None, foreign]), Verdict::Nobody);
        assert_eq!(server(verdict(&chosen(0, 3), &[Some(primary(3)), foreign])), Some(0));
    }

    #[test]
    fn connections_of_before_a_change_are_known_by_their_age() {
        let options = PgConnectOptions::new_without_pgpass();
        let [owner, app, auth, dispatch, control] = std::array::from_fn(|_| options.clone());
        let primary = Primary::new(&Reach::from(&RoleAddresses { owner, app, auth, dispatch, control }));
        assert!(!primary.is_of_before(Duration::from_hours(1)), "there was no change");
        let moved = Instant::now().checked_sub(Duration::from_mins(1));
        primary.chosen.send_modify(|chosen| chosen.moved = moved);
        assert!(primary.is_of_before(Duration::from_secs(61)));
        assert!(primary.is_of_before(Duration::from_millis(59_500)), "begun before, perhaps");
        assert!(!primary.is_of_before(Duration::from_secs(30)));
    }

    #[tokio::test]
    async fn servers_that_do_not_answer_are_away_and_no_connection_is_in_use() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = silent.local_addr().expect("an address").port();
        let options = PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(port);
        let [owner, app, auth, dispatch, control] = std::array::from_fn(|_| options.clone());
        let primary = Primary::new(&Reach::from(&RoleAddresses { owner, app, auth, dispatch, control }));
        let error = primary.owner().await.map(drop).map_err(failed("owner.connect")).expect_err("silence");
        assert_eq!(
            (error.kind, error.context.as_str()),
            (ErrorKind::Unavailable, "the server cannot be reached")
        );
    }
}
