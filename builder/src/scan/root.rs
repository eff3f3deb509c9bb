//! Looks paths up in composed roots, as a process inside would.
//!
//! The caller says what lies at a path ([`Root`]); following symlinks, `..` and the merged-`/usr`
//! links is done here, inside the root, so that every caller gets it right the same way.

use std::path::PathBuf;

/// A set of objects composed into one root: path → what lies there.
pub trait Root {
    /// What lies at `path`, which has no leading slash, no `.` and no `..`, and of which no
    /// component before the last is a symlink. A directory that several objects share is
    /// [`Entry::Directory`]. The last component is not followed.
    fn entry(&self, path: &str) -> Option<Entry>;

    /// How messages call the provider that an [`Entry`] named: an object's name.
    fn name(&self, provider: usize) -> String;
}

/// What lies at one path of a [`Root`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A directory, of whichever objects.
    Directory,
    /// A symlink, unresolved.
    Symlink {
        /// Which object it comes from.
        provider: usize,
        /// Its text.
        target: String,
    },
    /// A regular file.
    File {
        /// Which object it comes from.
        provider: usize,
        /// Where its bytes can be read.
        path: PathBuf,
        /// Whether it may be executed.
        executable: bool,
    },
}

/// The top-level names that are links into `/usr` in every composed root.
const MERGED: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// As many symlinks as the kernel follows in one look-up.
const LINK_LIMIT: usize = 40;

/// A longer path than the kernel accepts is not looked up.
const PATH_LIMIT_BYTES: usize = 4096;

/// Which of the stacked roots of a [`View`] something came from.
pub(super) type Layer = usize;

/// Several roots seen as one: what an earlier one has hides what a later one has.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    roots: &'a [&'a dyn Root],
}

/// A regular file, found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Located {
    /// Its path in the root, with every symlink resolved.
    pub(super) name: String,
    /// Where its bytes can be read.
    pub(super) path: PathBuf,
    /// Whether it may be executed.
    pub(super) executable: bool,
    /// Who provides it, after everyone whose symlinks led there.
    pub(super) providers: Vec<(Layer, usize)>,
}

impl<'a> View<'a> {
    pub(super) fn new(roots: &'a [&'a dyn Root]) -> View<'a> {
        View { roots }
    }

    fn entry(self, path: &str) -> Option<(Layer, Entry)> {
        self.roots
            .iter()
            .enumerate()
            .find_map(|(layer, root)| root.entry(path).map(|entry| (layer, entry)))
    }

    /// The regular file that a process in this root opens by the absolute path `path`.
    pub(super) fn locate(self, path: &str) -> Option<Located> {
        if path.len() > PATH_LIMIT_BYTES {
            return None;
        }
        // Components still to walk, the next one last.
        let mut pending: Vec<String> = components(path).collect();
        let mut walked: Vec<String> = Vec::new();
        let mut providers = Vec::new();
        let mut links = 0;
        while let Some(component) = pending.pop() {
            if component == ".." {
                walked.pop();
                continue;
            }
            walked.push(component);
            let name = walked.join("/");
            let merged = walked.len() == 1 && MERGED.contains(&name.as_str());
            match self.entry(&name) {
                None if merged => {
                    pending.extend(walked.pop());
                    pending.push("usr".to_owned());
                }
                None => return None,
                Some((_, Entry::Directory)) => {}
                Some((layer, Entry::Symlink { provider, target })) => {
                    links += 1;
                    if links > LINK_LIMIT || target.len() > PATH_LIMIT_BYTES {
                        return None;
                    }
                    providers.push((layer, provider));
                    walked.pop();
                    if target.starts_with('/') {
                        walked.clear();
                    }
                    pending.extend(components(&target));
                }
                Some((layer, Entry::File { provider, path, executable })) => {
                    providers.push((layer, provider));
                    return pending.is_empty().then_some(Located {
                        name,
                        path,
                        executable,
                        providers,
                    });
                }
            }
        }
        None
    }
}

/// The components of a path in reverse, empty ones and `.` left out.
fn components(path: &str) -> impl Iterator<Item = String> + '_ {
    path.rsplit('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned)
}
