//! Roots that change the host when they are materialised or removed.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use crate::harness::{Test, tests};
use crate::support::Place;

pub(crate) const TESTS: &[Test] = tests![
    a_root_changes_no_mode_through_its_links,
    a_root_reads_nothing_through_its_links,
    a_damaged_tree_is_not_materialised,
    what_looks_like_a_leftover_is_somebody_elses,
];

fn a_root_changes_no_mode_through_its_links() {
    let place = Place::new("");
    fs::create_dir(place.path("victim")).unwrap();
    fs::set_permissions(place.path("victim"), fs::Permissions::from_mode(0o750)).unwrap();
    for target in ["../victim", "../../victim"] {
        for link in ["tmp", "var/tmp", "var"] {
            place.define(&format!(
                "return {{\"\": sh(\"x\", \"mkdir -p $(dirname $out/{link})\\n\
                 ln -s {target} $out/{link}\")}}"
            ));
            let root = place.path("root");
            place.srp(&["realise", "t.x", "--rootfs", root.to_str().unwrap()]).succeeded();
            let mode = fs::metadata(place.path("victim")).unwrap().mode() & 0o7777;
            assert_eq!(mode, 0o750, "{link} -> {target}");
            assert_eq!(fs::read_dir(place.path("victim")).unwrap().count(), 0);
            fs::remove_dir_all(root).unwrap();
        }
    }
}

fn a_root_reads_nothing_through_its_links() {
    for file in ["passwd", "group"] {
        let place = Place::new(&format!(
            "return {{\"\": sh(\"x\", \"mkdir -p $out/etc; ln -s /dev/zero $out/etc/{file}\\n\
             echo a > $out/usr/a\", permissions = {{\"/usr/a\": \"4755 root:root\"}})}}"
        ));
        let root = place.path("root");
        place.srp(&["realise", "t.x", "--rootfs", root.to_str().unwrap()]).succeeded();
        let link = fs::read_link(root.join("etc").join(file)).unwrap();
        assert_eq!(link.to_str(), Some("/dev/zero"));
    }
}

fn a_damaged_tree_is_not_materialised() {
    let place =
        Place::new("return {\"\": sh(\"x\", \"echo good > $out/usr/a; ln -s a $out/usr/b\")}");
    let object = place.realise("t.x");
    let file = fs::canonicalize(object.join("usr/a")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&file, "evil\n").unwrap();
    let root = place.path("root");
    let run = place.srp(&["realise", "t.x", "--rootfs", root.to_str().unwrap()]).exited(4);
    run.says(&[file.to_str().unwrap(), "is damaged: other bytes"]);
    assert!(!root.exists());
    // It is made anew. The other way: what has to be a file is a link to one that holds the same.
    place.realise("t.x");
    fs::write(place.path("same"), "good\n").unwrap();
    let directory = file.parent().unwrap();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(&file).unwrap();
    symlink(place.path("same"), &file).unwrap();
    let run = place.srp(&["realise", "t.x", "--rootfs", root.to_str().unwrap()]).exited(4);
    run.says(&[file.to_str().unwrap(), "is damaged"]);
    assert!(!root.exists());
}

fn what_looks_like_a_leftover_is_somebody_elses() {
    let place = Place::new("return {\"\": sh(\"x\", \"echo a > $out/usr/a\")}");
    // Where everybody may rename everybody's directories, a name says nothing.
    place.write("shared/.root.srp-1-0/precious", "letters");
    fs::set_permissions(place.path("shared"), fs::Permissions::from_mode(0o777)).unwrap();
    let root = place.path("shared/root");
    place.srp(&["realise", "t.x", "--rootfs", root.to_str().unwrap()]).succeeded();
    assert!(place.path("shared/.root.srp-1-0/precious").exists());
    // A link of that name is not followed anywhere, either.
    place.write("own/keep", "letters");
    symlink(place.path("shared"), place.path("own/.root.srp-2-0")).unwrap();
    let root = place.path("own/root");
    place.srp(&["realise", "t.x", "--rootfs", root.to_str().unwrap()]).succeeded();
    assert!(place.path("shared/.root.srp-1-0/precious").exists());
    assert!(root.join("usr/a").exists());
}
