//! GC roots: names for objects that are to be kept, in generations.
//!
//! `roots/<name>/<n>` is a symlink to an object. Each time a root is set to another object it
//! gets a new generation; the last three are kept.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::{IoContext, StoreError};
use crate::files;
use crate::object::ObjectName;
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
    pub fn set_root(&self, name: &str, object: &ObjectName) -> Result<Root, StoreError> {
        self.check_writable()?;
        let directory = self.root_directory(name)?;
        let mut generations = self.generations(name, &directory)?;
        if let Some(newest) = generations.last()
            && newest.object == *object
        {
            return Ok(newest.clone());
        }
        let generation = generations.last().map_or(0, |newest| newest.generation) + 1;
        let root = Root { name: name.to_owned(), generation, object: object.clone() };
        fs::create_dir_all(&directory).at("create", &directory)?;
        let target = Path::new("../../objects").join(object.to_string());
        files::symlink_atomically(&directory.join(generation.to_string()), &target)?;
        generations.push(root.clone());
        for old in &generations[..generations.len().saturating_sub(GENERATIONS)] {
            let path = directory.join(old.generation.to_string());
            fs::remove_file(&path).at("remove", &path)?;
        }
        Ok(root)
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
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.at("list", directory)?,
        };
        let mut generations = Vec::new();
        for entry in entries {
            let path = entry.at("list", directory)?.path();
            let text = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if text.starts_with('.') {
                continue;
            }
            let damaged = |reason: &str| StoreError::Damaged {
                path: path.clone(),
                reason: reason.to_owned(),
            };
            let generation = text.parse().map_err(|_| damaged("it is no generation's number"))?;
            let target = fs::read_link(&path).at("read", &path)?;
            let object = target
                .file_name()
                .and_then(|name| name.to_str()?.parse().ok())
                .ok_or_else(|| damaged("it points to no object"))?;
            generations.push(Root { name: name.to_owned(), generation, object });
        }
        generations.sort_by_key(|root| root.generation);
        Ok(generations)
    }
}
