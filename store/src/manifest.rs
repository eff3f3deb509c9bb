//! A stage's manifest: which objects it is composed of, and what comes out.
//!
//! It is the one file of the stage's object, at `/srp/stage/<name>`, and is text: the line
//! `srp stage 1`, then `name`, `build`, `host`, `root` (the composed root's digest), and one line
//! `tools <object>` or `libs <object>` for each component in composition order.
//!
//! Whoever could forge one would have any object of the store composed and shown to a build. So
//! `/srp` has one gate: whatever is registered, from a build, an archive, a directory or another
//! machine, passes `admit`; and a manifest counts only if its components are what its object
//! refers to, which is a part of the object's id.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::compose::RESERVED;
use crate::derivation::Role;
use crate::digest::Digest;
use crate::error::{IoContext, StoreError};
use crate::files;
use crate::listing::{Found, Listing};
use crate::name::{Name, Triple};
use crate::object::{Object, ObjectName, ReferenceKind};
use crate::store::Store;
use crate::tree::Entry;

/// No stage has so many components that its manifest would be longer.
const MAX_BYTES: u64 = 1 << 20;

/// A stage, realised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The stage's name.
    pub name: Name,
    /// Where programs in `tools` run.
    pub build: Triple,
    /// Where programs in `libs` run.
    pub host: Triple,
    /// The composed root's digest.
    pub root: Digest,
    /// The components in composition order.
    pub components: Vec<(Role, ObjectName)>,
}

/// Text that is no manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the manifest is not what belongs there")]
pub struct ManifestError {
    line: usize,
}

impl Manifest {
    /// Where the manifest lies in its object.
    pub fn path(name: &Name) -> PathBuf {
        PathBuf::from("srp/stage").join(name.as_str())
    }

    /// The components in one role.
    pub fn role(&self, role: Role) -> Vec<crate::ObjectId> {
        self.components.iter().filter(|(it, _)| *it == role).map(|(_, object)| object.id).collect()
    }

    /// Whether `libs` lie at the sysroot.
    pub fn is_cross(&self) -> bool {
        self.build != self.host
    }

    /// The text.
    pub fn encode(&self) -> String {
        let mut text = format!(
            "srp stage 1\nname {}\nbuild {}\nhost {}\nroot {}\n",
            self.name, self.build, self.host, self.root
        );
        for (role, object) in &self.components {
            text += &format!("{} {object}\n", role.tag());
        }
        text
    }
}

impl FromStr for Manifest {
    type Err = ManifestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        fn field<T: FromStr>(
            line: Option<&&str>,
            key: &str,
            number: usize,
        ) -> Result<T, ManifestError> {
            line.and_then(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
                .ok_or(ManifestError { line: number })
        }
        let lines: Vec<&str> = text.lines().collect();
        if lines.first() != Some(&"srp stage 1") {
            return Err(ManifestError { line: 1 });
        }
        let components = lines.iter().enumerate().skip(5).map(|(index, line)| {
            let malformed = ManifestError { line: index + 1 };
            let (role, object) = line.split_once(' ').ok_or(malformed.clone())?;
            let role = Role::from_tag(role).ok_or(malformed.clone())?;
            Ok((role, object.parse().map_err(|_| malformed)?))
        });
        Ok(Manifest {
            name: field(lines.get(1), "name", 2)?,
            build: field(lines.get(2), "build", 3)?,
            host: field(lines.get(3), "host", 4)?,
            root: field(lines.get(4), "root", 5)?,
            components: components.collect::<Result<_, _>>()?,
        })
    }
}

impl Store {
    /// The manifest of an object that is a stage; `None` if it is an ordinary object.
    pub fn manifest(&self, object: &Object) -> Result<Option<Manifest>, StoreError> {
        read(object, &*self.listing(&object.tree)?, &self.tree_path(&object.tree))
    }
}

/// Lets an object in whose tree lies at `tree`: it holds nothing at `/srp`, or it is a stage, and
/// its manifest is all that it holds.
pub(crate) fn admit(object: &Object, listing: &Listing, tree: &Path) -> Result<(), StoreError> {
    if listing.find(RESERVED).is_none() {
        return Ok(());
    }
    let reserved = || StoreError::Reserved { object: object.path_name() };
    let path = Manifest::path(&object.name);
    let mut directory = listing.root();
    for name in path.iter().map(|name| name.as_encoded_bytes()) {
        directory = match directory.get(name) {
            Some(_) if directory.iter().len() > 1 => return Err(reserved()),
            Some(Entry::Directory { digest }) => listing.directory(digest).ok_or_else(reserved)?,
            Some(Entry::File { executable: false, .. }) => break,
            _ => return Err(reserved()),
        };
    }
    match read(object, listing, tree)? {
        // Archives and directories refer to nothing: whatever they hold here is none.
        Some(manifest) if !manifest.components.is_empty() && manifest.name == object.name => Ok(()),
        _ => Err(reserved()),
    }
}

/// The manifest in an object's tree, if there is one: what the listing says, and with no component
/// but what the object refers to.
fn read(object: &Object, listing: &Listing, tree: &Path) -> Result<Option<Manifest>, StoreError> {
    let file = Manifest::path(&object.name);
    let Some(Found::Entry(Entry::File { digest, .. })) =
        listing.find(file.as_os_str().as_encoded_bytes())
    else {
        return Ok(None);
    };
    let path = tree.join(&file);
    let mut bytes = Vec::new();
    let opened = files::open_plain(&path).at("read", &path)?;
    opened.take(MAX_BYTES).read_to_end(&mut bytes).at("read", &path)?;
    let found = Digest::of_file(&bytes);
    if found != *digest {
        return Err(StoreError::Corrupt { path, expected: *digest, found });
    }
    let text = String::from_utf8_lossy(&bytes);
    let manifest: Manifest = text
        .parse()
        .map_err(|error: ManifestError| StoreError::Damaged { path, reason: error.to_string() })?;
    for (_, component) in &manifest.components {
        if !object.references(ReferenceKind::ALL).any(|id| id == component.id) {
            let (object, component) = (object.path_name(), component.clone());
            return Err(StoreError::NotAStage { object, component });
        }
    }
    Ok(Some(manifest))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use super::*;
    use crate::commit::Registration;
    use crate::ingest::{self, Rules};
    use crate::object::Reference;
    use crate::store::Access;

    fn register(
        store: &Store,
        name: &str,
        files: &[(&str, &str)],
        references: &[&Object],
    ) -> Result<Object, StoreError> {
        let scratch = store.scratch().expect("a scratch directory");
        let tree = scratch.path().join("tree");
        for (file, text) in files {
            let path = tree.join(file);
            fs::create_dir_all(path.parent().expect("a parent")).expect("created");
            fs::write(path, text).expect("written");
        }
        let listing = Arc::new(
            ingest::take(
                &crate::open_tree::OpenTree::open(&tree).expect("opened"),
                Rules::default(),
            )
            .expect("taken"),
        );
        let run = |it: &&Object| Reference { kind: ReferenceKind::Run, object: it.id() };
        let object = Object {
            name: name.parse().expect("a name"),
            tree: listing.digest(),
            references: references.iter().map(run).collect(),
            permissions: [].into(),
        };
        let mut registration = Registration::default();
        registration.object(store, &object, listing, tree);
        store.commit(registration).map(|()| object)
    }

    fn text(name: &str, components: &[&Object]) -> String {
        let manifest = Manifest {
            name: name.parse().expect("a name"),
            build: "x86_64-linux-musl".parse().expect("a triple"),
            host: "x86_64-linux-musl".parse().expect("a triple"),
            root: Digest::of_file(b"root"),
            components: components.iter().map(|it| (Role::Tools, it.path_name())).collect(),
        };
        manifest.encode()
    }

    #[test]
    fn a_stage_is_made_of_what_it_refers_to_and_nothing_else_has_a_manifest() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(&directory.path().join("store"), Access::Write).expect("opened");
        let register = |files: &[(&str, &str)], references: &[&Object]| {
            register(&store, "stage", files, references)
        };
        let [own, secret] = ["own", "secret"].map(|name| {
            self::register(&store, name, &[("usr/file", name)], &[]).expect("registered")
        });
        let file = "srp/stage/stage";
        let sound = text("stage", &[&own]);
        let stage = register(&[(file, &sound)], &[&own]).expect("registered");
        let manifest = store.manifest(&stage).expect("read").expect("a stage");
        assert_eq!(manifest.components.len(), 1);
        assert_eq!(store.manifest(&own).expect("read"), None);

        let stolen = text("stage", &[&own, &secret]);
        let error = register(&[(file, &stolen)], &[&own]).expect_err("a forgery").to_string();
        let names = format!("names {}, which it does not refer to", secret.path_name());
        assert!(error.ends_with(&names), "{error}");
        // Archives and directories refer to nothing.
        assert!(matches!(register(&[(file, &sound)], &[]), Err(StoreError::NotAStage { .. })));
        let empty = text("stage", &[]);
        let other = text("other", &[&own]);
        for files in [
            &[(file, empty.as_str())][..],
            &[(file, other.as_str())],
            &[(file, sound.as_str()), ("usr/bin/sh", "x")],
            &[(file, sound.as_str()), ("srp/sysroot/usr/lib/libc.so", "x")],
            &[(file, sound.as_str()), ("srp/stage/more", "x")],
            &[("srp/stage/other", other.as_str())],
            &[("srp/stage/stage/stage", sound.as_str())],
            &[("srp/file", "x")],
            &[("srp", "x")],
        ] {
            let error = register(files, &[&own]).expect_err("reserved");
            assert!(matches!(error, StoreError::Reserved { .. }), "{files:?}: {error}");
        }

        // What is on the disk counts for no more than its digest.
        let path = store.tree_path(&stage.tree).join(file);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("changed");
        fs::write(&path, stolen).expect("written");
        assert!(matches!(store.manifest(&stage), Err(StoreError::Corrupt { .. })));
    }
}
