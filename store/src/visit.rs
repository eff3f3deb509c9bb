//! A directory on a walk by several threads: it is finished when everything in it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A directory that is being visited, and what is gathered about it.
#[derive(Debug)]
pub(crate) struct Visit<S> {
    parent: Option<Arc<Visit<S>>>,
    /// Where it lies in the tree; empty for the top.
    pub(crate) path: Vec<u8>,
    /// How many directories are above it.
    pub(crate) depth: usize,
    pub(crate) gathered: S,
    /// Tasks that are part of it: its own, its files', its subdirectories'.
    pending: AtomicUsize,
}

impl<S> Visit<S> {
    /// The top directory. One task is pending.
    pub(crate) fn top(gathered: S) -> Arc<Visit<S>> {
        let pending = AtomicUsize::new(1);
        Arc::new(Visit { parent: None, path: Vec::new(), depth: 0, gathered, pending })
    }

    /// A directory in this one, which is a pending task of it. One task is pending.
    pub(crate) fn below(self: &Arc<Visit<S>>, name: &[u8], gathered: S) -> Arc<Visit<S>> {
        self.add_pending(1);
        Arc::new(Visit {
            parent: Some(Arc::clone(self)),
            path: join(&self.path, name),
            depth: self.depth + 1,
            gathered,
            pending: AtomicUsize::new(1),
        })
    }

    /// More tasks are part of it.
    pub(crate) fn add_pending(&self, tasks: usize) {
        self.pending.fetch_add(tasks, Ordering::Relaxed);
    }

    /// What it lies in.
    pub(crate) fn parent(&self) -> Option<&Visit<S>> {
        self.parent.as_deref()
    }

    /// Its parent's path, and its own name.
    pub(crate) fn split(&self) -> (&[u8], &[u8]) {
        match self.path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&self.path[..slash], &self.path[slash + 1..]),
            None => (b"", &self.path),
        }
    }

    /// One of its tasks is done. `finish` is called for it if that was the last one, and then for
    /// those above for which it was the last.
    pub(crate) fn end<E>(
        &self,
        mut finish: impl FnMut(&Visit<S>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut visit = Some(self);
        while let Some(done) = visit.filter(|it| it.pending.fetch_sub(1, Ordering::AcqRel) == 1) {
            finish(done)?;
            visit = done.parent();
        }
        Ok(())
    }
}

/// The path of what has a name in a directory of a tree.
pub(crate) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(directory.len() + 1 + name.len());
    if !directory.is_empty() {
        path.extend_from_slice(directory);
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}
