//! HTTPS with certificates of a test authority (`testdata/`, valid until 2125; the key protects nothing).

use std::io::{BufRead, BufReader};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::*;

const CERTIFICATE: &[u8] = include_bytes!("../testdata/server.pem");
const KEY: &[u8] = include_bytes!("../testdata/server.key");
const AUTHORITY: &str = include_str!("../testdata/ca.pem");

/// Starts an HTTPS server that gives everyone this answer; returns its URL.
fn serving(answer: &str) -> String {
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE).expect("a certificate");
    let key = PrivateKeyDer::from_pem_slice(KEY).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("they belong together");
    let (config, answer) = (Arc::new(config), answer.to_owned());
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("https://{}/x", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = ServerConnection::new(Arc::clone(&config)).expect("sound");
            let mut stream = StreamOwned::new(connection, stream.expect("a connection"));
            let head = BufReader::new(&mut stream).lines().map_while(Result::ok);
            if head.take_while(|line| !line.is_empty()).count() > 0 {
                let _ = stream.write_all(answer.as_bytes());
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
    });
    url
}

fn the_file() -> String {
    "HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\nthe file".into()
}

/// A bench that finds the authority by this variable.
fn trusting(variable: &str) -> Bench {
    let mut bench = Bench::new();
    let directory = bench.directory.path().join("certificates");
    std::fs::create_dir(&directory).expect("created");
    let file = directory.join("authority.pem");
    std::fs::write(&file, AUTHORITY).expect("written");
    let value = if variable == "SSL_CERT_DIR" { directory } else { file };
    bench.config.network = NetworkSettings::from_variables(|name| {
        (name == variable).then(|| value.to_str().expect("UTF-8").to_owned())
    });
    bench
}

#[test]
fn an_unknown_authority_is_refused_and_the_hint_says_what_to_set() {
    let url = serving(&the_file());
    // An explicit list, so that the machine's own doesn't matter.
    let mut bench = Bench::new();
    bench.config.network.ca_certificates.file = Some("/nonexistent/bundle.pem".into());
    let (result, _keep) = bench.fetch(&request(b"the file", &[url]));
    let error = result.expect_err("untrusted");
    assert!(error.hints().join("\n").contains("SSL_CERT_FILE"), "{:?}", error.hints());
    let reason = only_reason(error);
    assert!(matches!(reason, Reason::Tls { .. }), "{reason:?}");
}

#[test]
fn each_usual_variable_names_the_authorities() {
    let url = serving(&the_file());
    for variable in ["SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE", "NIX_SSL_CERT_FILE"] {
        let (result, _keep) =
            trusting(variable).fetch(&request(b"the file", std::slice::from_ref(&url)));
        result.unwrap_or_else(|error| panic!("{variable}: {error}"));
    }
}

#[test]
fn redirects_lead_to_tls_but_never_away_from_it() {
    let plain = TestServer::serving(b"the file".to_vec());
    let leaving = serving(&format!(
        "HTTP/1.1 302 Found\r\nLocation: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        plain.url("x")
    ));
    let (result, _keep) = trusting("SSL_CERT_FILE").fetch(&request(b"the file", &[leaving]));
    let reason = only_reason(result.expect_err("refused"));
    assert!(matches!(reason, Reason::InsecureRedirect { .. }), "{reason:?}");
    assert!(plain.asked().is_empty());

    let secure = serving(&the_file());
    let entering = TestServer::start(move |_, stream| {
        respond(stream, "301 Moved Permanently", &[("Location", &secure)], b"");
    });
    let (result, _keep) =
        trusting("SSL_CERT_FILE").fetch(&request(b"the file", &[entering.url("x")]));
    result.expect("fetched");
}
