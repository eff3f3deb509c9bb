//! How to reach the network: proxies and certificate authorities, as the usual environment variables
//! say. The environment itself is read by the caller, who passes a look-up.

use std::net::IpAddr;
use std::path::PathBuf;

/// Proxies and certificate authorities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkSettings {
    /// The proxy for `http:` URLs.
    pub http_proxy: Option<String>,
    /// The proxy for `https:` URLs.
    pub https_proxy: Option<String>,
    /// Hosts that are reached without a proxy.
    pub no_proxy: NoProxy,
    /// Where the trusted certificates lie.
    pub ca_certificates: CaCertificates,
}

/// Where the trusted certificates lie. Nothing named: the system's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaCertificates {
    /// A PEM bundle.
    pub file: Option<PathBuf>,
    /// Directories of PEM files.
    pub directories: Vec<PathBuf>,
}

impl NetworkSettings {
    /// Reads `http_proxy`, `https_proxy`, `all_proxy`, `no_proxy` (lower case before upper case, as curl
    /// does) and `SSL_CERT_FILE`, `SSL_CERT_DIR`, `CURL_CA_BUNDLE`, `NIX_SSL_CERT_FILE` (the first that
    /// names a file wins; directories are added).
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let either = |name: &str| get(name).or_else(|| get(&name.to_ascii_uppercase()));
        let all = either("all_proxy");
        Self {
            http_proxy: either("http_proxy").or_else(|| all.clone()),
            https_proxy: either("https_proxy").or(all),
            no_proxy: NoProxy::parse(&either("no_proxy").unwrap_or_default()),
            ca_certificates: CaCertificates {
                file: ["SSL_CERT_FILE", "CURL_CA_BUNDLE", "NIX_SSL_CERT_FILE"]
                    .iter()
                    .find_map(|name| get(name))
                    .map(PathBuf::from),
                directories: get("SSL_CERT_DIR")
                    .iter()
                    .flat_map(|value| value.split(':'))
                    .filter(|directory| !directory.is_empty())
                    .map(PathBuf::from)
                    .collect(),
            },
        }
    }

    /// The proxy for a URL of this scheme to this host, if any.
    pub fn proxy_for(&self, scheme: &str, host: &str, port: Option<u16>) -> Option<&str> {
        let proxy = if scheme == "https" { &self.https_proxy } else { &self.http_proxy };
        proxy.as_deref().filter(|_| !self.no_proxy.matches(host, port))
    }
}

/// The hosts that a `no_proxy` variable lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NoProxy {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Everything,
    /// The domain itself and everything below it.
    Domain(String, Option<u16>),
    /// An address, or a block of them by the length of its prefix.
    Addresses(IpAddr, u8),
}

impl NoProxy {
    /// Parses names (`example.org`, `.example.org`, `*.example.org`), addresses, CIDR blocks and `*`,
    /// separated by commas or white space.
    pub fn parse(value: &str) -> Self {
        let words = value.split(|c: char| c == ',' || c.is_whitespace());
        Self { entries: words.filter(|word| !word.is_empty()).map(parse_entry).collect() }
    }

    /// Whether this host is reached without a proxy.
    pub fn matches(&self, host: &str, port: Option<u16>) -> bool {
        let host = bare(host).trim_end_matches('.').to_ascii_lowercase();
        let address: Option<IpAddr> = host.parse().ok();
        self.entries.iter().any(|entry| match entry {
            Entry::Everything => true,
            Entry::Domain(domain, wanted_port) => {
                let below = host
                    .strip_suffix(domain.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
                below && (wanted_port.is_none() || *wanted_port == port)
            }
            Entry::Addresses(network, length) => {
                address.is_some_and(|address| in_block(address, *network, *length))
            }
        })
    }
}

fn parse_entry(word: &str) -> Entry {
    if word == "*" {
        return Entry::Everything;
    }
    let (address, length) = match word.split_once('/') {
        Some((address, length)) => (address, length.parse::<u8>().ok()),
        None => (word, Some(128)),
    };
    if let (Ok(address), Some(length)) = (bare(address).parse(), length) {
        return Entry::Addresses(address, length);
    }
    let word = word.to_ascii_lowercase();
    let (domain, port) = match word.rsplit_once(':') {
        Some((domain, port)) if port.parse::<u16>().is_ok() => (domain, port.parse().ok()),
        _ => (word.as_str(), None),
    };
    Entry::Domain(domain.trim_start_matches('*').trim_matches('.').to_owned(), port)
}

fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn in_block(address: IpAddr, network: IpAddr, length: u8) -> bool {
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            let differing = u32::from(address) ^ u32::from(network);
            differing.leading_zeros() >= u32::from(length.min(32))
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => {
            let differing = u128::from(address) ^ u128::from(network);
            differing.leading_zeros() >= u32::from(length.min(128))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> NetworkSettings {
        NetworkSettings::from_variables(|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn proxies_come_from_the_usual_variables() {
        let all =
            settings(&[("ALL_PROXY", "socks5://p.test"), ("http_proxy", "http://h.test:3128")]);
        assert_eq!(all.proxy_for("http", "x.test", None), Some("http://h.test:3128"));
        assert_eq!(all.proxy_for("https", "x.test", None), Some("socks5://p.test"));
        let both = settings(&[("HTTPS_PROXY", "http://upper.test"), ("https_proxy", "")]);
        assert_eq!(both.proxy_for("https", "x.test", None), Some("http://upper.test"));
        assert_eq!(both.proxy_for("http", "x.test", None), None);
    }

    #[test]
    fn no_proxy_knows_domains_addresses_and_ports() {
        let list =
            NoProxy::parse("example.org, .inner.test,*.star.test 10.0.0.0/8,::1,host.test:81");
        for (host, port, expected) in [
            ("example.org", None, true),
            ("EXAMPLE.org.", None, true),
            ("www.example.org", None, true),
            ("notexample.org", None, false),
            ("a.inner.test", None, true),
            ("a.star.test", None, true),
            ("10.9.8.7", None, true),
            ("11.9.8.7", None, false),
            ("[::1]", None, true),
            ("host.test", Some(81), true),
            ("host.test", Some(80), false),
        ] {
            assert_eq!(list.matches(host, port), expected, "{host} {port:?}");
        }
        assert!(NoProxy::parse("*").matches("anything", None));
        assert!(!NoProxy::parse("").matches("anything", None));
        assert!(NoProxy::parse("0.0.0.0/0").matches("1.2.3.4", None));
    }

    #[test]
    fn the_first_ca_variable_that_names_a_file_wins() {
        let named = settings(&[
            ("CURL_CA_BUNDLE", "/curl.pem"),
            ("NIX_SSL_CERT_FILE", "/nix.pem"),
            ("SSL_CERT_DIR", "/a:/b"),
        ]);
        assert_eq!(named.ca_certificates.file, Some("/curl.pem".into()));
        assert_eq!(named.ca_certificates.directories, [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert_eq!(settings(&[]), NetworkSettings::default());
    }
}
