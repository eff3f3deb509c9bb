//! `srp serve`: this machine's store as a binary cache, over HTTP.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueHint};
use indicatif::{ProgressBar, ProgressDrawTarget};
use srp_builder::CancelToken;
use srp_builder::serve::{Content, Resource, Server, Settings, Site, SiteError, Tls, Token};
use srp_store::StoreError;
use srp_store::cache::{CachePath, Offering, Packs, Served};

use crate::context::Context;
use crate::error::{CommandError, CommandResult, ExitCode};
use crate::export;
use crate::interrupt;
use crate::page;
use crate::signing::{self, Signing};
use crate::terminal;

/// Packs of the store's trees take no more than this; those not used for longest go first.
const PACKS_BYTES: u64 = 32 << 30;

/// Serve the store as a binary cache, over HTTP, to the machine next door
///
/// Others name it among the caches of their configuration; nothing has to be published before. What
/// roots need is packed when it starts (below `served` in the store, 32 GiB at most), anything else
/// when it is asked for. Statements are signed if there is a key. It only reads, and it is not a server
/// for the open internet. The address is printed when it serves; SIGTERM or Ctrl-C ends it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Serve only these, with all that they need [default: whatever is in the store]
    #[arg(value_name = "ATTR|PATH")]
    targets: Vec<String>,
    /// Where to listen; port 0 is any that is free
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:5757")]
    listen: String,
    /// Serve only those who know the token in this file (mode 0600): http://srp:TOKEN@host:port
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    token_file: Option<PathBuf>,
    /// The certificate, for HTTPS: PEM, with those that it was signed by
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key: PEM
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// How many requests are answered at a time; others wait, and no address gets more than three
    /// quarters
    #[arg(long, value_name = "N", default_value_t = std::num::NonZeroU16::new(64).expect("it is not 0"))]
    connections: std::num::NonZeroU16,
    #[command(flatten)]
    signing: Signing,
}

const EXAMPLES: &str = "\
Examples:
  srp serve                                    to this machine itself: http://127.0.0.1:5757
  srp serve --listen 0.0.0.0:5757              to whoever reaches it
  srp serve --token-file ~/.srp-token --tls-cert cert.pem --tls-key key.pem stage1.x86_64-musl";

pub(crate) fn run(context: &Context, arguments: &Arguments) -> CommandResult {
    let key = arguments.signing.key(context)?;
    let settings = settings(arguments)?;
    let cancel = interrupt::token()?;
    let (has_token, scheme) =
        (settings.token.is_some(), if settings.tls.is_some() { "https" } else { "http" });
    // First of all: that a port is taken should be known before minutes of packing.
    let server = Server::bind(&arguments.listen, settings).map_err(|error| {
        let why = match error.kind() {
            ErrorKind::InvalidInput => "expected ADDR:PORT, such as 127.0.0.1:5757".to_owned(),
            _ => error.to_string(),
        };
        CommandError::user(format!("can't listen at {}: {why}", arguments.listen))
    })?;
    let address = server.address().map_err(|error| CommandError::chain(ExitCode::User, error))?;
    let offering = offering(context, arguments, key)?;
    prepare(context, &offering, &cancel)?;
    if cancel.is_cancelled() {
        return Err(CommandError::silent(ExitCode::Interrupted));
    }
    let url = format!("{scheme}://{address}");
    terminal::answer(&format!("{url}\n"))?;
    if !context.options.quiet {
        tell(&offering, address.ip().is_loopback());
    }
    let site = StoreSite { offering, scheme, address: address.to_string(), has_token };
    server.run(Arc::new(site), &cancel).map_err(|error| CommandError::chain(ExitCode::User, error))
}

fn settings(arguments: &Arguments) -> CommandResult<Settings> {
    let user = |error: Box<dyn std::error::Error + Send + Sync>| {
        CommandError::chain(ExitCode::User, error)
    };
    let token = arguments.token_file.as_deref().map(Token::read).transpose();
    let tls = match (&arguments.tls_cert, &arguments.tls_key) {
        (Some(certificate), Some(key)) => {
            Some(Tls::read(certificate, key).map_err(|error| user(error.into()))?)
        }
        _ => None,
    };
    Ok(Settings {
        connections: arguments.connections.get().into(),
        token: token.map_err(|error| user(error.into()))?,
        tls,
        ..Settings::default()
    })
}

fn offering(
    context: &Context,
    arguments: &Arguments,
    key: Option<srp_store::cache::SecretKey>,
) -> CommandResult<Offering> {
    // For weeks, perhaps: what it offers is what roots keep.
    let store = context.store_to_publish()?.relying_on_nothing();
    let asked = export::asked(context, &store, &arguments.targets)?;
    let packs = match Packs::open(&store.directory("served"), PACKS_BYTES) {
        // Somebody else's store, or one on a disk that can only be read.
        Err(StoreError::Io { .. }) => Packs::temporary(&store, PACKS_BYTES)?,
        packs => packs?,
    };
    let builder = signing::builder(key.as_ref()).to_owned();
    let offering = Offering::new(store, packs, key, &builder);
    Ok(if asked.is_empty() { offering } else { offering.only(&asked)? })
}

/// Packs what roots need, so that no client has to wait for it.
fn prepare(context: &Context, offering: &Offering, cancel: &CancelToken) -> CommandResult {
    let shown = !context.options.quiet && console::Term::stderr().is_term();
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(None, target);
    offering.prepare(&|done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
        !cancel.is_cancelled()
    })?;
    bar.finish_and_clear();
    Ok(())
}

fn tell(offering: &Offering, loopback: bool) {
    match offering.key() {
        Some(key) => {
            terminal::say(&format!("signed by {}; others: srp key trust {0}", key.public()));
        }
        None => terminal::say(
            "signed by nobody: others need trusted_unsigned = true; srp key generate NAME makes a key",
        ),
    }
    if loopback {
        terminal::say("only this machine can reach it; --listen 0.0.0.0:PORT is for others");
    }
}

/// A store on the web: the cache's files, and a page for people.
struct StoreSite {
    offering: Offering,
    scheme: &'static str,
    address: String,
    has_token: bool,
}

impl Site for StoreSite {
    fn get(&self, path: &str, host: Option<&str>) -> Result<Option<Resource>, SiteError> {
        if path == "/" {
            let url = format!("{}://{}", self.scheme, host.unwrap_or(&self.address));
            let page = page::page(&self.offering, &url, self.has_token)?;
            let content = Content::Bytes(page.into_bytes());
            let media_type = "text/html; charset=utf-8";
            return Ok(Some(Resource { content, media_type, immutable: false }));
        }
        let Some(path) = path.strip_prefix('/').and_then(CachePath::parse) else {
            return Ok(None);
        };
        let Some(served) = self.offering.get(&path)? else { return Ok(None) };
        let (content, immutable) = match served {
            Served::Bytes(bytes) => (Content::Bytes(bytes), false),
            Served::Pack { file, size_bytes } => (Content::File(file, size_bytes), true),
        };
        Ok(Some(Resource { content, media_type: "application/octet-stream", immutable }))
    }
}
