//! The tests' tiny seed: programs of Debian's packages, as derivations/seed/lock.json pins them.
//!
//! They are fetched by srp's own fetcher, once, into cargo's target directory, and never taken from
//! the host: a test means the same everywhere. Two test programs share this file, one of which has
//! none of the other's support; so it stands alone.

#![allow(dead_code)] // each of the two uses a part

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use srp_builder::CancelToken;
use srp_builder::fetch::{
    FetchRequest, Fetcher, FetcherConfig, Mirrors, NetworkSettings, Place, Progress,
};
use srp_builder::unpack::{Format, UnpackSpec, unpack};

/// The lock file, from the root of the repository.
pub(crate) const LOCK: &str = "derivations/seed/lock.json";

/// A package as the lock file pins it.
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) url: String,
    pub(crate) sha256: String,
    pub(crate) size_bytes: u64,
}

/// Names a directory to which everything was copied that tests need, for a user who can't reach the
/// repository: a program `srp`, the lock file at its own path, and the seed's cache in `seed`.
pub(crate) const HOME: &str = "SRP_TEST_HOME";

/// The directory of copies, if there is one.
pub(crate) fn home() -> Option<PathBuf> {
    std::env::var_os(HOME).map(PathBuf::from)
}

/// The root of the repository: the nearest directory above the crate's that has the lock file.
pub(crate) fn repository() -> PathBuf {
    if let Some(home) = home() {
        return home;
    }
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let found = above.into_iter().find(|directory| directory.join(LOCK).is_file());
    found.expect("the tests lie within the repository").to_owned()
}

/// A package of the seed, for `x86_64` or `aarch64`.
pub(crate) fn package(arch: &str, name: &str) -> Package {
    let text = fs::read_to_string(repository().join(LOCK)).expect("the lock file can be read");
    let lock: serde_json::Value = serde_json::from_str(&text).expect("the lock file is JSON");
    let locked = &lock["architectures"][arch]["packages"][name];
    let field = |field: &str| match locked[field].as_str() {
        Some(text) => text.to_owned(),
        None => panic!("{LOCK} has no {field} of {name} for {arch}"),
    };
    Package {
        name: name.to_owned(),
        version: field("version"),
        url: format!("mirror://debian/{}", field("path")),
        sha256: field("sha256"),
        size_bytes: locked["size"].as_u64().expect("the lock file says each package's size"),
    }
}

/// The packages of a set of the seed, with those of the sets that it lies over.
pub(crate) fn packages_of_set(arch: &str, name: &str) -> Vec<String> {
    let text = fs::read_to_string(repository().join(LOCK)).expect("the lock file can be read");
    let lock: serde_json::Value = serde_json::from_str(&text).expect("the lock file is JSON");
    let sets = lock["architectures"][arch]["sets"].as_array().expect("each architecture has sets");
    let set = sets.iter().find(|set| set["name"] == name).expect("the lock file has the set");
    let names = |field: &str| {
        let list = set[field].as_array().into_iter().flatten();
        list.map(|it| it.as_str().expect("names are text").to_owned()).collect::<Vec<_>>()
    };
    let below = names("over").into_iter().flat_map(|under| packages_of_set(arch, &under));
    below.chain(names("packages")).collect()
}

/// A sources directory that has this package: srp takes it from there.
pub(crate) fn sources(package: &Package) -> PathBuf {
    let directory = cache().join("sources");
    let request = FetchRequest {
        name: package.name.clone(),
        sha256: package.sha256.parse().expect("the lock file has SHA-256 digests"),
        size_bytes: Some(package.size_bytes),
        urls: vec![package.url.clone()],
    };
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let mut named = std::collections::BTreeMap::new();
    if let Some(urls) = variable("SRP_MIRROR_DEBIAN") {
        named.insert("debian".to_owned(), Mirrors::split_urls(&urls));
    }
    let fetcher = Fetcher::new(FetcherConfig {
        mirrors: Mirrors::new(named).with_apt_directory("/etc/apt"),
        network: NetworkSettings::from_variables(variable),
        ..FetcherConfig::default()
    });
    let cancel = CancelToken::new().expect("a token can be made");
    if let Err(error) = fetcher.fetch(&request, &directory, &Silent, &cancel) {
        panic!(
            "the tests need {} {}: {error}\n\
             Set SRP_MIRROR_DEBIAN to a Debian mirror that can be reached (and https_proxy or \
             SSL_CERT_FILE, if it takes that), or put the file at {}",
            package.name,
            package.version,
            directory.join(request.file_name()).display()
        );
    }
    directory
}

/// A program of a package, executable by everybody who may enter the target directory.
pub(crate) fn program(arch: &str, package_name: &str, path: &str) -> PathBuf {
    let package = package(arch, package_name);
    let base = path.rsplit('/').next().expect("a path has a last component");
    // Under its own name: busybox asks what it was called by.
    let directory = cache().join(&package.sha256[..16]);
    let place = directory.join(base);
    if place.is_file() {
        return place;
    }
    let deb = sources(&package).join(format!("{}-{}", package.sha256, package.name));
    let into = tempfile::tempdir_in(cache()).expect("the cache can be written to");
    let spec = UnpackSpec { only: vec![path.to_owned()], ..UnpackSpec::default() };
    let cancel = CancelToken::new().expect("a token can be made");
    unpack(&deb, Format::Deb, &spec, into.path(), &cancel).expect("a verified package unpacks");
    let unpacked = into.path().join(path);
    fs::set_permissions(&unpacked, fs::Permissions::from_mode(0o555)).expect("it is the test's");
    fs::create_dir_all(&directory).expect("the cache can be written to");
    // Tests that do the same at once overwrite each other's with the same bytes.
    fs::rename(&unpacked, &place).expect("the cache can be written to");
    place
}

/// The busybox of this machine's architecture.
pub(crate) fn busybox() -> PathBuf {
    program(std::env::consts::ARCH, "busybox-static", "usr/bin/busybox")
}

fn cache() -> PathBuf {
    let directory = home().unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into()).join("seed");
    fs::create_dir_all(&directory).expect("the target directory can be written to");
    directory
}

struct Silent;

impl Progress for Silent {
    fn began(&self, _: &Place, _: u64, _: Option<u64>) {}
    fn received(&self, _: u64) {}
}
