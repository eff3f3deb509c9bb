//! Git sources from git's own server, from a plain web server, and from repositories that mean harm.

use std::io::Read;
use std::process::{Command, Stdio};

use super::*;

/// A repository, made by git.
struct Repository {
    directory: TempDir,
}

impl Repository {
    fn new() -> Repository {
        let repository = Repository { directory: tempfile::tempdir().expect("a directory") };
        repository.git(&["init", "--quiet"]);
        repository
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn write(&self, path: &str, text: &str) -> &Repository {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("created");
        std::fs::write(path, text).expect("written");
        self
    }

    fn git(&self, arguments: &[&str]) -> String {
        self.git_with(arguments, b"")
    }

    fn git_with(&self, arguments: &[&str], input: &[u8]) -> String {
        let mut child = git(arguments)
            .current_dir(self.directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("git is installed");
        child.stdin.take().expect("piped").write_all(input).expect("read");
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "git {arguments:?}");
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    /// Commits all that is there.
    fn commit(&self) -> String {
        self.git(&["add", "--all", "--force"]);
        self.git(&["commit", "--quiet", "--message", "x"]);
        self.git(&["rev-parse", "HEAD"])
    }

    /// Commits a tree of these entries, whatever they are: mode, name, object.
    fn commit_raw(&self, entries: &[(&str, &str, &str)]) -> String {
        let mut tree = Vec::new();
        for (mode, name, object) in entries {
            tree.extend(format!("{mode} {name}\0").bytes());
            let digits = object.as_bytes().chunks(2);
            tree.extend(digits.map(|pair| {
                u8::from_str_radix(std::str::from_utf8(pair).expect("text"), 16).expect("digits")
            }));
        }
        let arguments = ["hash-object", "-t", "tree", "--literally", "-w", "--stdin"];
        let tree = self.git_with(&arguments, &tree);
        let commit = self.git(&["commit-tree", &tree, "-m", "x"]);
        self.git(&["update-ref", "refs/heads/raw", &commit]);
        commit
    }

    fn blob(&self, text: &str) -> String {
        self.git_with(&["hash-object", "-w", "--stdin"], text.as_bytes())
    }
}

/// Whether git is here with its server; says so loudly if it isn't.
fn no_git() -> bool {
    let output = git(&["--exec-path"]).output().map(|output| output.stdout).unwrap_or_default();
    let path = String::from_utf8_lossy(&output);
    let absent = !Path::new(path.trim()).join("git-http-backend").is_file();
    if absent {
        // Past libtest, which would keep it to itself.
        let text = "SKIPPED: git sources: there is no git with http-backend in /usr/bin\n";
        let _ = nix::unistd::write(std::io::stderr(), text.as_bytes());
    }
    absent
}

fn git(arguments: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/nonexistent");
    command.env("GIT_CONFIG_NOSYSTEM", "1");
    for role in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{role}_NAME"), "x").env(format!("GIT_{role}_EMAIL"), "x@x");
        command.env(format!("GIT_{role}_DATE"), "2001-01-01T00:00:00Z");
    }
    command.args(["-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always"]);
    command.args(arguments);
    command
}

/// Serves what lies below a directory by git's own CGI program. Returns the URL, and what was asked.
fn git_server(root: &Path) -> (String, std::sync::Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let asked = std::sync::Arc::new(Mutex::new(Vec::new()));
    let (root, log) = (root.to_owned(), std::sync::Arc::clone(&asked));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (root, log) = (root.clone(), std::sync::Arc::clone(&log));
            std::thread::spawn(move || answer_by_git(stream.expect("a connection"), &root, &log));
        }
    });
    (url, asked)
}

fn answer_by_git(mut stream: std::net::TcpStream, root: &Path, log: &Mutex<Vec<String>>) {
    use std::io::{BufRead, BufReader};
    let mut reader = BufReader::new(stream.try_clone().expect("cloned"));
    let mut line = String::new();
    reader.read_line(&mut line).expect("a line");
    let mut words = line.split(' ').map(str::to_owned);
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return };
    log.lock().expect("no panic").push(target.clone());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut cgi = git(&["http-backend"]);
    cgi.env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("REQUEST_METHOD", method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line");
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        let name = name.to_ascii_uppercase().replace('-', "_");
        match name.as_str() {
            "CONTENT_LENGTH" => {
                length = value.trim().parse().expect("a length");
                cgi.env(&name, value.trim());
            }
            "CONTENT_TYPE" => drop(cgi.env(&name, value.trim())),
            _ => drop(cgi.env(format!("HTTP_{name}"), value.trim())),
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    let mut child = cgi
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("git is installed");
    let _ = child.stdin.take().expect("piped").write_all(&body);
    let output = child.wait_with_output().expect("it ends").stdout;
    let text = String::from_utf8_lossy(&output[..output.len().min(200)]).into_owned();
    let status = text.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK");
    let _ = stream.write_all(format!("HTTP/1.1 {status}\r\nConnection: close\r\n").as_bytes());
    let _ = stream.write_all(&output);
}

/// What GNU tar makes of a checkout, by the command in docs/derivations.md.
fn tar_of(checkout: &Path) -> Vec<u8> {
    let script = "find . -mindepth 1 -name .git -prune -o \
                  \\( -type f -o -type l -o -type d -empty \\) -printf '%P\\0' | LC_ALL=C sort -z | \
                  tar --null --no-recursion -T - --format=gnu -b1 --owner=:0 --group=:0 \
                  --numeric-owner --mtime=@0 --mode=u=rwX,go=rX -cf -";
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(checkout)
        .output()
        .expect("bash is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn outcome(place: &str, expected: &[u8]) -> Result<Vec<u8>, String> {
    let request = request(expected, &[place.to_owned()]);
    let (result, directory) = Bench::new().fetch(&request);
    let left = names(&directory.path().join("sources"));
    match result {
        Ok(fetched) => {
            assert_eq!(left, [request.file_name()]);
            Ok(std::fs::read(fetched.path).expect("there"))
        }
        Err(error) => {
            assert!(left.is_empty(), "{left:?}");
            Err(error.to_string())
        }
    }
}

fn refused(place: &str) -> String {
    outcome(place, b"another file").expect_err("refused")
}

/// A tree with all that trees have.
fn filled() -> Repository {
    let repository = Repository::new();
    let long = "n".repeat(120);
    repository
        .write("b/file", "one\n")
        .write("b-c", "two\n")
        .write("b0", &"x".repeat(5000))
        .write("empty", "")
        .write(&format!("deep/{long}/file"), "three\n")
        .write("Case", "upper\n")
        .write("case", "lower\n")
        .write(".gitattributes", "version export-subst\nempty export-ignore\nb0 text eol=crlf\n")
        .write("version", "$Format:%H$\n")
        .write("run", "#!/bin/sh\n");
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(repository.path("run"), executable).expect("changed");
    std::os::unix::fs::symlink("/etc/passwd", repository.path("out")).expect("linked");
    std::os::unix::fs::symlink(&long, repository.path("link")).expect("linked");
    repository
}

#[test]
fn a_commit_becomes_what_gnu_tar_makes_of_its_checkout() {
    if no_git() {
        return;
    }
    let repository = filled();
    let first = repository.commit();
    let tar = tar_of(repository.directory.path());
    repository.write("later", "not in it\n").commit();
    let root = repository.directory.path();
    let (server, asked) = git_server(root);
    let place = format!("git+{server}/.git@{first}");
    assert_eq!(outcome(&place, &tar).expect("fetched"), tar);
    assert!(asked.lock().expect("no panic").iter().any(|it| it.ends_with("/git-upload-pack")));
    // By file: as well.
    assert_eq!(
        outcome(&format!("git+file://{}@{first}", root.display()), &tar).expect("there"),
        tar
    );
    // A redirect, and a hash that isn't its.
    let moved = TestServer::start(move |asked, stream| {
        let location = format!("{server}/.git{}", asked.target.trim_start_matches("/moved"));
        respond(stream, "301 Moved", &[("Location", &location)], b"");
    });
    let place = format!("git+{}@{first}", moved.url("moved"));
    assert_eq!(outcome(&place, &tar).expect("redirected"), tar);
    let said = refused(&place);
    assert!(
        said.starts_with("wrong hash for thing.tar\n") && said.contains(&digest(&tar).to_string())
    );
}

#[test]
fn a_server_without_any_git_is_read_by_its_files() {
    if no_git() {
        return;
    }
    let repository = filled();
    let first = repository.commit();
    let tar = tar_of(repository.directory.path());
    repository.write("later", "not in it\n").commit();
    repository.git(&["update-server-info"]);
    let root = repository.path(".git");
    let server = TestServer::start(move |asked, stream| {
        let path = asked.target.split('?').next().expect("a path").trim_start_matches("/r/");
        match std::fs::read(root.join(path)) {
            Ok(bytes) => respond(stream, "200 OK", &[], &bytes),
            Err(_) => respond(stream, "404 Not Found", &[], b""),
        }
    });
    let place = format!("git+{}@{first}", server.url("r"));
    assert_eq!(outcome(&place, &tar).expect("fetched"), tar);
    let absent = format!("git+{}@{}", server.url("r"), "12".repeat(20));
    assert!(refused(&absent).contains("no branch or tag"), "{}", refused(&absent));
}

#[test]
fn sha256_repositories_are_repositories() {
    if no_git() {
        return;
    }
    let repository = Repository { directory: tempfile::tempdir().expect("a directory") };
    repository.git(&["init", "--quiet", "--object-format=sha256"]);
    let commit = repository.write("a", "b\n").commit();
    assert_eq!(commit.len(), 64);
    let (server, _) = git_server(repository.directory.path());
    let tar = tar_of(repository.directory.path());
    assert_eq!(outcome(&format!("git+{server}/.git@{commit}"), &tar).expect("fetched"), tar);
}

#[test]
fn submodules_are_pinned_by_the_commit() {
    if no_git() {
        return;
    }
    let root = tempfile::tempdir().expect("a directory");
    let (server, _) = git_server(root.path());
    let make = |name: &str, links: &[(&str, &str, &str)]| {
        let repository = Repository::new();
        repository.write("name", name);
        let module = |(path, url, _): &(&str, &str, &str)| {
            format!("[submodule \"{path}\"]\n\tpath = {path}\n\turl = {url}\n")
        };
        if !links.is_empty() {
            repository.write(".gitmodules", &links.iter().map(module).collect::<String>());
        }
        repository.git(&["add", "--all"]);
        for (path, _, commit) in links {
            let link = format!("160000,{commit},{path}");
            repository.git(&["update-index", "--add", "--cacheinfo", &link]);
            std::fs::create_dir_all(repository.path(path)).expect("created");
        }
        repository.git(&["commit", "--quiet", "--message", "x"]);
        let commit = repository.git(&["rev-parse", "HEAD"]);
        let to = root.path().join(name);
        let path = repository.directory.path().to_str().expect("text");
        repository.git(&["clone", "--quiet", "--bare", path, to.to_str().expect("text")]);
        (repository, commit)
    };
    let (_inner, inner) = make("inner", &[]);
    let (_middle, middle) = make("middle", &[("sub", &format!("{server}/inner"), &inner)]);
    let (outer, commit) = make("outer", &[("lib/middle", "../middle", &middle)]);
    let without = tar_of(outer.directory.path());
    let place = format!("git+{server}/outer@{commit}");
    assert_eq!(outcome(&place, &without).expect("fetched"), without);
    let modules = format!("[submodule \"sub\"]\n\tpath = sub\n\turl = {server}/inner\n");
    outer.write("lib/middle/name", "middle").write("lib/middle/.gitmodules", &modules);
    outer.write("lib/middle/sub/name", "inner");
    let with = tar_of(outer.directory.path());
    assert_ne!(with, without);
    assert_eq!(outcome(&format!("{place}#submodules"), &with).expect("fetched"), with);
    // A link that nothing explains.
    let lost = outer.commit_raw(&[("160000", "lost", &inner)]);
    let bare = root.path().join("outer");
    outer.git(&[
        "push",
        "--quiet",
        bare.to_str().expect("text"),
        &format!("{lost}:refs/heads/lost"),
    ]);
    let said = refused(&format!("git+{server}/outer@{lost}#submodules"));
    assert!(said.contains("its submodule \"lost\" has no URL"), "{said}");
}

#[test]
fn hostile_repositories_are_refused() {
    if no_git() {
        return;
    }
    let repository = Repository::new();
    let good = repository.write("good", "x").commit();
    let blob = repository.blob("payload");
    let tree = repository.git(&["rev-parse", &format!("{good}^{{tree}}")]);
    let link = repository.blob("/tmp");
    let root = repository.directory.path().to_owned();
    let (server, _) = git_server(&root);
    let place = |commit: &str| format!("git+{server}/.git@{commit}#submodules");
    for entries in [
        vec![("100644", ".git", &blob[..])],
        vec![("100644", ".GIT", &blob)],
        vec![("40000", ".git", &tree)],
        vec![("100644", "..", &blob)],
        vec![("40000", "..", &tree)],
        vec![("100644", "../../x", &blob)],
        vec![("100644", "/x", &blob)],
        vec![("100644", "a", &blob), ("100644", "a", &blob)],
        vec![("120000", "a", &link), ("40000", "a", &tree)],
        vec![("010644", "fifo", &blob)],
    ] {
        let commit = repository.commit_raw(&entries);
        let said = refused(&place(&commit));
        assert!(said.contains("git failed ("), "{entries:?}: {said}");
    }
    for url in
        ["-u./payload", "--upload-pack=touch x", "ext::sh -c x", "file:///etc", "../../../../x"]
    {
        let modules = format!("[submodule \"m\"]\n\tpath = m\n\turl = \"{url}\"\n");
        let modules = repository.blob(&modules);
        let commit =
            repository.commit_raw(&[("100644", ".gitmodules", &modules), ("160000", "m", &good)]);
        let said = refused(&place(&commit));
        assert!(said.contains("git failed ("), "{url}: {said}");
    }
}

#[test]
fn a_tree_without_end_is_cut_short() {
    if no_git() {
        return;
    }
    let repository = Repository::new();
    repository.write("start", "x").commit();
    let blob = repository.blob("x");
    let mut commit = repository.commit_raw(&[("100644", "f", &blob)]);
    // Each level holds the one below ten times: in the end ten thousand million files.
    for _ in 0..10 {
        let below = repository.git(&["rev-parse", &format!("{commit}^{{tree}}")]);
        let names: Vec<String> = (0..10).map(|number| number.to_string()).collect();
        let entries: Vec<_> = names.iter().map(|name| ("40000", &name[..], &below[..])).collect();
        commit = repository.commit_raw(&entries);
    }
    let (server, _) = git_server(repository.directory.path());
    let said = refused(&format!("git+{server}/.git@{commit}"));
    assert!(said.contains("more than 2000000 files"), "{said}");
    // And a file that is larger than stated.
    let commit = repository.write("large", &"x".repeat(1 << 20)).commit();
    let mut request = request(b"x", &[format!("git+{server}/.git@{commit}")]);
    request.size_bytes = Some(10_000);
    let (result, _keep) = Bench::new().fetch(&request);
    assert!(matches!(only_reason(result.expect_err("large")), Reason::WrongSize { .. }));
}

#[test]
fn what_cannot_be_had_says_why() {
    if no_git() {
        return;
    }
    let commit = "12".repeat(20);
    for (place, part) in [
        ("git+https://h.test/x".to_owned(), "names no commit"),
        ("git+https://h.test/x@main".to_owned(), "\"main\" is not a commit"),
        (format!("git+https:///@{commit}"), "not a URL"),
        (format!("git+ssh://h.test/x@{commit}"), "git+ssh: URLs are not supported"),
        (format!("git+mirror://nowhere/x@{commit}"), "no mirror named \"nowhere\""),
        (format!("git+{}@{commit}", dead_url()), "Failed to connect"),
        (format!("git+file:///nonexistent@{commit}"), "/nonexistent"),
    ] {
        let said = refused(&place);
        assert!(said.contains(part), "{place}: {said}");
    }
    let mut bench = Bench::new();
    bench.config.git = "/nonexistent/git".into();
    let (result, _keep) = bench.fetch(&request(b"x", &[format!("git+https://h.test/x@{commit}")]));
    assert!(matches!(only_reason(result.expect_err("no git")), Reason::GitMissing));
}

#[test]
fn cancelling_ends_git() {
    if no_git() {
        return;
    }
    let silent = TestServer::start(|_, _| std::thread::sleep(Duration::from_secs(30)));
    let bench = Bench::new();
    let sources = bench.sources();
    let fetcher = Fetcher::new(bench.config);
    let cancel = CancelToken::new().expect("a descriptor");
    let commit = "12".repeat(20);
    let request = request(b"x", &[format!("git+{}@{commit}", silent.url("r"))]);
    std::thread::scope(|scope| {
        let began = Instant::now();
        let fetch = scope.spawn(|| fetcher.fetch(&request, &sources, &(), &cancel));
        while silent.asked().is_empty() {
            assert!(began.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(20));
        }
        let cancelled = Instant::now();
        cancel.cancel();
        let result = fetch.join().expect("no panic");
        assert!(matches!(result, Err(FetchError::Cancelled { .. })), "{result:?}");
        assert!(cancelled.elapsed() < Duration::from_secs(5));
    });
    assert!(names(&sources).is_empty(), "{:?}", names(&sources));
}
