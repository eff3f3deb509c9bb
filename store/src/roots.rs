//! GC roots: names for objects that are to be kept, in generations.
//!
//! `roots/<name>/<n>` is a symlink to an object. Each time a root is set to another object it
//! gets a new generation; the last three are kept.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::error::{IoContext, StoreError};
use crate::files;
use crate::object::ObjectName;
use crate::presence::undamaged;
use crate::store::Store;

/// How many generations of a root are kept.
pub(crate) const GENERATIONS: usize = 3;

/// One generation of a root.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Root {
    /// What the root is called.
    pub name: String,
    /// Counted up from 1.
    pub generation: u64,
    /// What it keeps.
    pub object: ObjectName,
}

impl Store {
    /// Points the root `name` at `object`, in a new generation unless it is the newest already.
    /// When this returns, it survives a power cut.
    ///
    /// # Errors
    /// [`StoreError::NoObject`]: a root of what isn't here would keep nothing.
    pub fn set_root(&self, name: &str, object: &ObjectName) -> Result<Root, StoreError> {
        self.check_writable()?;
        let directory = self.root_directory(name)?;
        if !self.contains(&object.id)? {
            return Err(StoreError::NoObject { id: object.id, path: self.root().to_owned() });
        }
        let target = Path::new("../../objects").join(object.to_string());
        loop {
            // A damaged one keeps nobody from setting the root anew.
            let mut generations = Vec::new();
            let mut highest = 0;
            for (number, root) in read_generations(name, &directory)? {
                highest = number;
                generations.extend(undamaged(root)?);
            }
            if let Some(newest) = generations.last()
                && newest.object == *object
            {
                return Ok(newest.clone());
            }
            let generation = highest + 1;
            let made = !directory.is_dir();
            fs::create_dir_all(&directory).at("create", &directory)?;
            let path = directory.join(generation.to_string());
            match symlink(&target, &path) {
                // Another process has made this generation, or removed the root: it is looked at
                // again.
                Err(error)
                    if matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) =>
                {
                    continue;
                }
                linked => linked.at("create", &path)?,
            }
            let root = Root { name: name.to_owned(), generation, object: object.clone() };
            generations.push(root.clone());
            for old in &generations[..generations.len().saturating_sub(GENERATIONS)] {
                let path = directory.join(old.generation.to_string());
                match fs::remove_file(&path) {
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    removed => removed.at("remove", &path)?,
                }
            }
            match self.committer.sync_directory(&directory) {
                // Removed again meanwhile, which is as if it had been removed afterwards.
                Err(_) if !directory.is_dir() => {}
                synced => synced?,
            }
            if made {
                self.committer.sync_directory(&self.directory("roots"))?;
            }
            return Ok(root);
        }
    }

    /// Removes the root `name` with all its generations; false if there was none.
    pub fn remove_root(&self, name: &str) -> Result<bool, StoreError> {
        self.check_writable()?;
        let directory = self.root_directory(name)?;
        if !directory.is_dir() {
            return Ok(false);
        }
        files::remove_tree(&directory)?;
        Ok(true)
    }

    /// All generations of all roots, by name, oldest first.
    ///
    /// # Errors
    /// Anything that can't be read is an error: what isn't seen here would be deleted by a GC.
    pub fn roots(&self) -> Result<Vec<Root>, StoreError> {
        let directory = self.directory("roots");
        let mut names = Vec::new();
        for entry in fs::read_dir(&directory).at("list", &directory)? {
            let entry = entry.at("list", &directory)?;
            let name = entry.file_name().into_string().map_err(|name| StoreError::Damaged {
                path: directory.join(name),
                reason: "its name is not UTF-8".to_owned(),
            })?;
            names.push(name);
        }
        names.sort();
        let mut roots = Vec::new();
        for name in names {
            roots.extend(self.generations(&name, &directory.join(&name))?);
        }
        Ok(roots)
    }

    fn root_directory(&self, name: &str) -> Result<PathBuf, StoreError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._".contains(&byte);
        if name.is_empty()
            || name.len() > 200
            || name.starts_with('.')
            || !name.bytes().all(allowed)
        {
            return Err(StoreError::RootName { name: name.to_owned() });
        }
        Ok(self.directory("roots").join(name))
    }

    fn generations(&self, name: &str, directory: &Path) -> Result<Vec<Root>, StoreError> {
        let found = read_generations(name, directory)?;
        found.into_iter().map(|(_, root)| root).collect()
    }
}

/// What lies at a generation's number (0: it has none): the generation, or why it is none.
type Numbered = (u64, Result<Root, StoreError>);

/// What is in a root's directory, by number.
fn read_generations(name: &str, directory: &Path) -> Result<Vec<Numbered>, StoreError> {
    let mut found = Vec::new();
    for path in files::entries(directory)? {
        let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        if let Some(root) = generation(name, &path).transpose() {
            found.push((number.unwrap_or(0), root));
        }
    }
    found.sort_by_key(|(number, _)| *number);
    Ok(found)
}

/// A generation of a root; none if it is gone.
fn generation(name: &str, path: &Path) -> Result<Option<Root>, StoreError> {
    let damaged =
        |reason: &str| StoreError::Damaged { path: path.to_owned(), reason: reason.to_owned() };
    let text = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let generation = text.parse().map_err(|_| damaged("it is no generation's number"))?;
    let target = match fs::read_link(path) {
        // Another process has set the root anew, and this was its oldest generation.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == ErrorKind::InvalidInput => {
            return Err(damaged("it is no symlink"));
        }
        target => target.at("read", path)?,
    };
    let object = target
        .file_name()
        .and_then(|name| name.to_str()?.parse().ok())
        .ok_or_else(|| damaged("it points to no object"))?;
    Ok(Some(Root { name: name.to_owned(), generation, object }))
}
