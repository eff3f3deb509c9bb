//! The server: takes connections, as many at a time as it may, until it is cancelled.

use std::error::Error;
use std::io::{ErrorKind, Result};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cancel::CancelToken;
use crate::serve::connection::serve;
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
    /// How many connections are served at a time; others wait.
    pub connections: usize,
    /// What clients have to know, if anything.
    pub token: Option<Token>,
    /// The certificate, for TLS.
    pub tls: Option<Tls>,
    /// How long a request's head may take, and the first one to begin.
    pub head: Duration,
    /// How long a connection may be silent between requests.
    pub idle: Duration,
    /// How long a client may take nothing of an answer.
    pub stalled: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            connections: 64,
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
    free: Mutex<usize>,
    freed: Condvar,
    /// Somebody waits for a connection to end.
    crowded: AtomicBool,
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
        let connections = self.settings.connections.max(1);
        let shared = Arc::new(Shared {
            site,
            settings: self.settings,
            cancel: cancel.clone(),
            free: Mutex::new(connections),
            freed: Condvar::new(),
            crowded: AtomicBool::new(false),
        });
        while let Some(socket) = accept(&self.listener, cancel)? {
            let Some(permit) = permit(&shared) else { break };
            let name = "srp-serve".to_owned();
            let served = std::thread::Builder::new().name(name).spawn(move || {
                let shared = Arc::clone(&permit.0);
                if let Err(error) = serve(socket, &shared) {
                    tracing::debug!(%error, "a connection ends");
                }
            });
            if let Err(error) = served {
                // The client is turned away, and may come again.
                tracing::warn!(%error, "a connection can't be served");
            }
        }
        let free = shared.free.lock().expect("no holder panics");
        let busy = |free: &mut usize| *free < connections;
        drop(shared.freed.wait_timeout_while(free, FAREWELL, busy).expect("no holder panics"));
        Ok(())
    }
}

impl Shared {
    /// Whether somebody waits for a connection to end.
    pub(super) fn is_crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }

    /// Whether everything is to end.
    pub(super) fn is_ending(&self) -> bool {
        self.cancel.is_cancelled()
    }
}

/// The next connection; none when everything is to end.
fn accept(listener: &TcpListener, cancel: &CancelToken) -> Result<Option<TcpStream>> {
    loop {
        if cancel.is_cancelled() {
            return Ok(None);
        }
        match listener.accept() {
            Ok((socket, _)) => {
                socket.set_nonblocking(false)?;
                return Ok(Some(socket));
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
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// The right to serve a connection, when there is one; none when everything is to end.
fn permit(shared: &Arc<Shared>) -> Option<Permit> {
    let mut free = shared.free.lock().expect("no holder panics");
    while *free == 0 {
        if shared.is_ending() {
            return None;
        }
        // Those who have nothing to ask make room.
        shared.crowded.store(true, Ordering::Relaxed);
        let wait = shared.freed.wait_timeout(free, Duration::from_millis(200));
        free = wait.expect("no holder panics").0;
    }
    shared.crowded.store(false, Ordering::Relaxed);
    *free -= 1;
    Some(Permit(Arc::clone(shared)))
}

struct Permit(Arc<Shared>);

impl Drop for Permit {
    fn drop(&mut self) {
        *self.0.free.lock().expect("no holder panics") += 1;
        self.0.freed.notify_all();
    }
}
