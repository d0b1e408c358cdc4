//! A TCP proxy between a server and a service, which does to their connections what networks do.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What is done to every connection, those that are open and those to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Bytes go through.
    Open,
    /// Bytes go through, each piece so much later.
    Delayed(Duration),
    /// Connections are closed in order.
    Dropped,
    /// Connections are reset.
    Reset,
    /// Connections stay, and nothing comes through them.
    BlackHole,
}

/// Where bytes go.
#[derive(Debug, Clone)]
pub enum Target {
    /// A port of loopback.
    Tcp(u16),
    /// A Unix socket.
    Unix(PathBuf),
}

/// A running proxy; it ends with this value.
pub struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// One that is open, on a port of its own.
    pub async fn start(target: Target) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (mode, modes) = watch::channel(Mode::Open);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                tokio::spawn(carry(stream, target.clone(), modes.clone()));
            }
        });
        Self { address, mode, task }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Does this from now on.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Carries one connection for as long as the mode lets it live.
async fn carry(mut near: TcpStream, target: Target, modes: watch::Receiver<Mode>) {
    let mut ends = modes.clone();
    tokio::select! {
        () = through(&mut near, &target, modes) => {}
        () = until(&mut ends, |mode| matches!(mode, Mode::Dropped | Mode::Reset)) => {}
    }
    if *ends.borrow() == Mode::Reset {
        // Whoever holds the other end may have closed it already.
        let _reset = near.set_zero_linger();
    }
}

async fn until(modes: &mut watch::Receiver<Mode>, holds: impl Fn(Mode) -> bool) {
    // The proxy is gone: what is open goes on as it is.
    let _holds = modes.wait_for(|mode| holds(*mode)).await;
}

/// Something that is read and written.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

async fn connect(target: &Target) -> std::io::Result<Box<dyn Stream>> {
    Ok(match target {
        Target::Tcp(port) => Box::new(TcpStream::connect(("127.0.0.1", *port)).await?),
        Target::Unix(path) => Box::new(UnixStream::connect(path).await?),
    })
}

async fn through(near: &mut TcpStream, target: &Target, mut modes: watch::Receiver<Mode>) {
    // While nothing comes through, nobody is reached either.
    until(&mut modes, |mode| mode != Mode::BlackHole).await;
    let Ok(far) = connect(target).await else { return };
    let (near_read, near_write) = near.split();
    let (far_read, far_write) = tokio::io::split(far);
    tokio::select! {
        () = pump(near_read, far_write, modes.clone()) => {}
        () = pump(far_read, near_write, modes) => {}
    }
}

/// Passes bytes on until there are no more, or nobody takes them.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut modes: watch::Receiver<Mode>,
) {
    let mut piece = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        let mode = *modes.borrow();
        match mode {
            Mode::Delayed(by) => tokio::time::sleep(by).await,
            // They are held back, as a network does that comes back after a while.
            Mode::BlackHole => until(&mut modes, |mode| mode != Mode::BlackHole).await,
            Mode::Open | Mode::Dropped | Mode::Reset => {}
        }
        if to.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
}
