//! A stage's manifest: which objects it is composed of, and what comes out.
//!
//! It is the one file of the stage's object, at `/srp/stage/<name>`, and is text: the line
//! `srp stage 1`, then `name`, `build`, `host`, `root` (the composed root's digest), and one line
//! `tools <object>` or `libs <object>` for each component in composition order.

use std::path::PathBuf;
use std::str::FromStr;

use crate::derivation::Role;
use crate::digest::Digest;
use crate::error::{IoContext, StoreError};
use crate::listing::Found;
use crate::name::{Name, Triple};
use crate::object::{Object, ObjectName};
use crate::store::Store;

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
        let file = Manifest::path(&object.name);
        let Some(relative) = file.to_str() else { return Ok(None) };
        if !matches!(self.listing(&object.tree)?.find(relative.as_bytes()), Some(Found::Entry(_))) {
            return Ok(None);
        }
        let path = self.tree_path(&object.tree).join(&file);
        let text = std::fs::read_to_string(&path).at("read", &path)?;
        let manifest = text.parse().map_err(|error: ManifestError| StoreError::Damaged {
            path,
            reason: error.to_string(),
        })?;
        Ok(Some(manifest))
    }
}
