//! Buckets that answer what the tests of the whole can't make a server say.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use srp_store::cache::{CacheError, CachePath, Content, Remote};

use super::AwsSettings;
use crate::fetch::NetworkSettings;
use crate::remote::Connections;

/// A bucket that gives each request, in turn, the next of these answers: a head without its end,
/// and a body. What it was asked comes from the receiver: first line and headers.
fn bucket(answers: Vec<(&'static str, &'static str)>) -> (Arc<dyn Remote>, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for (head, body) in answers {
            let (stream, _) = listener.accept().expect("a connection");
            let mut from = BufReader::new(&stream);
            let (mut request, mut length) = (String::new(), 0);
            while !request.ends_with("\r\n\r\n") {
                let begin = request.len();
                if from.read_line(&mut request).expect("a line") == 0 {
                    break;
                }
                let line = request[begin..].to_ascii_lowercase();
                if let Some(value) = line.strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a length");
                }
            }
            std::io::copy(&mut from.take(length), &mut std::io::sink()).expect("a body");
            let _ = sender.send(request);
            let answer = format!(
                "HTTP/1.1 {head}\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\nETag: \"e\"\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            (&stream).write_all(answer.as_bytes()).expect("sent");
        }
    });
    let aws = AwsSettings::from_variables(|name| match name {
        "AWS_ENDPOINT_URL" => Some(endpoint.clone()),
        "AWS_ACCESS_KEY_ID" => Some("AK".to_owned()),
        "AWS_SECRET_ACCESS_KEY" => Some("s3cret".to_owned()),
        _ => None,
    });
    let connections = Connections::new(NetworkSettings::default()).with_aws(aws);
    (connections.open("s3://bucket/a/b").expect("an address"), receiver)
}

/// An error with its cause.
fn chain(error: &CacheError) -> String {
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    format!("{error}: {cause}")
}

#[test]
fn a_range_is_that_range_or_an_error() {
    let range = |answers| -> Result<Option<String>, String> {
        let (remote, asked) = bucket(answers);
        let body = remote.get(&CachePath::meta(), Some(2..5)).map_err(|error| chain(&error));
        let asked = asked.recv().expect("a request").to_ascii_lowercase();
        assert!(asked.starts_with("get /bucket/a/b/srp-cache http/1.1\r\n"), "{asked}");
        assert!(asked.contains("range: bytes=2-4\r\n"), "{asked}");
        let Some(mut body) = body? else { return Ok(None) };
        let mut text = String::new();
        body.reader.read_to_string(&mut text).map_err(|error| error.to_string())?;
        assert_eq!(text.len() as u64, body.length);
        Ok(Some(text))
    };
    let good = ("206 P\r\nContent-Range: bytes 2-4/9", "abc");
    assert_eq!(range(vec![good]), Ok(Some("abc".to_owned())));
    assert_eq!(range(vec![("503 S", "later"), good]), Ok(Some("abc".to_owned())), "asked again");
    assert_eq!(range(vec![("404 N", "<Code>NoSuchKey</Code>")]), Ok(None));
    for (head, body, part) in [
        ("200 OK", "xxabcxxxx", "non-partial"),
        ("206 P\r\nContent-Range: bytes 0-2/9", "xxa", "Requested"),
        ("206 P\r\nContent-Range: bytes 2-3/4", "ab", "end of file"),
        ("416 R", "<Code>InvalidRange</Code>", "416 InvalidRange"),
        ("403 F", "<Message>You may not.</Message>", "answers 403: You may not."),
        ("404 N", "<Code>NoSuchBucket</Code>", "404 NoSuchBucket"),
        ("301 M\r\nx-amz-bucket-region: eu-west-1", "", "region eu-west-1"),
        ("307 T\r\nLocation: http://other.test/", "", "answers 307"),
    ] {
        let error = range(vec![(head, body)]).expect_err(head);
        assert!(error.contains(part), "{head}: {error}");
        assert!(!error.contains("s3cret"), "{error}");
    }
}

#[test]
fn an_objects_time_is_renewed_by_copying_it_onto_itself() {
    let (remote, asked) = bucket(vec![
        ("200 OK", "<CopyObjectResult></CopyObjectResult>"),
        ("404 N", "<Code>NoSuchKey</Code>"),
        ("501 N", "<Code>NotImplemented</Code>"),
        ("501 N", ""),
        ("501 N", ""),
    ]);
    let refresh = || remote.refresh(&CachePath::meta()).map_err(|error| chain(&error));
    assert_eq!(refresh(), Ok(true));
    let request = asked.recv().expect("a request").to_ascii_lowercase();
    assert!(request.starts_with("put /bucket/a/b/srp-cache http/1.1\r\n"), "{request}");
    for header in [
        "x-amz-copy-source: bucket/a/b/srp-cache\r\n",
        "x-amz-metadata-directive: replace\r\n",
        "content-length: 0\r\n",
    ] {
        assert!(request.contains(header), "{request}");
    }
    assert_eq!(refresh(), Ok(false), "it is gone");
    assert_eq!(refresh(), Ok(false), "the server can't");
}

#[test]
fn a_list_has_all_pages_and_no_directories() {
    let (remote, asked) = bucket(vec![
        (
            "200 OK",
            "<ListBucketResult><IsTruncated>true</IsTruncated>\
             <NextContinuationToken>more</NextContinuationToken>\
             <Contents><Key>a/b/packs/</Key><Size>0</Size>\
             <LastModified>1994-11-06T08:49:37.000Z</LastModified></Contents>\
             <Contents><Key>a/b/packs/two</Key><Size>2</Size>\
             <LastModified>1994-11-06T08:49:37.000Z</LastModified></Contents></ListBucketResult>",
        ),
        (
            "200 OK",
            "<ListBucketResult><Contents><Key>a/b/packs/one</Key><Size>1</Size>\
             <LastModified>1994-11-06T08:49:37.000Z</LastModified></Contents></ListBucketResult>",
        ),
    ]);
    let listed = remote.list("packs").expect("listed");
    let listed: Vec<_> = listed.iter().map(|(path, it)| (path.as_str(), it.size_bytes)).collect();
    assert_eq!(listed, [("packs/one", 1), ("packs/two", 2)]);
    let (first, second) = (asked.recv().expect("one"), asked.recv().expect("two"));
    assert!(first.contains("prefix=a%2Fb%2Fpacks%2F"), "{first}");
    assert!(second.contains("continuation-token=more"), "{second}");
}

#[test]
fn a_failed_upload_leaves_no_parts() {
    let started =
        "<InitiateMultipartUploadResult><UploadId>id</UploadId></InitiateMultipartUploadResult>";
    let (remote, asked) = bucket(vec![
        ("200 OK", started),
        ("200 OK", ""),
        ("403 F", "<Code>AccessDenied</Code>"),
        ("204 N", ""),
    ]);
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(40 << 20).expect("longer than two parts");
    let put = remote.put(&CachePath::meta(), Content::File(file.path()));
    let error = chain(&put.expect_err("the second part is refused"));
    assert!(
        error.contains("can't write srp-cache") && error.contains("403 AccessDenied"),
        "{error}"
    );
    let asked: Vec<String> = asked.iter().collect();
    let first: Vec<&str> = asked.iter().map(|it| it.lines().next().unwrap_or_default()).collect();
    assert!(first[0].starts_with("POST ") && first[0].contains("uploads"), "{first:?}");
    assert!(first[2].starts_with("PUT ") && first[2].contains("partNumber=2"), "{first:?}");
    assert!(first[3].starts_with("DELETE ") && first[3].contains("uploadId=id"), "{first:?}");
}
