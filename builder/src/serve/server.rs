//! The server: takes connections, as many at a time as it may, until it is cancelled.

use std::error::Error;
use std::io::{ErrorKind, Result};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cancel::CancelToken;
use crate::serve::connection::serve;
use crate::serve::crowd::Crowd;
use crate::serve::response::Resource;
use crate::serve::tls::Tls;
use crate::serve::token::Token;

/// So long a server that is to end waits for those it serves.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a site's failure is.
pub type SiteError = Box<dyn Error + Send + Sync>;

/// What is served: shared by all connections' threads.
pub trait Site: Send + Sync {
    /// What lies at a path, which begins with a slash and is otherwise the client's word; none if
    /// nothing does. `host` is how the client calls this server, if it says so.
    fn get(
        &self,
        path: &str,
        host: Option<&str>,
    ) -> std::result::Result<Option<Resource>, SiteError>;
}

/// How it is served.
#[derive(Debug)]
pub struct Settings {
    /// How many requests are answered at a time; others wait. One address gets three quarters.
    pub connections: usize,
    /// How many clients may be connected, those that ask nothing at the moment among them. One
    /// address gets three quarters, and who is too many goes: the slowest head, the longest idle.
    pub open: usize,
    /// What clients have to know, if anything.
    pub token: Option<Token>,
    /// The certificate, for TLS.
    pub tls: Option<Tls>,
    /// How long a request's head may take, from its first byte to its last; the first one from
    /// when the client connects, with all of a TLS handshake.
    pub head: Duration,
    /// How long a connection may be silent between requests.
    pub idle: Duration,
    /// How long a client may take nothing of an answer. On average it has to take 4 KiB a second,
    /// with so long a start.
    pub stalled: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            connections: 64,
            // Of the 1024 descriptors that a process has as a rule, some are for files.
            open: 512,
            token: None,
            tls: None,
            head: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            stalled: Duration::from_secs(20),
        }
    }
}

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    settings: Settings,
}

/// What the threads of connections share.
pub(super) struct Shared {
    pub(super) site: Arc<dyn Site>,
    pub(super) settings: Settings,
    cancel: CancelToken,
}

impl Server {
    /// Listens at an address. What connects waits until the server runs.
    pub fn bind(address: impl ToSocketAddrs, settings: Settings) -> Result<Server> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Server { listener, settings })
    }

    /// Where it listens.
    pub fn address(&self) -> Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until it is cancelled; what is being sent then has a moment to finish.
    pub fn run(self, site: Arc<dyn Site>, cancel: &CancelToken) -> Result<()> {
        let crowd = Arc::new(Crowd::new(self.settings.open, self.settings.connections));
        let shared = Arc::new(Shared { site, settings: self.settings, cancel: cancel.clone() });
        while let Some((socket, address)) = accept(&self.listener, &crowd, cancel)? {
            let socket = Arc::new(socket);
            let Some(place) = crowd.enter(&socket, address) else {
                tracing::debug!(%address, "a connection is refused: there are too many");
                continue;
            };
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name("srp-serve".to_owned());
            let served = thread.spawn(move || {
                if let Err(error) = serve(socket, &place, &shared) {
                    tracing::debug!(%error, "a connection ends");
                }
            });
            if let Err(error) = served {
                // The client is turned away, and may come again.
                tracing::warn!(%error, "a connection can't be served");
            }
        }
        crowd.end(FAREWELL);
        Ok(())
    }
}

impl Shared {
    /// Whether everything is to end.
    pub(super) fn is_ending(&self) -> bool {
        self.cancel.is_cancelled()
    }
}

/// The next connection; none when everything is to end.
fn accept(
    listener: &TcpListener,
    crowd: &Crowd,
    cancel: &CancelToken,
) -> Result<Option<(TcpStream, IpAddr)>> {
    loop {
        if cancel.is_cancelled() {
            return Ok(None);
        }
        match listener.accept() {
            Ok((socket, peer)) => {
                socket.set_nonblocking(false)?;
                return Ok(Some((socket, peer.ip())));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut waiting = [
                    PollFd::new(listener.as_fd(), PollFlags::POLLIN),
                    PollFd::new(cancel.descriptor(), PollFlags::POLLIN),
                ];
                match poll(&mut waiting, PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            // A client that was gone before it was served, or no descriptor left for a moment.
            Err(error) => {
                tracing::debug!(%error, "a connection can't be taken");
                if matches!(
                    error.raw_os_error().map(Errno::from_raw),
                    Some(Errno::EMFILE | Errno::ENFILE)
                ) {
                    crowd.thin_out();
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}
