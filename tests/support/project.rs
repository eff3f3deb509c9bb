//! The project's own definitions, with a main.star of a test's own over its seed.

use std::fs;
use std::path::Path;

use super::{Place, seed};

/// A place whose definitions are a copy of the project's, but for `main.star`. The packages of these sets of the seed
/// needn't be fetched there.
pub(crate) fn place(main: &str, sets: &[&str]) -> Place {
    let place = Place::new("return {}");
    copy(&seed::repository().join("derivations"), &place.path("derivations"));
    place.write("derivations/main.star", main);
    for set in sets {
        for name in seed::packages_of_set(std::env::consts::ARCH, set) {
            seed::sources(&seed::package(std::env::consts::ARCH, &name));
        }
    }
    place
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}
