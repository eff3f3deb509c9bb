//! Buckets for the tests: the server of `moto`, which speaks S3 and checks signatures.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::processes::eventually;
use super::python::programs;

/// The server, but objects are as much older as the file says that is its first argument (seconds).
const AGED: &str = "
import datetime, pathlib, sys
import moto.s3.models as models
age, now = pathlib.Path(sys.argv.pop(1)), models.utcnow
models.utcnow = lambda: now() - datetime.timedelta(seconds=int(age.read_text()))
from moto.server import main
main()
";

/// May do anything with buckets.
const POLICY: &str = "%7B%22Version%22%3A%222012-10-17%22%2C%22Statement%22%3A%5B%7B\
                      %22Effect%22%3A%22Allow%22%2C%22Action%22%3A%22s3%3A%2A%22%2C\
                      %22Resource%22%3A%22%2A%22%7D%5D%7D";

/// A running server with one user; it ends with the value.
pub(crate) struct Moto {
    child: Child,
    port: u16,
    /// Holds the age of what is put from now on.
    directory: TempDir,
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
}

impl Moto {
    /// Starts it with one empty bucket, if it can be had; else says loudly what is not tested.
    pub(crate) fn with_bucket(bucket: &str, what: &str) -> Option<Moto> {
        let python = programs(what)?.join("python3");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let directory = tempfile::tempdir().unwrap();
        let age = directory.path().join("age");
        fs::write(&age, "0").unwrap();
        let mut command = Command::new(python);
        command.args(["-c", AGED]).arg(age).args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        // So few names come at a time that every list has several pages.
        command.env("MOTO_S3_DEFAULT_MAX_KEYS", "3");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let (access_key, secret_key) = (String::new(), String::new());
        let mut moto = Moto { child, port, directory, access_key, secret_key };
        // It is Python, and may have to compile itself first.
        let listens = || TcpStream::connect(("127.0.0.1", port)).is_ok();
        assert!(eventually(listens) || eventually(listens), "it never listened");

        moto.ask("s3", &format!("PUT /{bucket}"), "");
        let user = |action: &str| format!("Action={action}&UserName=tester&Version=2010-05-08");
        moto.ask("iam", "POST /", &user("CreateUser"));
        let policy = format!("&PolicyName=all&PolicyDocument={POLICY}");
        moto.ask("iam", "POST /", &(user("PutUserPolicy") + &policy));
        let made = moto.ask("iam", "POST /", &user("CreateAccessKey"));
        moto.access_key = element(&made, "AccessKeyId");
        moto.secret_key = element(&made, "SecretAccessKey");
        moto.trust_anybody(false);
        Some(moto)
    }

    /// Lets what is put from now on be so old.
    pub(crate) fn age(&self, age: Duration) {
        fs::write(self.directory.path().join("age"), age.as_secs().to_string()).unwrap();
    }

    /// Replaces the first object whose key begins so.
    pub(crate) fn damage(&self, bucket: &str, prefix: &str) {
        self.trust_anybody(true);
        let listed = self.ask("s3", &format!("GET /{bucket}?list-type=2&prefix={prefix}"), "");
        self.ask("s3", &format!("PUT /{bucket}/{}", element(&listed, "Key")), "damaged");
        self.trust_anybody(false);
    }

    /// Whether requests count whose signature is wrong.
    fn trust_anybody(&self, whether: bool) {
        let requests = if whether { "1000" } else { "0" };
        self.ask("none", "POST /moto-api/reset-auth", requests);
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The environment in which programs find it.
    pub(crate) fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("AWS_ENDPOINT_URL", self.url()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", self.access_key.clone()),
            ("AWS_SECRET_ACCESS_KEY", self.secret_key.clone()),
        ]
    }

    /// A request to one of its services, with a signature that is wrong.
    fn ask(&self, service: &str, what: &str, body: &str) -> String {
        let kind =
            if service == "iam" { "application/x-www-form-urlencoded" } else { "text/plain" };
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let request = format!(
            "{what} HTTP/1.0\r\nHost: 127.0.0.1:{}\r\nContent-Length: {}\r\nContent-Type: {kind}\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=x/20200101/us-east-1/{service}/aws4_request, \
             SignedHeaders=host, Signature=x\r\n\r\n{body}",
            self.port,
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.lines().next().is_some_and(|line| line.contains(" 200 ")), "{answer}");
        answer
    }
}

/// The text of the first XML element of that name.
fn element(page: &str, name: &str) -> String {
    let (_, rest) = page.split_once(&format!("<{name}>")).unwrap();
    rest.split('<').next().unwrap().to_owned()
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
