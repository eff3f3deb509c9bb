//! A commit of a git repository, as the canonical archive of its tree.
//!
//! Git itself is asked for the commit: it speaks every server's dialect, and no library that does is
//! anything like as small. But it is given as little to do as there is. It fetches objects into a
//! repository of the fetch's own, without history where the server can, and each object's name is computed
//! from its bytes there; then it prints the tree and the files. There is no working tree, so nothing is
//! ever checked out: no hook, filter, attribute or `export-subst` applies, and no path of the repository is
//! ever a path of this machine. How git is run is in `command`, and what is made of the tree in `archive`.
//!
//! Whatever a server sends, the archive's SHA-256 decides.

mod archive;
mod command;
mod place;
mod submodules;

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::download::Failed;
use super::error::{FetchError, Reason};
use super::network::NetworkSettings;
use super::pace::LowSpeed;
use super::request::FetchRequest;
use super::sources::{Partial, failure};
use super::url;
use crate::cancel::CancelToken;
use archive::Kind;
use command::Git;
pub(crate) use place::GitPlace;

/// No tree has more files and links.
const MAX_ENTRIES: usize = 2_000_000;
/// Linux's own limit, for a path and for a link's text.
const MAX_PATH_BYTES: usize = 4096;
/// How deep submodules may lie in each other.
const MAX_DEPTH: usize = 16;
/// How many there may be.
const MAX_SUBMODULES: usize = 1000;
/// A source whose size nobody stated may not fill the disk without end.
const MAX_UNSTATED_SIZE: u64 = 32 << 30;

/// A git fetch's circumstances.
pub(super) struct GitFetch<'a> {
    /// The program, by its absolute path.
    pub(super) program: &'a Path,
    pub(super) network: &'a NetworkSettings,
    pub(super) low_speed: LowSpeed,
    pub(super) request: &'a FetchRequest,
    pub(super) cancel: &'a CancelToken,
}

/// Why there is no archive.
pub(super) enum Broken {
    Place(Reason),
    Cancelled,
    Everything(FetchError),
}

impl Broken {
    /// Git couldn't be run, or couldn't be talked to.
    fn git(error: io::Error) -> Broken {
        Broken::Place(Reason::Git { detail: error.to_string() })
    }
}

impl From<Reason> for Broken {
    fn from(reason: Reason) -> Self {
        Self::Place(reason)
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::git(error)
    }
}

/// A file, link or empty directory of the tree.
struct Entry {
    path: Vec<u8>,
    kind: Kind,
    object: String,
}

impl GitFetch<'_> {
    /// Makes the partial the commit's archive. The caller holds the partial's lock, and so what lies beside
    /// it under its name is this fetch's own.
    pub(super) fn run(
        &self,
        place: &GitPlace,
        partial: &mut Partial,
        received: &dyn Fn(u64),
    ) -> Result<u64, Failed> {
        let outcome = self.fetch(place, partial, received);
        outcome.map_err(|broken| match broken {
            Broken::Place(reason) => Failed::Place(reason),
            Broken::Cancelled => FetchError::Cancelled { name: self.request.name.clone() }.into(),
            Broken::Everything(error) => error.into(),
        })
    }

    fn fetch(
        &self,
        place: &GitPlace,
        partial: &mut Partial,
        received: &dyn Fn(u64),
    ) -> Result<u64, Broken> {
        let repository = Repository::make(partial.path())?;
        let git = Git {
            program: self.program,
            network: self.network,
            low_speed: self.low_speed,
            cancel: self.cancel,
            repository: repository.0.clone(),
        };
        let format = if place.commit.len() == 64 { "sha256" } else { "sha1" };
        let format = format!("--object-format={format}");
        let made = git.run(&["init", "--quiet", "--bare", "--template=", &format], None, 0)?;
        if !made.success {
            return Err(Reason::Git { detail: made.message }.into());
        }
        let mut entries = Vec::new();
        self.collect(&git, place, b"", 0, &mut BTreeSet::new(), &mut entries)?;
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        check_tree(&entries)?;
        partial.reset().map_err(Broken::Everything)?;
        let limit = self.request.size_bytes.unwrap_or(MAX_UNSTATED_SIZE);
        let mut to = Archive { partial, limit, cancel: self.cancel, received };
        write(&git, &entries, &mut to)?;
        Ok(to.partial.length())
    }

    /// Fetches a commit and lists its tree below `prefix`, and those of its submodules.
    fn collect(
        &self,
        git: &Git<'_>,
        place: &GitPlace,
        prefix: &[u8],
        depth: usize,
        fetched: &mut BTreeSet<String>,
        entries: &mut Vec<Entry>,
    ) -> Result<(), Broken> {
        if depth > MAX_DEPTH || fetched.len() > MAX_SUBMODULES {
            let detail = "it has too many submodules, or too deep ones".to_owned();
            return Err(Reason::Git { detail }.into());
        }
        if fetched.insert(place.commit.clone()) {
            fetch_commit(git, place)?;
        }
        let mut links = Vec::new();
        let mut modules = None;
        let mut listing =
            git.start(&["ls-tree", "-r", "-z", "--full-tree", &place.commit], None)?;
        let lines = listing.child.stdout.take().expect("it is piped");
        let mut lines = BufReader::new(lines);
        while let Some(line) = next_entry(&mut lines)? {
            if self.cancel.is_cancelled() {
                return Err(Broken::Cancelled);
            }
            if entries.len() >= MAX_ENTRIES {
                let detail = format!("its tree has more than {MAX_ENTRIES} files");
                return Err(Reason::Git { detail }.into());
            }
            let (mode, object, path) = line;
            let full = [prefix, &path].concat();
            let kind = match mode.as_str() {
                // 0664 is what git wrote long ago.
                "100644" | "100664" => Kind::File { executable: false },
                "100755" => Kind::File { executable: true },
                "120000" => Kind::Link,
                "160000" if place.submodules => {
                    links.push((path, object));
                    continue;
                }
                "160000" => Kind::Directory,
                mode => {
                    let path = String::from_utf8_lossy(&full).into_owned();
                    let detail = format!("{path:?} is of a kind that git doesn't have ({mode})");
                    return Err(Reason::Git { detail }.into());
                }
            };
            if path == b".gitmodules" && matches!(kind, Kind::File { .. }) {
                modules = Some(object.clone());
            }
            check_path(&full)?;
            entries.push(Entry { path: full, kind, object });
        }
        listing.finish()?;
        if links.is_empty() {
            return Ok(());
        }
        let modules = modules.map(|object| submodules::read(git, &object)).transpose()?;
        let modules = modules.unwrap_or_default();
        for (path, commit) in links {
            let url = submodules::url(&modules, &place.url, &path)?;
            let submodule = GitPlace { url, commit, submodules: true };
            let prefix = [prefix, &path, b"/"].concat();
            check_path(&prefix[..prefix.len() - 1])?;
            let before = entries.len();
            self.collect(git, &submodule, &prefix, depth + 1, fetched, entries)?;
            if entries.len() == before {
                let path = prefix[..prefix.len() - 1].to_vec();
                entries.push(Entry { path, kind: Kind::Directory, object: String::new() });
            }
        }
        Ok(())
    }
}

/// Gets a commit and all it holds, without its history unless the server can't do without.
fn fetch_commit(git: &Git<'_>, place: &GitPlace) -> Result<(), Broken> {
    const OPTIONS: [&str; 5] =
        ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules"];
    let fetch = |more: &[&str]| git.run(&[&OPTIONS, more].concat(), Some(&place.url), 0);
    let alone = fetch(&["--depth=1", "origin", &place.commit])?;
    if alone.success {
        return Ok(());
    }
    // An old server gives only what a branch or tag names, a plain web server only whole histories.
    let limited =
        ["not our ref", "unadvertised object", "does not support shallow", "no such remote ref"];
    if !limited.iter().any(|part| alone.message.contains(part)) {
        return Err(Reason::Git { detail: alone.message }.into());
    }
    let all = fetch(&["origin", "+refs/heads/*:refs/srp/heads/*", "+refs/tags/*:refs/srp/tags/*"])?;
    if !all.success {
        return Err(Reason::Git { detail: all.message }.into());
    }
    let commit = format!("{}^{{commit}}", place.commit);
    if !git.run(&["cat-file", "-e", &commit], None, 0)?.success {
        let detail = format!(
            "no branch or tag of {} leads to the commit {}",
            url::redact(&place.url),
            place.commit
        );
        return Err(Reason::Git { detail }.into());
    }
    Ok(())
}

/// The next of `ls-tree`'s lines: mode, object and path.
fn next_entry(lines: &mut impl BufRead) -> Result<Option<(String, String, Vec<u8>)>, Broken> {
    // Mode, type and object come before the path.
    let limit = (MAX_PATH_BYTES + 200) as u64;
    let mut line = Vec::new();
    lines.take(limit).read_until(0, &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    let malformed = || Reason::Git { detail: "a path in it is too long".into() };
    if line.pop() != Some(0) {
        return Err(malformed().into());
    }
    let tab = line.iter().position(|byte| *byte == b'\t').ok_or_else(malformed)?;
    let path = line.split_off(tab + 1);
    let head = String::from_utf8_lossy(&line[..tab]).into_owned();
    let mut words = head.split(' ');
    match (words.next(), words.next(), words.next()) {
        (Some(mode), Some(_), Some(object)) => Ok(Some((mode.to_owned(), object.to_owned(), path))),
        _ => Err(malformed().into()),
    }
}

/// Refuses paths that lead elsewhere, or into a repository's own files.
fn check_path(path: &[u8]) -> Result<(), Broken> {
    let sound = |part: &[u8]| {
        !part.is_empty()
            && part != b"."
            && part != b".."
            && !part.eq_ignore_ascii_case(b".git")
            && !part.contains(&0)
    };
    if path.len() <= MAX_PATH_BYTES && path.split(|byte| *byte == b'/').all(sound) {
        return Ok(());
    }
    let path = String::from_utf8_lossy(path).chars().take(200).collect::<String>();
    Err(Reason::Git { detail: format!("its tree holds {path:?}, which is no path of a file") }
        .into())
}

/// Refuses trees in which a path is there twice, or is a file and a directory. `entries` are sorted.
fn check_tree(entries: &[Entry]) -> Result<(), Broken> {
    let refused = |path: &[u8]| {
        let path = String::from_utf8_lossy(path).into_owned();
        Broken::from(Reason::Git { detail: format!("its tree holds {path:?} twice") })
    };
    let paths: BTreeSet<&[u8]> = entries.iter().map(|entry| &entry.path[..]).collect();
    for pair in entries.windows(2) {
        if pair[0].path == pair[1].path {
            return Err(refused(&pair[0].path));
        }
    }
    for entry in entries {
        let slashes = entry.path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        for (slash, _) in slashes {
            if paths.contains(&entry.path[..slash]) {
                return Err(refused(&entry.path[..slash]));
            }
        }
    }
    Ok(())
}

/// Writes the archive of these entries.
fn write(git: &Git<'_>, entries: &[Entry], to: &mut Archive<'_>) -> Result<(), Broken> {
    let mut files = git.start_with(&["cat-file", "--batch"], None, Stdio::piped())?;
    let mut ask = files.child.stdin.take().expect("it is piped");
    let mut answers = BufReader::new(files.child.stdout.take().expect("it is piped"));
    for entry in entries {
        if entry.kind == Kind::Directory {
            archive::entry(to, &entry.path, entry.kind, b"", &mut io::empty(), 0)?;
            continue;
        }
        writeln!(ask, "{}", entry.object)?;
        let mut head = String::new();
        (&mut answers).take(200).read_line(&mut head)?;
        let length = head.trim_end().split(' ').collect::<Vec<_>>();
        let length = match length[..] {
            [_, "blob", length] => length.parse::<u64>().ok(),
            _ => None,
        };
        let path = || String::from_utf8_lossy(&entry.path).into_owned();
        let Some(length) = length else {
            let detail = format!("the server sent no content of {:?}", path());
            return Err(Reason::Git { detail }.into());
        };
        if entry.kind == Kind::Link {
            if length == 0 || length > MAX_PATH_BYTES as u64 {
                let detail =
                    format!("the symbolic link {:?} has a target of {length} bytes", path());
                return Err(Reason::Git { detail }.into());
            }
            let mut target = vec![0; length as usize];
            answers.read_exact(&mut target)?;
            archive::entry(to, &entry.path, entry.kind, &target, &mut io::empty(), 0)?;
        } else {
            archive::entry(to, &entry.path, entry.kind, b"", &mut answers, length)?;
        }
        answers.read_exact(&mut [0])?;
    }
    archive::end(to)?;
    drop(ask);
    files.finish()
}

/// The partial as an archive's sink.
struct Archive<'a> {
    partial: &'a mut Partial,
    limit: u64,
    cancel: &'a CancelToken,
    received: &'a dyn Fn(u64),
}

impl archive::Sink for Archive<'_> {
    type Error = Broken;

    fn take(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        if self.cancel.is_cancelled() {
            return Err(Broken::Cancelled);
        }
        let length = self.partial.length() + bytes.len() as u64;
        if length > self.limit {
            self.partial.reset().map_err(Broken::Everything)?;
            let (expected, actual) = (self.limit, length);
            return Err(Reason::WrongSize { expected, actual, html: false, encoding: None }.into());
        }
        self.partial.append(bytes).map_err(Broken::Everything)?;
        (self.received)(bytes.len() as u64);
        Ok(())
    }
}

/// The repository of one fetch, beside its partial. It goes with it.
struct Repository(PathBuf);

impl Repository {
    fn make(partial: &Path) -> Result<Repository, Broken> {
        let mut path = partial.as_os_str().to_owned();
        path.push(".git");
        let path = std::path::absolute(PathBuf::from(path)).map_err(Broken::git)?;
        let refused = |action, source| Broken::Everything(failure(action, &path, source));
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(refused("remove", error));
            }
            _ => {}
        }
        std::fs::create_dir(&path).map_err(|error| refused("create", error))?;
        Ok(Repository(path))
    }
}

impl Drop for Repository {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
