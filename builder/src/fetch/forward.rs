//! Plain-HTTP requests through an HTTP proxy, in absolute form (`GET http://host/path`, RFC 9112 3.2.2).
//!
//! ureq itself only tunnels with CONNECT, which squid as it comes and apt's caches refuse for port 80;
//! Debian's mirrors are mostly plain HTTP. ureq writes the head of a request into the connection's
//! buffer; the transport here puts scheme and host into its first line on the way out. This is the
//! only file that uses ureq's interfaces without a stability promise.

use std::fmt;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, NextTimeout, TcpConnector, Transport,
};
use ureq::{Agent, Error};

/// An agent that sends every request to this proxy. Only for `http:` URLs.
pub(super) fn agent(config: Config, proxy: Uri) -> Agent {
    let connector = ().chain(TcpConnector::default()).chain(ForwardConnector);
    Agent::with_parts(config, connector, ProxyResolver { proxy, inner: DefaultResolver::default() })
}

/// Resolves every host to the proxy: the proxy resolves the real one.
struct ProxyResolver {
    proxy: Uri,
    inner: DefaultResolver,
}

impl fmt::Debug for ProxyResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProxyResolver")
    }
}

impl Resolver for ProxyResolver {
    fn resolve(
        &self,
        _: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        self.inner.resolve(&self.proxy, config, timeout)
    }
}

#[derive(Debug)]
struct ForwardConnector;

impl<In: Transport> Connector<In> for ForwardConnector {
    type Out = ForwardTransport<In>;

    fn connect(
        &self,
        details: &ConnectionDetails,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        let authority = details.uri.authority().ok_or(Error::ConnectionFailed)?.as_str();
        let host = authority.rsplit('@').next().unwrap_or(authority);
        let prefix = format!("http://{host}").into_bytes();
        Ok(chained.map(|inner| ForwardTransport { inner, prefix, is_head: true }))
    }
}

/// A connection to a proxy on behalf of one host.
#[derive(Debug)]
struct ForwardTransport<In> {
    inner: In,
    prefix: Vec<u8>,
    /// Whether what is sent next begins a request: a body may look like one.
    is_head: bool,
}

impl<In: Transport> Transport for ForwardTransport<In> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let output = self.inner.buffers().output();
        let longer = amount + self.prefix.len();
        let mut amount = amount;
        if std::mem::take(&mut self.is_head)
            && let Some(target) = target(&output[..amount])
        {
            // A request line of ours is far smaller than the buffer, and what follows it is short.
            if longer > output.len() {
                return Err(Error::Other("the head of a request to a proxy is too long".into()));
            }
            output.copy_within(target..amount, target + self.prefix.len());
            output[target..target + self.prefix.len()].copy_from_slice(&self.prefix);
            amount = longer;
        }
        self.inner.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        // An answer is read: what is sent afterwards is another request.
        self.is_head = true;
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }
}

/// Where the target begins in a request's first line (`PUT /path HTTP/1.1`), if it is a path.
fn target(head: &[u8]) -> Option<usize> {
    let space = head.iter().position(|byte| !byte.is_ascii_uppercase())?;
    (space > 0 && head[space..].starts_with(b" /")).then_some(space + 1)
}
