//! Store objects: a name, a tree, what it refers to, and what the tree can't say of modes.
//!
//! An object's id is a hash over all four, so an id fixes the whole closure. This file does no
//! I/O; where an object lies on disk is [`crate::Store`]'s business.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Domain, ObjectId};
use crate::encode::{Canonical, DecodeError, Decoder, Encoder};
use crate::name::Name;

/// A store object's identity in full.
///
/// Canonical encoding: name, tree digest, references (set of kind, id), permissions (map from
/// path to text).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// What it is called; a part of its path.
    pub name: Name,
    /// The digest of its tree.
    pub tree: Digest,
    /// The objects it needs.
    pub references: BTreeSet<Reference>,
    /// Modes and owners that a tree can't hold, by path (`/usr/bin/su`).
    pub permissions: BTreeMap<String, Permission>,
}

/// One object's need of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Reference {
    /// When it is needed.
    pub kind: ReferenceKind,
    /// What is needed.
    pub object: ObjectId,
}

/// When a referenced object is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReferenceKind {
    /// When the object is used.
    Run,
    /// When something is built against the object.
    Develop,
}

/// Set-uid bits and ownership, declared because a tree has neither: `4755 root:root`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Permission {
    /// The twelve mode bits.
    pub mode: u16,
    /// A user's name in the composed root's `/etc/passwd`, or a number.
    pub user: String,
    /// A group's name in the composed root's `/etc/group`, or a number.
    pub group: String,
}

/// Text that is no permission.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a permission: \"<octal mode> <user>:<group>\", such as \"4755 root:root\""
)]
pub struct PermissionError {
    text: String,
}

/// The last component of a store path: `<id>-<name>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ObjectName {
    /// The object's id.
    pub id: ObjectId,
    /// The object's name.
    pub name: Name,
}

/// Text that is no store path's last component.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a store object: \"<32 characters of id>-<name>\"")]
pub struct ObjectNameError {
    text: String,
}

impl Object {
    /// The object's id.
    pub fn id(&self) -> ObjectId {
        ObjectId::truncate(Domain::Object.hash(&self.to_canonical()))
    }

    /// The last component of the object's path.
    pub fn path_name(&self) -> ObjectName {
        ObjectName { id: self.id(), name: self.name.clone() }
    }

    /// The ids of the objects it needs, of one kind or of both.
    pub fn references(&self, kinds: &[ReferenceKind]) -> impl Iterator<Item = ObjectId> {
        self.references.iter().filter(|it| kinds.contains(&it.kind)).map(|it| it.object)
    }
}

impl ReferenceKind {
    /// Both kinds: what a build's root is composed of.
    pub const ALL: &'static [ReferenceKind] = &[ReferenceKind::Run, ReferenceKind::Develop];
    /// What a rootfs is composed of.
    pub const RUN: &'static [ReferenceKind] = &[ReferenceKind::Run];

    fn tag(self) -> u64 {
        match self {
            ReferenceKind::Run => 0,
            ReferenceKind::Develop => 1,
        }
    }
}

impl Canonical for Object {
    fn encode(&self, to: &mut Encoder) {
        self.name.encode(to);
        self.tree.encode(to);
        self.references.encode(to);
        self.permissions.encode(to);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Object {
            name: Name::decode(from)?,
            tree: Digest::decode(from)?,
            references: BTreeSet::decode(from)?,
            permissions: BTreeMap::decode(from)?,
        })
    }
}

impl Canonical for Reference {
    fn encode(&self, to: &mut Encoder) {
        to.integer(self.kind.tag());
        self.object.encode(to);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let tag = from.integer()?;
        let kind = *ReferenceKind::ALL
            .iter()
            .find(|kind| kind.tag() == tag)
            .ok_or_else(|| DecodeError::UnknownVariant { tag: tag.to_string() })?;
        Ok(Reference { kind, object: ObjectId::decode(from)? })
    }
}

impl Canonical for Permission {
    fn encode(&self, to: &mut Encoder) {
        to.text(&self.to_string());
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        from.text()?
            .parse()
            .map_err(|error: PermissionError| DecodeError::Invalid { reason: error.to_string() })
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o} {}:{}", self.mode, self.user, self.group)
    }
}

impl FromStr for Permission {
    type Err = PermissionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (mode, owner) = text.split_once(' ')?;
            let (user, group) = owner.split_once(':')?;
            let valid = |name: &str| {
                !name.is_empty()
                    && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
            };
            let mode = u16::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777)?;
            (valid(user) && valid(group)).then(|| Permission {
                mode,
                user: user.to_owned(),
                group: group.to_owned(),
            })
        };
        parse().ok_or_else(|| PermissionError { text: text.to_owned() })
    }
}

impl From<Permission> for String {
    fn from(permission: Permission) -> String {
        permission.to_string()
    }
}

impl TryFrom<String> for Permission {
    type Error = PermissionError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.id, self.name)
    }
}

impl FromStr for ObjectName {
    type Err = ObjectNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (id, name) = text.split_at_checked(ObjectId::TEXT_LENGTH)?;
            Some(ObjectName { id: id.parse().ok()?, name: name.strip_prefix('-')?.parse().ok()? })
        };
        parse().ok_or_else(|| ObjectNameError { text: text.to_owned() })
    }
}

impl From<ObjectName> for String {
    fn from(name: ObjectName) -> String {
        name.to_string()
    }
}

impl TryFrom<String> for ObjectName {
    type Error = ObjectNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Object {
        Object {
            name: "musl-1.2.5".parse().expect("a name"),
            tree: Digest::of_file(b"tree"),
            references: BTreeSet::new(),
            permissions: BTreeMap::new(),
        }
    }

    #[test]
    fn golden_id() {
        assert_eq!(sample().path_name().to_string(), GOLDEN);
        assert_eq!(GOLDEN.parse(), Ok(sample().path_name()));
    }
    const GOLDEN: &str = "66jd5qsvdcrc37jp7h0de4wt72eet9w3-musl-1.2.5";

    #[test]
    fn every_part_is_in_the_id() {
        let id = sample().id();
        let renamed = Object { name: "musl".parse().expect("a name"), ..sample() };
        let grown = Object { tree: Digest::of_file(b"other"), ..sample() };
        let needy =
            |kind| Object { references: [Reference { kind, object: id }].into(), ..sample() };
        let permission = "4755 root:root".parse().expect("a permission");
        let declared =
            Object { permissions: [("/usr/bin/su".to_owned(), permission)].into(), ..sample() };
        let ids: BTreeSet<_> = [
            sample(),
            renamed,
            grown,
            needy(ReferenceKind::Run),
            needy(ReferenceKind::Develop),
            declared,
        ]
        .iter()
        .map(Object::id)
        .collect();
        assert_eq!(ids.len(), 6);
    }

    #[test]
    fn an_object_is_decoded_from_its_encoding() {
        let permission = "4755 root:0".parse().expect("a permission");
        let object = Object {
            references: [Reference { kind: ReferenceKind::Develop, object: sample().id() }].into(),
            permissions: [("/usr/bin/su".to_owned(), permission)].into(),
            ..sample()
        };
        assert_eq!(Object::from_canonical(&object.to_canonical()), Ok(object));
    }

    #[test]
    fn permissions_are_written_one_way() {
        assert_eq!(
            "755 root:root".parse::<Permission>().map(|p| p.to_string()).as_deref(),
            Ok("0755 root:root")
        );
        for bad in ["", "4755", "9 root:root", "17777 a:b", "755 root", "755 :x", "755 a b:c"] {
            assert!(bad.parse::<Permission>().is_err(), "{bad:?}");
        }
    }
}
