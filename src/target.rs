//! What an argument names: an attribute, a derivation by its hash, or a store object by its path.
//!
//! The three can't be confused: an attribute has a dot and no slash, a hash has neither and is
//! hexadecimal, and a store object begins with 32 characters of id and a dash.

use std::path::Path;

use srp_builder::adopted;
use srp_store::{
    Claim, Derivation, InputKey, ObjectId, ObjectName, OutputName, ResolvedHash, StaticHash, Store,
};

use crate::context::Context;
use crate::error::{CommandError, CommandResult};
use crate::goals::Goals;

/// Fewer digits of a hash than this are not taken for one.
const SHORTEST_HASH: usize = 6;
/// How many digits of a hash are shown to people.
const SHOWN_DIGITS: usize = 12;

/// An argument, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// `stage1.aarch64-musl`
    Attribute(String),
    /// The beginning of a derivation's static hash.
    Hash(String),
    /// A store path, or its last component.
    Object(ObjectName),
}

impl Target {
    /// What `text` names.
    pub(crate) fn parse(text: &str) -> CommandResult<Target> {
        if text.contains('/') {
            // A path may lead into an object, or be relative, or come from another store.
            let object = Path::new(text).iter().find_map(|name| name.to_str()?.parse().ok());
            return object.map(Target::Object).ok_or_else(|| {
                CommandError::user(format!("{text} is not a store path"))
                    .hint("a store path is <store>/objects/<id>-<name>, as srp realise prints it")
            });
        }
        if let Ok(object) = text.parse() {
            return Ok(Target::Object(object));
        }
        let hexadecimal = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if (SHORTEST_HASH..=64).contains(&text.len()) && text.bytes().all(hexadecimal) {
            return Ok(Target::Hash(text.to_owned()));
        }
        Ok(Target::Attribute(text.to_owned()))
    }

    /// The object that is meant: it, or what the derivation came out as in this store.
    pub(crate) fn object(&self, context: &Context, store: &Store) -> CommandResult<ObjectName> {
        match self {
            Target::Object(object) => {
                store.rely_on_objects(&[object.id])?;
                Ok(store.info(&object.id)?.object.path_name())
            }
            Target::Attribute(attr) => {
                let goals = Goals::of(context, Some(store), std::slice::from_ref(attr))?;
                let key = goals.keys().remove(0);
                realised(store, &key)?.ok_or_else(|| not_realised(attr))
            }
            Target::Hash(prefix) => {
                let hash = derivation_by_prefix(store, prefix)?;
                let key = InputKey { derivation: hash, output: OutputName::out() };
                realised(store, &key)?.ok_or_else(|| {
                    CommandError::user(format!("the derivation {prefix} is not realised"))
                })
            }
        }
    }

    /// The derivation that is meant: it, or the one that the object is of.
    pub(crate) fn derivation(
        &self,
        context: &Context,
        store: Option<&Store>,
    ) -> CommandResult<Option<(StaticHash, Derivation)>> {
        match (self, store) {
            (Target::Attribute(attr), store) => {
                let graph = Goals::of(context, store, std::slice::from_ref(attr))?.graph()?;
                let hash = graph.goals[0].1.derivation;
                let mut derivations = graph.derivations;
                Ok(derivations.remove(&hash).map(|derivation| (hash, derivation)))
            }
            (Target::Hash(prefix), Some(store)) => {
                let hash = derivation_by_prefix(store, prefix)?;
                Ok(store.derivation(&hash)?.map(|derivation| (hash, derivation)))
            }
            (Target::Object(object), Some(store)) => deriver(store, &object.id),
            (Target::Hash(_) | Target::Object(_), None) => {
                Err(CommandError::user("there is no store yet, and so nothing in it"))
            }
        }
    }
}

/// What a derivation's output came out as here, if that may be adopted and all of it is there.
pub(crate) fn realised(store: &Store, key: &InputKey) -> CommandResult<Option<ObjectName>> {
    let Some(claim) = adopted(store, &key.derivation)? else { return Ok(None) };
    let Some(id) = claim.outputs.get(&key.output) else { return Ok(None) };
    Ok(Some(store.info(id)?.object.path_name()))
}

/// A derivation's resolved hash here: as it was realised, or as it would be built now. `None`: not
/// all of its inputs are there.
pub(crate) fn resolved_hash(
    store: &Store,
    hash: &StaticHash,
    derivation: &Derivation,
) -> CommandResult<Option<ResolvedHash>> {
    let mut objects = Vec::new();
    for input in derivation.inputs() {
        let claim = store.claim(&input.key.derivation)?;
        match claim.and_then(|claim| claim.outputs.get(&input.key.output).copied()) {
            Some(object) => objects.push(object),
            // What it was realised from may be known although it isn't here any more.
            None => return Ok(store.claim(hash)?.map(|claim| claim.resolved)),
        }
    }
    Ok(Some(derivation.resolved_hash(&objects)))
}

/// A hash as it is shown to people: long enough to be given to `srp log`.
pub(crate) fn short(hash: &StaticHash) -> String {
    hash.to_string()[..SHOWN_DIGITS].to_owned()
}

/// A derivation of the store that an object came out of, if the store has any.
fn deriver(store: &Store, object: &ObjectId) -> CommandResult<Option<(StaticHash, Derivation)>> {
    for hash in store.derivations_by_prefix("")? {
        let made = |claim: Claim| claim.outputs.values().any(|output| output == object);
        if store.claim(&hash)?.is_some_and(made)
            && let Some(derivation) = store.derivation(&hash)?
        {
            return Ok(Some((hash, derivation)));
        }
    }
    Ok(None)
}

fn derivation_by_prefix(store: &Store, prefix: &str) -> CommandResult<StaticHash> {
    let found = store.derivations_by_prefix(prefix)?;
    match found.as_slice() {
        [hash] => Ok(*hash),
        [] => Err(CommandError::user(format!("no derivation's hash begins with {prefix}"))
            .hint("only derivations that were instantiated in this store are known by hash")),
        several => {
            let shown: Vec<String> = several.iter().take(8).map(short).collect();
            Err(CommandError::user(format!(
                "{} derivations' hashes begin with {prefix}: {}",
                several.len(),
                shown.join(", ")
            ))
            .hint("give more digits"))
        }
    }
}

fn not_realised(attr: &str) -> CommandError {
    CommandError::user(format!("{attr} is not realised")).hint(format!("srp realise {attr}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: &str = "66jd5qsvdcrc37jp7h0de4wt72eet9w3-musl-1.2.5";

    #[test]
    fn arguments_are_told_apart() {
        let parse = |text: &str| Target::parse(text).ok();
        let object = Some(Target::Object(OBJECT.parse().expect("an object")));
        assert_eq!(parse(OBJECT), object);
        assert_eq!(parse(&format!("/var/lib/srp/objects/{OBJECT}")), object);
        assert_eq!(parse(&format!("objects/{OBJECT}/usr/lib/libc.so")), object);
        assert_eq!(parse("/usr/lib/libc.so"), None);
        assert_eq!(parse("0123ab"), Some(Target::Hash("0123ab".to_owned())));
        for attr in ["stage1.aarch64-musl", "abc", "0123a", "stage2.5.x86_64", "0123AB"] {
            assert_eq!(parse(attr), Some(Target::Attribute(attr.to_owned())));
        }
    }
}
