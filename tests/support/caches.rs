//! Machines that share binary caches: places with keys, and the directories that they push to.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Place, Run};

/// A builder's place, its public key, and the cache that it pushed everything to.
pub(crate) fn published_as(name: &str, components: &str) -> (Place, String, PathBuf) {
    let place = Place::new(components);
    let key = place.srp(&["key", "generate", name]).succeeded().stdout.trim_end().to_owned();
    place.realise("t.x");
    let cache = place.path("cache");
    push(&place, cache.to_str().unwrap());
    (place, key, cache)
}

pub(crate) fn push(place: &Place, to: &str) -> Run {
    place.srp(&["cache", "push", "t.x", "--to", to]).succeeded()
}

/// A machine with the same definitions, these caches in their order, and these keys trusted.
pub(crate) fn user_of(components: &str, caches: &[&str], keys: &[&str], trust: &str) -> Place {
    let place = Place::new(components);
    let path = "home/.config/srp/config.toml";
    let mut config = fs::read_to_string(place.path(path)).unwrap();
    for (priority, cache) in caches.iter().enumerate() {
        config += &format!("[[caches]]\nurl = '{cache}'\npriority = {priority}\n");
    }
    config += &format!("[trust]\n{trust}\n");
    place.write(path, &config);
    for key in keys {
        place.srp(&["key", "trust", key]).succeeded();
    }
    place
}

/// The store path's last component: the same on all machines.
pub(crate) fn name(run: &Run) -> String {
    Path::new(run.stdout.trim_end()).file_name().unwrap().to_str().unwrap().to_owned()
}
