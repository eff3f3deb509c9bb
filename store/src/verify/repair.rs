//! Repairing a store from itself: what follows from something else, and what is there twice.
//!
//! Nothing is removed before what replaces it is on the disk, but for caches, which are made anew
//! when they are needed. What this can't do (from caches, by fetching or by building) others can;
//! they see from a finding's outcome what is left.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::cache::{Sealed, Statement, signer_name};
use crate::commit::Registration;
use crate::derivation::{Action, Derivation};
use crate::digest::{Digest, ObjectId, ResolvedHash, StaticHash};
use crate::error::{IoContext, StoreError};
use crate::files;
use crate::listing::Listing;
use crate::manifest::Manifest;
use crate::name::Name;
use crate::object::{Object, ObjectName, Reference, ReferenceKind};
use crate::presence::{link_target, undamaged};
use crate::realisation::{Claim, Realisation, Route};
use crate::store::Store;
use crate::upgrade;
use crate::verification::{Lost, Place};
use crate::verify::equal::{Equals, needed};
use crate::verify::names::{Looked, read};
use crate::verify::records::look_at_derivation;
use crate::verify::structure::Structure;
use crate::verify::{Finding, Report, Subject, Verification};

/// What became of something damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is as it should be again.
    Mended(Remedy),
    /// It is as it was, and why.
    Unmended(String),
}

/// How something damaged was put right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// It follows from something else: that.
    Derived(String),
    /// Modes and times were set right.
    Attributes,
    /// Equal files were copied: from where.
    Copied(Vec<PathBuf>),
    /// A binary cache had it: its address.
    Cached(String),
    /// Its source was fetched again, or had been kept: from where.
    Fetched(String),
    /// It was built again, and came out the same.
    Rebuilt,
    /// It was removed: it is made anew when it is needed.
    Removed,
}

/// So many times what was found behind something mended is mended, too.
const ROUNDS: usize = 8;

/// How an object was built is not known any more. What isn't `native` counts as emulated.
const UNKNOWN: &str = "unknown";

impl Store {
    /// Repairs what can be repaired from the store alone, and looks for what shows only then.
    ///
    /// # Errors
    /// [`StoreError::Cancelled`], [`StoreError::ReadOnly`], or what the system says: then what was
    /// repaired until then is.
    pub fn repair(&self, how: Verification<'_>, report: &mut Report) -> Result<(), StoreError> {
        self.check_writable()?;
        self.mend_frame(report)?;
        self.sweep()?;
        for _ in 0..ROUNDS {
            how.watch.check()?;
            let before = report.unmended().count();
            self.mend_infos(report)?;
            self.mend_listings(report)?;
            self.mend_trees(report, how)?;
            self.mend_store_paths(report)?;
            self.mend_records(report)?;
            self.mend_roots(report)?;
            self.mend_sealed(report)?;
            if report.unmended().count() == before || !self.look_again(&how, report)? {
                break;
            }
        }
        Ok(())
    }

    /// Looks at the structure again. What is mended and still wrong is not mended; what is found
    /// only now is added. Whether something was.
    pub fn look_again(
        &self,
        how: &Verification<'_>,
        report: &mut Report,
    ) -> Result<bool, StoreError> {
        let again = self.verify_structure(how)?;
        report.structure = again.structure;
        report.leftovers = again.leftovers;
        let mut added = false;
        for finding in again.findings {
            let same = |it: &&mut Finding| it.subject == finding.subject && it.path == finding.path;
            match report.findings.iter_mut().find(same) {
                Some(known) if matches!(known.outcome, Some(Outcome::Mended(_))) => {
                    known.outcome = Some(Outcome::Unmended(finding.problem));
                }
                Some(_) => {}
                None => {
                    report.findings.push(finding);
                    added = true;
                }
            }
        }
        Ok(added)
    }

    /// Moves a file that was fetched, and compared with its digest, to its place.
    ///
    /// # Errors
    /// What the system says.
    pub fn place_source(&self, fetched: &Path, place: &Path) -> Result<(), StoreError> {
        if fs::symlink_metadata(place).is_ok_and(|it| it.is_dir()) {
            files::remove_tree(place)?;
        }
        fs::rename(fetched, place).at("rename to", place)?;
        self.committer.sync_directory(&self.directory("sources"))
    }

    /// Keeps a statement by which something was taken from others, in the place of a damaged one.
    ///
    /// # Errors
    /// What the system says.
    pub fn keep_statement(&self, sealed: &Sealed<Statement>) -> Result<(), StoreError> {
        let directory = self.directory("statements").join(sealed.unverified().resolved.to_string());
        self.write(&directory.join(signer_name(sealed.signer())), &sealed.to_bytes(), 0o644)
    }

    /// The tree of an object: by its record, or where that is lost by its store path.
    ///
    /// # Errors
    /// What the system says.
    pub fn tree_of(&self, id: &ObjectId, name: &Name) -> Result<Option<Digest>, StoreError> {
        if let Some(info) = undamaged(self.find_info(id))?.flatten() {
            return Ok(Some(info.object.tree));
        }
        let path = self.object_path(&ObjectName { id: *id, name: name.clone() });
        let target = fs::read_link(&path).ok();
        let digest = target.as_deref().and_then(Path::file_name).and_then(|it| it.to_str());
        Ok(digest.and_then(|it| it.parse().ok()))
    }

    /// What makes the directory a store, and the directories in it.
    fn mend_frame(&self, report: &mut Report) -> Result<(), StoreError> {
        for finding in report.findings.iter_mut() {
            match finding.subject {
                Subject::Meta => {
                    // The first format's times are set in any case, and nothing else differs.
                    crate::staged::write_synced(&finding.path, b"srp store\nformat 1\n")
                        .at("write", &finding.path)?;
                    upgrade::upgrade(self.root(), 1, true)?;
                    finding.mended(Remedy::Derived("the directories beside it".to_owned()));
                }
                Subject::Directory if !finding.path.is_dir() => {
                    let mut source = "the store's layout".to_owned();
                    // Nothing of srp's: but nobody's to lose, either.
                    if fs::symlink_metadata(&finding.path).is_ok() {
                        let name = finding.path.file_name().unwrap_or_default().to_string_lossy();
                        let aside = format!("{name}-aside{}", files::temporary_name());
                        let aside = finding.path.with_file_name(aside);
                        fs::rename(&finding.path, &aside).at("move aside", &finding.path)?;
                        source += &format!(" (what lay there is {} now)", aside.display());
                    }
                    fs::create_dir_all(&finding.path).at("create", &finding.path)?;
                    finding.mended(Remedy::Derived(source));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Objects' records: an id is a hash over all that a record says, so what has this id is it.
    fn mend_infos(&self, report: &mut Report) -> Result<(), StoreError> {
        let lost: Vec<ObjectId> = report
            .unmended()
            .filter_map(|it| match it.subject {
                Subject::Info(id) => Some(id),
                _ => None,
            })
            .collect();
        if lost.is_empty() {
            return Ok(());
        }
        let names = self.names_of(&lost, &report.structure)?;
        let mut found = HashMap::new();
        for id in lost {
            let Some(names) = names.get(&id) else { continue };
            if let Some(object) = self.guess(&id, names, &report.structure)? {
                found.insert(id, object);
            }
        }
        for finding in &mut report.findings {
            let Subject::Info(id) = finding.subject else { continue };
            let Some(object) = found.remove(&id) else { continue };
            let Some(listing) = self.tree(&object.tree)? else { continue };
            let mut registration = Registration::default();
            registration.existing_tree(self, &object, &listing);
            match self.commit(registration) {
                Ok(()) => {
                    finding.mended(Remedy::Derived("its tree".to_owned()));
                    report.structure.objects.insert(id, object);
                }
                Err(StoreError::Reserved { .. } | StoreError::NotAStage { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What objects without a record may be called: by store paths, roots and derivations.
    fn names_of(
        &self,
        ids: &[ObjectId],
        structure: &Structure,
    ) -> Result<HashMap<ObjectId, BTreeSet<Name>>, StoreError> {
        let mut names: HashMap<ObjectId, BTreeSet<Name>> = HashMap::new();
        let mut add = |id: ObjectId, name: Name| {
            if ids.contains(&id) {
                names.entry(id).or_default().insert(name);
            }
        };
        for path in files::entries(&self.directory("objects"))? {
            if let Some(name) = object_name(&path) {
                add(name.id, name.name);
            }
        }
        for root in files::entries(&self.directory("roots"))? {
            for path in files::entries(&root).unwrap_or_default() {
                if let Some(name) = fs::read_link(&path).ok().and_then(|it| object_name(&it)) {
                    add(name.id, name.name);
                }
            }
        }
        for (hash, claim) in &structure.claims {
            for (output, id) in claim.outputs.iter().filter(|(_, id)| ids.contains(id)) {
                if let Looked::Sound(derivation) = self.look_at_derivation(hash) {
                    add(*id, derivation.object_name(output));
                }
            }
        }
        Ok(names)
    }

    /// The object with this id, if it refers to nothing or is a stage.
    fn guess(
        &self,
        id: &ObjectId,
        names: &BTreeSet<Name>,
        structure: &Structure,
    ) -> Result<Option<Object>, StoreError> {
        for name in names {
            for tree in structure.trees.keys() {
                let mut object = Object {
                    name: name.clone(),
                    tree: *tree,
                    references: [].into(),
                    permissions: [].into(),
                };
                if structure.reserved.contains(tree) {
                    let path = self.tree_path(tree).join(Manifest::path(name));
                    let text = files::read_text(&path).unwrap_or_default();
                    let Ok(manifest) = text.parse::<Manifest>() else { continue };
                    let components = manifest.components.iter();
                    object.references = components
                        .map(|(_, it)| Reference { kind: ReferenceKind::Run, object: it.id })
                        .collect();
                }
                if object.id() == *id {
                    return Ok(Some(object));
                }
            }
        }
        Ok(None)
    }

    fn mend_listings(&self, report: &mut Report) -> Result<(), StoreError> {
        for finding in report.findings.iter_mut().filter(|it| it.is_unmended()) {
            let Subject::Listing(tree) = finding.subject else { continue };
            // Whoever verified the tree may have made it.
            let made = match self.look_at_listing(&tree) {
                Looked::Sound(_) => Ok(()),
                _ => self.list_again(&self.place(&tree)).map(drop),
            };
            match made {
                Ok(()) => finding.mended(Remedy::Derived("its tree".to_owned())),
                Err(StoreError::Corrupt { .. } | StoreError::FileType { .. }) => {
                    finding.unmended("its tree is damaged, too");
                }
                Err(error) => finding.unmended(error.to_string()),
            }
        }
        Ok(())
    }

    fn mend_trees(&self, report: &mut Report, how: Verification<'_>) -> Result<(), StoreError> {
        let mut listings: Vec<Option<(Place, Listing)>> = Vec::new();
        let mut wanted = HashSet::new();
        for finding in &mut report.findings {
            let place = match finding.subject {
                Subject::Tree(tree) if finding.is_unmended() => self.place(&tree),
                Subject::Composed(digest) if finding.is_unmended() => self.composed_place(&digest),
                _ => {
                    listings.push(None);
                    continue;
                }
            };
            let listing = read(&place.listing).and_then(|bytes| {
                Listing::decode(&bytes, place.digest, &place.listing).map_err(|it| it.to_string())
            });
            let Looked::Sound(listing) = listing else {
                listings.push(None);
                continue;
            };
            self.set_attributes(&place, &listing, &finding.damages)?;
            let watch = how.watch;
            let now = self.verify(&place, || None, Lost::MakeAgain, watch.cancel, &|_| {})?;
            match now.is_sound() {
                true => {
                    finding.mended(Remedy::Attributes);
                    listings.push(None);
                }
                false => {
                    finding.damages = now.damages;
                    wanted.extend(needed(&listing, &finding.damages));
                    listings.push(Some((place, listing)));
                }
            }
        }
        if listings.iter().any(Option::is_some) {
            let structure = &report.structure;
            let trees = structure.trees.keys().map(|tree| self.place(tree));
            let composed = structure.composed.iter().map(|it| self.composed_place(it));
            let places: Vec<Place> = trees.chain(composed).collect();
            let equals = Equals::find(&wanted, &places);
            for (finding, listing) in report.findings.iter_mut().zip(&listings) {
                let Some((place, listing)) = listing else { continue };
                how.watch.check()?;
                let made = self.make_anew(place, listing, &finding.damages, &equals, how.watch)?;
                match made {
                    Ok(remedy) => {
                        let now = self.verify(
                            place,
                            || None,
                            Lost::MakeAgain,
                            how.watch.cancel,
                            &|_| {},
                        )?;
                        match now.is_sound() {
                            true => finding.mended(remedy),
                            false => {
                                finding.damages = now.damages;
                                finding.unmended("it is damaged again");
                            }
                        }
                    }
                    Err(lacking) => {
                        let others = lacking.len().saturating_sub(1);
                        let more =
                            if others > 0 { format!(", and {others} more") } else { String::new() };
                        let first = lacking.first().map(String::as_str).unwrap_or_default();
                        finding.unmended(format!("nothing here equals {first}{more}"));
                    }
                }
            }
        }
        // A composed root is a cache: the next build that needs it makes it.
        for finding in report.findings.iter_mut().filter(|it| it.is_unmended()) {
            if let Subject::Composed(digest) = finding.subject {
                let place = self.composed_place(&digest);
                let scratch = self.scratch()?;
                let aside = scratch.path().join("tree");
                let movable = fs::Permissions::from_mode(0o755);
                fs::set_permissions(&place.directory, movable).at("change", &place.directory)?;
                fs::rename(&place.directory, &aside).at("rename", &place.directory)?;
                self.discard(&aside)?;
                files::remove_tree(&place.listing)?;
                finding.mended(Remedy::Removed);
            }
        }
        Ok(())
    }

    fn mend_store_paths(&self, report: &mut Report) -> Result<(), StoreError> {
        for finding in report.findings.iter_mut().filter(|it| it.is_unmended()) {
            let Subject::StorePath(id) = finding.subject else { continue };
            let Some(object) = report.structure.objects.get(&id) else { continue };
            if fs::symlink_metadata(&finding.path).is_ok_and(|it| it.is_dir()) {
                finding.unmended("a directory lies there: move it away");
                continue;
            }
            self.link(&finding.path, &link_target(&object.tree))?;
            finding.mended(Remedy::Derived("the object's record".to_owned()));
        }
        self.committer.sync_directory(&self.directory("objects"))
    }

    /// Claims from realisations, realisations from statements and claims.
    fn mend_records(&self, report: &mut Report) -> Result<(), StoreError> {
        let Report { structure, findings, .. } = report;
        let lost = findings.iter().filter(|it| it.is_unmended());
        let lost =
            lost.filter(|it| matches!(it.subject, Subject::Claim(_) | Subject::Realisation(_)));
        // A claim may need that of an input.
        for _ in 0..lost.count() {
            let mut progress = false;
            for finding in findings.iter_mut().filter(|it| it.is_unmended()) {
                let mut registration = Registration::default();
                let remedy = match finding.subject {
                    Subject::Claim(hash) => match self.claim_again(&hash, structure) {
                        Some(claim) => {
                            registration.claim(self, &hash, &claim);
                            structure.claims.insert(hash, claim);
                            "the realisation"
                        }
                        None => continue,
                    },
                    Subject::Realisation(hash) => match self.realisation_again(&hash, structure) {
                        Some((realisation, from)) => {
                            registration.realisation(self, &hash, &realisation);
                            structure.realisations.insert(hash, realisation);
                            from
                        }
                        None => continue,
                    },
                    _ => continue,
                };
                self.commit(registration)?;
                finding.mended(Remedy::Derived(remedy.to_owned()));
                progress = true;
            }
            if !progress {
                break;
            }
        }
        Ok(())
    }

    fn claim_again(&self, hash: &StaticHash, structure: &Structure) -> Option<Claim> {
        let Looked::Sound(derivation) = self.look_at_derivation(hash) else { return None };
        let mut inputs = std::collections::BTreeMap::new();
        let mut objects = Vec::new();
        for input in derivation.inputs() {
            let claim = structure.claims.get(&input.key.derivation)?;
            let object = *claim.outputs.get(&input.key.output)?;
            inputs.insert(input.key.clone(), object);
            objects.push(object);
        }
        let resolved = derivation.resolved_hash(&objects);
        let outputs = structure.realisations.get(&resolved)?.outputs.clone();
        Some(Claim { resolved, outputs, inputs })
    }

    fn realisation_again(
        &self,
        hash: &ResolvedHash,
        structure: &Structure,
    ) -> Option<(Realisation, &'static str)> {
        let mut claims = structure.claims.iter().filter(|(_, claim)| claim.resolved == *hash);
        let claim = claims.next();
        let directory = self.directory("statements").join(hash.to_string());
        for path in files::entries(&directory).unwrap_or_default() {
            let Ok(sealed) = Sealed::<Statement>::from_bytes(&files::read(&path).ok()?) else {
                continue;
            };
            let statement = sealed.unverified();
            let outputs = statement.objects();
            if statement.resolved == *hash
                && claim.is_none_or(|(_, claim)| claim.outputs == outputs)
            {
                return Some((statement.realisation(), "the statement by which it was taken"));
            }
        }
        let (hash, claim) = claim?;
        let Looked::Sound(derivation) = self.look_at_derivation(hash) else { return None };
        let route = match derivation.action {
            Action::Build(_) => Route {
                runner: UNKNOWN.to_owned(),
                machine: UNKNOWN.to_owned(),
                limits_by: UNKNOWN.to_owned(),
                ..Route::default()
            },
            Action::Fetch(_) | Action::Stage(_) => Route::default(),
        };
        Some((Realisation { outputs: claim.outputs.clone(), route }, "the claim"))
    }

    pub(super) fn look_at_derivation(&self, hash: &StaticHash) -> Looked<Derivation> {
        look_at_derivation(hash, &self.derivation_path(hash))
    }

    /// A root whose link is damaged in a place leads where the one object is that it can mean.
    fn mend_roots(&self, report: &mut Report) -> Result<(), StoreError> {
        for finding in report.findings.iter_mut().filter(|it| it.is_unmended()) {
            if finding.subject != Subject::Root {
                continue;
            }
            let Ok(target) = fs::read_link(&finding.path) else {
                finding.unmended("nothing says what it named: srp realise sets it anew");
                continue;
            };
            let objects = report.structure.objects.iter();
            let mut meant = objects.filter_map(|(id, object)| {
                let name = ObjectName { id: *id, name: object.name.clone() };
                let right = Path::new("../../objects").join(name.to_string());
                means(&target, &right).then_some(right)
            });
            match (meant.next(), meant.next()) {
                (Some(right), None) => {
                    self.link(&finding.path, &right)?;
                    if let Some(directory) = finding.path.parent() {
                        self.committer.sync_directory(directory)?;
                    }
                    finding.mended(Remedy::Derived("the one object that it can mean".to_owned()));
                }
                _ => finding.unmended("nothing says what it named: srp realise sets it anew"),
            }
        }
        Ok(())
    }

    /// Statements that are here twice, and caches, which can be removed.
    fn mend_sealed(&self, report: &mut Report) -> Result<(), StoreError> {
        for finding in report.findings.iter_mut().filter(|it| it.is_unmended()) {
            match finding.subject {
                Subject::Statement => self.mend_statement(finding)?,
                Subject::Pack => {
                    files::remove_tree(&finding.path)?;
                    finding.mended(Remedy::Removed);
                }
                Subject::Sighting => finding.unmended(
                    "nothing else says what was seen: remove it, and the next answer of that cache \
                     is taken for the newest",
                ),
                Subject::Foreign => {
                    finding.unmended("it may be somebody's: look at it, and move it away");
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn mend_statement(&self, finding: &mut Finding) -> Result<(), StoreError> {
        let Ok(below) = finding.path.strip_prefix(self.root()) else { return Ok(()) };
        let parts: Vec<&str> = below.iter().filter_map(|part| part.to_str()).collect();
        let twin = match parts[..] {
            ["imported", "srp-cache"] => {
                self.write(&finding.path, &crate::cache::meta(), 0o644)?;
                finding.mended(Remedy::Derived("the format".to_owned()));
                return Ok(());
            }
            ["rebuilt", ..] => {
                // It is no use any more, and srp doesn't look at what is damaged.
                files::remove_tree(&finding.path)?;
                finding.mended(Remedy::Removed);
                return Ok(());
            }
            ["statements", hash, signer] => {
                ("imported/realisations/resolved", hash.to_owned(), signer)
            }
            ["imported", "realisations", "resolved", hash, signer] => {
                ("statements", hash.to_owned(), signer)
            }
            _ => {
                finding.unmended("it came with an import: import that again");
                return Ok(());
            }
        };
        let (directory, hash, signer) = twin;
        let place = self.directory(directory).join(&hash).join(signer);
        let bytes = files::read(&place).unwrap_or_default();
        let sound = Sealed::<Statement>::from_bytes(&bytes)
            .is_ok_and(|it| it.unverified().resolved.to_string() == hash);
        match sound {
            true => {
                self.write(&finding.path, &bytes, 0o644)?;
                finding.mended(Remedy::Copied(vec![place]));
            }
            false => finding.unmended("no other copy of it is here"),
        }
        Ok(())
    }
}

/// Whether a link's text is another one with its end missing or with one byte changed.
fn means(damaged: &Path, right: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    /// `../../objects/`, and half of an id: no two objects share that by chance.
    const SHORTEST: usize = 14 + 16;
    let (damaged, right) = (damaged.as_os_str().as_bytes(), right.as_os_str().as_bytes());
    if damaged.len() == right.len() {
        return damaged.iter().zip(right).filter(|(one, other)| one != other).count() <= 1;
    }
    damaged.len() >= SHORTEST && right.starts_with(damaged)
}

fn object_name(path: &Path) -> Option<ObjectName> {
    path.file_name()?.to_str()?.parse().ok()
}

impl Report {
    /// What is wrong and not put right, so far.
    pub fn unmended(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|it| it.is_unmended())
    }
}

impl Finding {
    /// Whether it is not put right, so far.
    pub fn is_unmended(&self) -> bool {
        !matches!(self.outcome, Some(Outcome::Mended(_)))
    }

    /// It was put right.
    pub fn mended(&mut self, remedy: Remedy) {
        self.outcome = Some(Outcome::Mended(remedy));
    }

    /// It couldn't be put right.
    pub fn unmended(&mut self, why: impl Into<String>) {
        self.outcome = Some(Outcome::Unmended(why.into()));
    }
}

impl Remedy {
    /// One word, for machines.
    pub fn kind(&self) -> &'static str {
        match self {
            Remedy::Derived(_) => "derived",
            Remedy::Attributes => "attributes",
            Remedy::Copied(_) => "copied",
            Remedy::Cached(_) => "cache",
            Remedy::Fetched(_) => "fetched",
            Remedy::Rebuilt => "rebuilt",
            Remedy::Removed => "removed",
        }
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remedy::Derived(from) => write!(f, "made anew from {from}"),
            Remedy::Attributes => f.write_str("modes and times set right"),
            Remedy::Copied(from) => match &from[..] {
                [] => f.write_str("made anew without what was too much"),
                [one] => write!(f, "copied from {}", one.display()),
                [first, more @ ..] => {
                    write!(f, "copied from {} and {} more", first.display(), more.len())
                }
            },
            Remedy::Cached(url) => write!(f, "fetched from the cache {url}"),
            Remedy::Fetched(from) => write!(f, "its source fetched again from {from}"),
            Remedy::Rebuilt => f.write_str("built again, with the same result"),
            Remedy::Removed => f.write_str("removed: it is made anew when it is needed"),
        }
    }
}
