//! `srp serve`: a store as a cache, for the machine next door and for people.

use std::fs;
use std::io::Read;
use std::path::Path;

use crate::support::place::list;
use crate::support::serving::Serving;
use crate::support::{Place, Run};

const TWO: &str = r#"
lower = sh("lower", "echo deep > $out/usr/lower")
upper = sh("upper", "cat /usr/lower > $out/usr/upper; dd if=/dev/zero of=$out/usr/big bs=1k count=600", tools = [lower], run = [lower])
root = stage(name = "root", build = TRIPLE, host = TRIPLE, tools = [upper, applets])
return {"": root, "lower": lower, "upper": upper, "late": sh("late", "echo late > $out/usr/late")}
"#;

fn builder() -> (Place, String) {
    let place = Place::new(TWO);
    let key = place.srp(&["key", "generate", "builder-1"]).succeeded().stdout.trim_end().to_owned();
    place.realise("t.x");
    (place, key)
}

fn user(url: &str, key: &str) -> Place {
    let place = Place::new(TWO);
    configure(&place, &format!("[[caches]]\nurl = '{url}'\n"));
    place.srp(&["key", "trust", key]).succeeded();
    place
}

fn configure(place: &Place, more: &str) {
    let path = "home/.config/srp/config.toml";
    let config = fs::read_to_string(place.path(path)).unwrap();
    place.write(path, &(config + more));
}

fn name(run: &Run) -> String {
    Path::new(run.stdout.trim_end()).file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn a_store_is_a_cache_without_being_published() {
    let (builder, key) = builder();
    let mut server = Serving::of(&builder, &[]);
    let built = builder.srp(&["realise", "t.x"]).succeeded();
    let user = user(server.url(), &key);
    let dry = user.srp(&["realise", "-n", "t.x"]).succeeded();
    dry.says(&["1 to substitute (", &format!(" from {}", server.url())]);
    let run = user.srp(&["realise", "--no-build", "t.x"]).succeeded();
    assert_eq!(name(&run), name(&built));
    assert_eq!(run.stderr.matches("warning:").count(), 0, "{run}");
    user.assert_tidy();
    // What was no root is there, too, and what is built while it serves.
    user.srp(&["realise", "--no-build", "t.x.upper"]).succeeded();
    user.srp(&["realise", "--no-build", "t.x.late"]).exited(3);
    builder.realise("t.x.late");
    user.srp(&["realise", "--no-build", "t.x.late"]).succeeded();
    // It only reads.
    let run = user.srp(&["cache", "push", "t.x", "--unsigned", "--to", server.url()]).exited(1);
    run.says(&["the server takes no PUT here"]);
    assert_eq!(server.end(), Some(0));
    // What was packed is packed no more, and what is served is the same.
    let packs = list(&builder.store().join("served/packs"));
    assert!(!packs.is_empty());
    let server = Serving::of(&builder, &[]);
    assert_eq!(list(&builder.store().join("served/packs")), packs);
    let roots = format!("/roots/t.x/{}", key_id(&builder));
    let pointer = server.get(&roots).1;
    assert_eq!(Serving::of(&builder, &[]).get(&roots).1, pointer);
    assert!(pointer.starts_with(b"srp root 1\n"));
}

fn key_id(place: &Place) -> String {
    let listed = place.srp(&["key", "list"]).succeeded().stdout;
    listed.split_whitespace().nth(1).unwrap().to_owned()
}

#[test]
fn people_get_a_page_that_needs_nothing_else() {
    let (builder, key) = builder();
    let server = Serving::of(&builder, &[]);
    let (head, page) = server.get("/");
    let page = String::from_utf8(page).unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("Content-Type: text/html; charset=utf-8\r\n"), "{head}");
    let trust = format!("srp key trust {key}");
    let url = format!("url = &quot;{}&quot;", server.url());
    // A quotation mark in text need not be escaped.
    let page = page.replace("url = \"", "url = &quot;").replace("\"\n", "&quot;\n");
    for part in
        ["<html lang=\"en\">", "<title>", "<h1>", "<caption>", "scope=\"col\"", "t.x", &trust, &url]
    {
        assert!(page.contains(part), "{part}: {page}");
    }
    for from_elsewhere in ["<script", "<link", "<img", "src=", "href=", "@import"] {
        assert!(!page.contains(from_elsewhere), "{from_elsewhere}: {page}");
    }
    assert!(server.get("/nothing").0.starts_with("HTTP/1.1 404 "));
    assert!(server.get("/../../etc/passwd").0.starts_with("HTTP/1.1 404 "));
    assert!(server.get("/packs/..%2f..%2fmeta").0.starts_with("HTTP/1.1 404 "));
}

#[test]
fn a_token_and_a_certificate_keep_others_out() {
    use std::os::unix::fs::PermissionsExt;
    let (builder, key) = builder();
    builder.write("token", "s3cret\n");
    let token = builder.path("token");
    let arguments = |token: &Path| {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("builder/src/fetch/testdata");
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let pem = |name: &str| text(&data.join(name));
        let (cert, secret) = (pem("server.pem"), pem("server.key"));
        let all = ["--token-file", &text(token), "--tls-cert", &cert, "--tls-key", &secret];
        (all.map(str::to_owned), pem("ca.pem"))
    };
    let (options, authority) = arguments(&token);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let refused = [&["serve", "--listen", "127.0.0.1:0"], &options[..]].concat();
    builder.srp(&refused).exited(1).says(&["others may read the token"]);
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let server = Serving::of(&builder, &options);
    assert!(server.url().starts_with("https://"));
    let realise = |url: &str| {
        let place = user(url, &key);
        let mut command = place.command(&["realise", "--no-build", "t.x"]);
        let run = Run::of(command.env("SSL_CERT_FILE", &authority));
        assert!(!run.stderr.contains("s3cret"), "{run}");
        run
    };
    realise(&server.url().replace("://", "://srp:s3cret@")).succeeded();
    realise(&server.url().replace("://", "://srp:guess@")).exited(3).says(&["HTTP status 401"]);
    realise(server.url()).exited(3).says(&["HTTP status 401"]);
    let plain = server.url().replace("https://", "http://srp:s3cret@");
    realise(&plain).exited(3);
}

#[test]
fn what_was_not_named_is_not_served() {
    let (builder, key) = builder();
    // Packed by one that serves everything; that is no reason for one that doesn't.
    drop(Serving::of(&builder, &[]));
    let server = Serving::of(&builder, &["t.x.lower"]);
    let user = user(server.url(), &key);
    user.srp(&["realise", "--no-build", "t.x"]).exited(3);
    user.srp(&["realise", "--no-build", "t.x.lower"]).succeeded();
    let served = |kind: &str| -> Vec<bool> {
        let all = list(&builder.store().join("served").join(kind));
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let ask = |path| server.get(&format!("/{kind}/{}", name(path))).0;
        all.iter().map(|path| ask(path).starts_with("HTTP/1.1 200")).collect()
    };
    // `lower` needs nothing else.
    for kind in ["packs", "objects"] {
        let served = served(kind);
        assert!(served.len() > 1, "{served:?}");
        assert_eq!(served.iter().filter(|it| **it).count(), 1, "{kind}: {served:?}");
    }
    builder
        .srp(&["serve", "--listen", "127.0.0.1:0", "t.x.late"])
        .exited(1)
        .says(&["not realised"]);
    let taken = server.url().strip_prefix("http://").unwrap();
    builder.srp(&["serve", "--listen", taken]).exited(1).says(&["can't listen at "]);
}

#[test]
fn memory_is_flat_while_a_large_object_is_served() {
    const MEGABYTES: u64 = 256;
    let place = Place::new(&format!(
        r#"return {{"": sh("large", "dd if=/dev/urandom of=$out/usr/large bs=1M count={MEGABYTES}")}}"#
    ));
    place.realise("t.x");
    let server = Serving::of(&place, &[]);
    let packs = list(&place.store().join("served/packs"));
    let pack = packs.iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let path = format!("/packs/{}", pack.file_name().unwrap().to_str().unwrap());
    // From here on the peak is that of serving, not of packing.
    fs::write(format!("/proc/{}/clear_refs", server.id()), "5").unwrap();
    let peak = || -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
    };
    let before = peak();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let count = std::io::copy(&mut server.ask(&path), &mut std::io::sink()).unwrap();
                assert!(count > MEGABYTES << 20, "{count}");
            });
        }
    });
    let after = peak();
    assert!(after < before + 16, "{before} MiB became {after} MiB");
    // One who stops in the middle is nobody's trouble.
    let mut stream = server.ask(&path);
    stream.read_exact(&mut [0; 1000]).unwrap();
    drop(stream);
    assert!(server.get("/srp-cache").1.starts_with(b"srp cache\n"));
}
