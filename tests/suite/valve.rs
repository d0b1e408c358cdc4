//! A valve between a server and PostgreSQL: open, closed, or holding everything back without a word.

use std::path::PathBuf;

use bulkhead::store::postgres::RoleAddresses;
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// What goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Everything.
    Open,
    /// Nothing: connections end, and there are no new ones.
    Closed,
    /// Nothing, and nobody is told.
    Held,
}

/// The valve.
pub struct Valve {
    _folder: TempDir,
    flow: watch::Sender<Flow>,
}

impl Valve {
    /// Puts itself before the addresses of every role.
    pub fn before(addresses: &mut RoleAddresses) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let file = format!(".s.PGSQL.{}", addresses.app.get_port());
        let target = addresses.app.get_socket().expect("a Unix socket").join(&file);
        let listener = UnixListener::bind(folder.path().join(&file)).expect("bound");
        let (flow, changes) = watch::channel(Flow::Open);
        tokio::spawn(accept(listener, target, changes));
        let RoleAddresses { owner, app, auth, dispatch, control } = addresses;
        for address in [owner, app, auth, dispatch, control] {
            *address = address.clone().socket(folder.path());
        }
        Self { _folder: folder, flow }
    }

    pub fn set(&self, flow: Flow) {
        self.flow.send(flow).expect("somebody listens");
    }
}

async fn accept(listener: UnixListener, target: PathBuf, flow: watch::Receiver<Flow>) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(pass(client, target.clone(), flow.clone()));
    }
}

async fn pass(mut client: UnixStream, target: PathBuf, mut flow: watch::Receiver<Flow>) {
    let Ok(mut server) = UnixStream::connect(&target).await else { return };
    let mut copied = std::pin::pin!(copy_bidirectional(&mut client, &mut server));
    loop {
        let now = *flow.borrow_and_update();
        if now == Flow::Closed {
            return;
        }
        tokio::select! {
            changed = flow.changed() => if changed.is_err() { return },
            // Ends with an error when either side hangs up.
            _ended = &mut copied, if now == Flow::Open => return,
        }
    }
}
