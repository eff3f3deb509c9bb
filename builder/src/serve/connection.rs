//! One connection: request after request, until the client goes, is too slow, or has to make room.

use std::io::{ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ServerConnection, StreamOwned};

use crate::serve::crowd::Place;
use crate::serve::request::{Method, Parsed, Request, parse};
use crate::serve::response::{Reply, message, resource};
use crate::serve::server::Shared;
use crate::serve::socket::Socket;

/// What is sent when everything is said has so long to come: the body of a refused request.
const LINGER: Duration = Duration::from_millis(200);

/// A connection, with or without TLS.
pub(super) enum Stream {
    Plain(Socket),
    Tls(Box<StreamOwned<ServerConnection, Socket>>),
}

/// Serves a connection to its end.
pub(super) fn serve(tcp: Arc<TcpStream>, place: &Place, shared: &Shared) -> Result<()> {
    tcp.set_nodelay(true)?;
    let socket = Socket::new(tcp, place.taken());
    let mut stream = match &shared.settings.tls {
        Some(tls) => Stream::Tls(Box::new(StreamOwned::new(tls.connection()?, socket))),
        None => Stream::Plain(socket),
    };
    let mut buffer = Vec::new();
    let mut first = true;
    loop {
        let next = next(&mut stream, &mut buffer, first, place, shared)?;
        stream.socket().pace(shared.settings.stalled);
        let request = match next {
            Next::Request(request) => request,
            Next::End => return stream.close(),
            Next::Bad(status) => {
                message(&mut stream, Reply { keep_alive: false, body: true }, status, "")?;
                return stream.close();
            }
        };
        first = false;
        tracing::debug!(path = request.path, range = ?request.range, "request");
        if !place.wait() {
            return Ok(());
        }
        answer(&mut stream, &request, place, shared)?;
        if !request.keep_alive || shared.is_ending() {
            return stream.close();
        }
    }
}

fn answer(to: &mut Stream, request: &Request, place: &Place, shared: &Shared) -> Result<()> {
    let reply = Reply { keep_alive: request.keep_alive, body: request.method != Method::Head };
    if let Some(token) = &shared.settings.token
        && !token.admits(request.authorization.as_deref())
    {
        return message(to, reply, 401, "WWW-Authenticate: Basic realm=\"srp\"\r\n");
    }
    if request.method == Method::Other {
        return message(to, reply, 405, "Allow: GET, HEAD\r\n");
    }
    let found = shared.site.get(&request.path, request.host.as_deref());
    // Finding it was the server's time, and may have been long.
    place.sending();
    to.socket().pace(shared.settings.stalled);
    match found {
        Ok(Some(found)) => resource(to, reply, request.range, found),
        Ok(None) => message(to, reply, 404, ""),
        Err(error) => {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            tracing::warn!("{:?} can't be served: {error}{cause}", request.path);
            message(to, reply, 500, "")
        }
    }
}

/// What comes next on a connection.
enum Next {
    Request(Request),
    End,
    Bad(u16),
}

/// Reads the next head. Between requests a client may be silent for a while, unless its place is
/// needed; a head that has begun must come whole in its time, and so must the first one.
fn next(
    stream: &mut Stream,
    buffer: &mut Vec<u8>,
    first: bool,
    place: &Place,
    shared: &Shared,
) -> Result<Next> {
    let settings = &shared.settings;
    let mut silent = buffer.is_empty() && !first;
    let (stays, time) =
        if silent { (place.idle(), settings.idle) } else { (place.asking(), settings.head) };
    if !stays {
        return Ok(Next::End);
    }
    stream.socket().give(time);
    loop {
        if !buffer.is_empty() {
            match parse(buffer) {
                Parsed::Whole(request, length) => {
                    buffer.drain(..length);
                    return Ok(Next::Request(request));
                }
                Parsed::Bad(status) => return Ok(Next::Bad(status)),
                Parsed::Partial => {}
            }
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(Next::End),
            Ok(count) => {
                buffer.extend_from_slice(&chunk[..count]);
                if std::mem::take(&mut silent) {
                    if !place.asking() {
                        return Ok(Next::End);
                    }
                    stream.socket().give(settings.head);
                }
            }
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => {}
                ErrorKind::TimedOut if buffer.is_empty() => return Ok(Next::End),
                ErrorKind::TimedOut => return Ok(Next::Bad(408)),
                // How TLS tells of a client that is gone without a word.
                ErrorKind::UnexpectedEof if buffer.is_empty() => return Ok(Next::End),
                _ => return Err(error),
            },
        }
    }
}

impl Stream {
    pub(super) fn socket(&self) -> &Socket {
        match self {
            Stream::Plain(socket) => socket,
            Stream::Tls(tls) => &tls.sock,
        }
    }

    /// Says that nothing more comes.
    fn close(self) -> Result<()> {
        let socket = match self {
            Stream::Plain(socket) => socket,
            Stream::Tls(mut tls) => {
                tls.conn.send_close_notify();
                // To flush the stream would be to finish a handshake first.
                while tls.conn.wants_write() {
                    tls.conn.write_tls(&mut tls.sock)?;
                }
                tls.sock
            }
        };
        match socket.tcp().shutdown(std::net::Shutdown::Write) {
            // The client was faster.
            Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(()),
            ended => ended?,
        }
        // What a client still sends (the body of a refused request) is taken for a moment: closing
        // would reset the connection, and the answer be lost on its way.
        socket.give(LINGER);
        let mut socket = socket;
        let mut rest = [0; 4096];
        while matches!(socket.read(&mut rest), Ok(1..)) {}
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        match self {
            Stream::Plain(socket) => socket.read(buffer),
            Stream::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        match self {
            Stream::Plain(socket) => socket.write(bytes),
            Stream::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> Result<()> {
        match self {
            Stream::Plain(socket) => socket.flush(),
            Stream::Tls(tls) => tls.flush(),
        }
    }
}
