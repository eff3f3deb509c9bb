//! One connection: request after request, until the client goes, is too slow, or has to make room.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustls::{ServerConnection, StreamOwned};

use crate::serve::request::{Method, Parsed, Request, parse};
use crate::serve::response::{Reply, message, resource};
use crate::serve::server::Shared;

/// How often somebody who waits looks whether to go on.
const TICK: Duration = Duration::from_millis(200);

/// A connection, with or without TLS.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ServerConnection, TcpStream>>),
}

/// Serves a connection to its end.
pub(super) fn serve(socket: TcpStream, shared: &Shared) -> Result<()> {
    socket.set_nodelay(true)?;
    // Reading is tried again and again; writing a little has to succeed in this time.
    socket.set_read_timeout(Some(TICK))?;
    socket.set_write_timeout(Some(shared.settings.stalled))?;
    let mut stream = match &shared.settings.tls {
        Some(tls) => Stream::Tls(Box::new(StreamOwned::new(tls.connection()?, socket))),
        None => Stream::Plain(socket),
    };
    let mut buffer = Vec::new();
    let mut first = true;
    loop {
        let request = match next(&mut stream, &mut buffer, first, shared)? {
            Next::Request(request) => request,
            Next::End => return stream.close(),
            Next::Bad(status) => {
                message(&mut stream, Reply { keep_alive: false, body: true }, status, "")?;
                return stream.close();
            }
        };
        first = false;
        tracing::debug!(path = request.path, range = ?request.range, "request");
        answer(&mut stream, &request, shared)?;
        if !request.keep_alive || shared.is_ending() {
            return stream.close();
        }
    }
}

fn answer(to: &mut Stream, request: &Request, shared: &Shared) -> Result<()> {
    let reply = Reply { keep_alive: request.keep_alive, body: request.method != Method::Head };
    if let Some(token) = &shared.settings.token
        && !token.admits(request.authorization.as_deref())
    {
        return message(to, reply, 401, "WWW-Authenticate: Basic realm=\"srp\"\r\n");
    }
    if request.method == Method::Other {
        return message(to, reply, 405, "Allow: GET, HEAD\r\n");
    }
    match shared.site.get(&request.path, request.host.as_deref()) {
        Ok(Some(found)) => resource(to, reply, request.range, found),
        Ok(None) => message(to, reply, 404, ""),
        Err(error) => {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            tracing::warn!("{} can't be served: {error}{cause}", request.path);
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

/// Reads the next head. Between requests a client may be silent for a while, unless somebody else
/// waits for the connection; a head that has begun must come soon.
fn next(stream: &mut Stream, buffer: &mut Vec<u8>, first: bool, shared: &Shared) -> Result<Next> {
    let mut began = Instant::now();
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
        let was_idle = buffer.is_empty();
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(Next::End),
            Ok(count) => {
                buffer.extend_from_slice(&chunk[..count]);
                if was_idle {
                    began = Instant::now();
                }
            }
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            // How TLS tells of a client that is gone without a word.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof && was_idle => {
                return Ok(Next::End);
            }
            Err(error) => return Err(error),
        }
        let waited = began.elapsed();
        let settings = &shared.settings;
        if buffer.is_empty() && !first {
            if waited > settings.idle || shared.is_crowded() || shared.is_ending() {
                return Ok(Next::End);
            }
        } else if waited > settings.head || shared.is_ending() {
            return Ok(if buffer.is_empty() { Next::End } else { Next::Bad(408) });
        }
    }
}

impl Stream {
    /// Says that nothing more comes.
    fn close(self) -> Result<()> {
        let socket = match self {
            Stream::Plain(socket) => socket,
            Stream::Tls(mut tls) => {
                tls.conn.send_close_notify();
                tls.flush()?;
                tls.sock
            }
        };
        match socket.shutdown(std::net::Shutdown::Write) {
            // The client was faster.
            Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(()),
            ended => ended?,
        }
        // What a client still sends (the body of a refused request) is taken for a moment: closing
        // would reset the connection, and the answer be lost on its way.
        let began = Instant::now();
        let mut rest = [0; 4096];
        while began.elapsed() < TICK {
            match (&socket).read(&mut rest) {
                Ok(count) if count > 0 => {}
                _ => break,
            }
        }
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
        let written = match self {
            Stream::Plain(socket) => socket.write(bytes),
            Stream::Tls(tls) => tls.write(bytes),
        };
        // The system's word for a time that is over.
        written.map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => Error::new(ErrorKind::TimedOut, "the client takes nothing"),
            _ => error,
        })
    }

    fn flush(&mut self) -> Result<()> {
        match self {
            Stream::Plain(socket) => socket.flush(),
            Stream::Tls(tls) => tls.flush(),
        }
    }
}
